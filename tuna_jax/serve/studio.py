"""What a page does: draws, edits, films, answers and talks, telling how far it is; every mistake is
a sentence, and what was there stays.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tuna_jax.config import UserError
from tuna_jax.data import media
from tuna_jax.sample import asking, requests
from tuna_jax.sample import text as writing
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.output import Picture, read_info
from tuna_jax.serve.desk import Busy, Desk
from tuna_jax.serve.limits import RequestLimits

_log = logging.getLogger(__name__)
KEPT = 86_400  # seconds that files of a session are kept
Turn = tuple[str, list[str | pathlib.Path]]


class Said(NamedTuple):
  """text: where the work stands. share: of it that is done. failed: the text says why it is not
  done. result: once there is one; of words, all so far."""

  text: str
  share: float | None = None
  failed: bool = False
  result: Any = None


class How(NamedTuple):
  """Settings of what is drawn; what is None is the run's."""

  seed: int = 42
  count: int = 1
  size: str | None = None
  points: int | None = None
  guidance: float | None = None
  shift: float | None = None
  negative: str = ''

  @property
  def seeds(self) -> list[int]:
    """Of each picture."""
    return _seeds(self.seed, self.count)

  def arguments(self, limits: RequestLimits, prompt: str, pictures: int = 0) -> dict[str, Any]:
    """Those of `Generator.image`; raises UserError for what is beyond the limits."""
    size = (self.size or '').strip() or None
    negative = self.negative or ''  # None is an empty box
    words = len(prompt) + len(negative)
    limits.check(prompt=words, size=size, points=self.points)
    limits.check(pictures=max(self.count or 0, pictures))
    points = None if self.points is None else int(self.points)
    return {
      'size': size, 'negative': negative, 'points': points, 'guidance': self.guidance,
      'shift': self.shift,
    }  # fmt: skip


def _seeds(seed: int | None, count: int | None) -> list[int]:
  if seed is None or not count:  # an empty box
    raise UserError('give a seed, and how many pictures')
  return requests.seeds_of(int(seed), int(count))


def _worded(prompt: str | None, what: str) -> None:
  if not (prompt or '').strip():
    raise UserError(f'say what to {what}')


class Studio:
  """The work of one generator for all who look at its page. folder: where results are written."""

  def __init__(self, generator: Generator, limits: RequestLimits, folder: str | os.PathLike):
    self.generator, self.limits, self.folder = generator, limits, pathlib.Path(folder)
    self._desk = Desk(limits.waiting)

  def draw(self, prompt: str, how: How) -> Iterator[Said]:
    """The result is a list of (file, caption), one for each seed."""

    def begin():
      _worded(prompt, 'draw')
      more = how.arguments(self.limits, prompt)
      seeds = how.seeds
      return lambda report: self.generator.image(
        [prompt] * len(seeds), seed=seeds, report=report, **more
      )

    yield from self._pictures(begin, prompt)

  def edit(self, pictures: Sequence[str], instruction: str, how: How) -> Iterator[Said]:
    """As `draw`, of pictures in files."""

    def begin():
      sources = [self._source(picture) for picture in pictures]
      if not sources:
        raise UserError('no picture to edit: add one above, or press "Edit this" under a result')
      _worded(instruction, 'change')
      more = how.arguments(self.limits, instruction, len(sources))
      texts = [instruction] * len(how.seeds)
      return lambda report: self.generator.edit(
        [sources] * len(texts), texts, seed=how.seeds, report=report, **more
      )

    yield from self._pictures(begin, instruction)

  def film(self, prompt: str, frames: int, first: str | None, how: How) -> Iterator[Said]:
    """The result is a clip in a file; `first` is a picture that it begins with."""

    def begin():
      _worded(prompt, 'film')
      more = how.arguments(self.limits, prompt)
      self.limits.check(frames=frames)
      firsts = [self._source(first)] if first else ()
      seed = how.seeds[0]
      return lambda report: self.generator.video(
        prompt, int(frames), seed=seed, images=firsts, report=report, **more
      )

    for said in self._steps(begin):
      if said.result is not None:
        said = said._replace(result=self._saved(said.result, prompt, '.mp4'))
      yield said

  def ask(
    self, turns: Sequence[Turn], tokens: int, temperature: float, seed: int
  ) -> Iterator[Said]:
    """The result is the answer so far."""

    def work(tell):
      choice = writing.Choice(float(temperature))
      _, ids = asking.answer(self.generator, turns, (), int(tokens), choice, _seeds(seed, 1)[0])
      for piece in writing.pieces(map(self.generator.tokenizer.decode, ids)):
        if not tell('piece', piece):
          break

    def begin():
      self._check_turns(turns)
      self.limits.check(answer=tokens)
      return work

    text = ''
    for kind, value in self._events(begin):
      if kind == 'piece':
        text += value
        yield Said('writing', result=text)
      elif kind == 'said':
        yield value
      else:
        yield Said('', result=text or '(an empty answer)')

  def draw_turn(self, turns: Sequence[Turn], how: How) -> Iterator[Said]:
    """The next turn of a conversation as a picture; the result is as in `draw`."""

    def begin():
      self._check_turns(turns)
      more = how.arguments(self.limits, '')
      texts = [list(turns)] * len(how.seeds)
      return lambda report: self.generator.image(texts, seed=how.seeds, report=report, **more)

    words = ' '.join(part for part in turns[-1][1] if isinstance(part, str))
    yield from self._pictures(begin, words)

  def first_frame(self, path: str) -> str:
    """The first frame of a clip, as a picture in a file with the settings of the clip."""
    pixels = media.read_video(path, self.generator.media.video_size, 1)[0]
    return self._saved(Picture(pixels, {'seed': 0, **read_info(path)}), 'first-frame', '.png')

  # ---- parts

  def _pictures(self, begin, prompt: str) -> Iterator[Said]:
    for said in self._steps(begin):
      if said.result is not None:
        files = [(self._saved(p, prompt, '.png'), f'seed {p.info["seed"]}') for p in said.result]
        said = said._replace(result=files)
      yield said

  def _steps(self, begin: Callable[[], Callable]) -> Iterator[Said]:
    """begin: checks what was given and returns work that takes `report`."""

    def begun():
      work = begin()
      return lambda tell: work(lambda done, total: tell('step', (done, total)))

    for kind, value in self._events(begun):
      if kind == 'step':
        done, total = value
        yield Said(f'step {done} of {total}', done / total)
      elif kind == 'said':
        yield value
      else:
        yield Said('', result=value)

  def _events(self, begin) -> Iterator[tuple[str, Any]]:
    """The events of work; how long it waits, and why it failed, as ('said', ...)."""
    try:
      work = begin()
      yield 'said', Said('starting')
      for kind, value in self._desk.events(work):
        if kind == 'ahead':
          yield (
            'said',
            Said(f'waiting: {value} {"request is" if value == 1 else "requests are"} first'),
          )
        else:
          yield kind, value
    except (UserError, Busy) as error:
      words = re.sub(rf'{re.escape(str(self.folder))}/(\w+/)*', '', str(error))
      yield 'said', Said(words, failed=True)
    except Exception:
      _log.exception('a request failed')
      yield (
        'said',
        Said('this failed, and it is our fault: the log of the server says why', failed=True),
      )

  def _check_turns(self, turns: Sequence[Turn]) -> None:
    parts = [part for _, content in turns for part in content]
    files = [part for part in parts if isinstance(part, pathlib.Path)]
    self.limits.check(prompt=sum(len(p) for p in parts if isinstance(p, str)), pictures=len(files))
    for file in files:
      self._source(file)

  def _source(self, path) -> pathlib.Path:
    """A file that is there and small enough."""
    path = pathlib.Path(path)
    if not path.exists():
      raise UserError(
        f'{path.name}: the file is gone, since files are kept for a day; add it again'
      )
    self.limits.check(upload_mb=path.stat().st_size / 1e6)
    return path

  def _saved(self, result, prompt: str, ending: str) -> str:
    """The file of a result, which holds its settings."""
    words = '-'.join(re.findall(r'[a-z0-9]+', prompt.lower()))[:40] or 'result'
    results = self.folder / 'results'
    results.mkdir(exist_ok=True)
    for old in results.iterdir():
      if time.time() - old.stat().st_mtime > KEPT:
        shutil.rmtree(old, ignore_errors=True)
    folder = results / uuid.uuid4().hex
    folder.mkdir()
    path = folder / f'{words}-{result.info["seed"]}{ending}'
    result.save(path)
    return str(path)
