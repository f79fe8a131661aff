"""Questions of a benchmark, in the order of the harness, answered in full batches.

Pictures are resized here, so what waits for a batch is small. Questions wait in one pool per shape
of pictures and settings; a pool that is full goes to `Generator.text` as batches of equal shape.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tuna_jax.config import UserError, nearest
from tuna_jax.data import media
from tuna_jax.data.tasks import PLACEHOLDER
from tuna_jax.sample.requests import FILMS

if TYPE_CHECKING:  # lmms-eval imports this file; jax can wait
  from tuna_jax.sample.generate import Generator

BATCHES = 8  # a pool holds so many batches before it is answered
PATIENCE = 8  # and while a question waits, at most so many pools of later ones are read
MAX_NEW_TOKENS = 512  # of a task that names no limit, as in the authors' adapter


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a question shows.

  images: 'first' shows the first picture or clip of a question alone, 'all' shows every one.
  resize: 'squash' changes the aspect ratio of a picture to that of the nearest bucket; 'cover'
  scales it to cover the bucket and crops the centre, as in training. Clips are always covered.
  The defaults are those of the authors' adapter (tuna_vae.py of facebookresearch/tuna-2).
  """

  images: str = 'first'
  resize: str = 'squash'

  def __post_init__(self):
    for name, known in (('images', ('first', 'all')), ('resize', ('squash', 'cover'))):
      value = getattr(self, name)
      if value not in known:
        raise UserError(f'{name}={value!r}: expected {" or ".join(known)}{nearest(value, known)}')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the answers of a task are decoded."""

  max_new_tokens: int
  temperature: float
  top_k: int
  top_p: float
  until: tuple[str, ...]

  @classmethod
  def of(cls, kwargs: Mapping[str, Any]) -> Settings:
    """The settings of a task's gen_kwargs. Greedy unless `do_sample` is true, as in the authors'
    adapter. Raises UserError for beam search.
    """
    if int(kwargs.get('num_beams') or 1) > 1:
      raise UserError(f'num_beams={kwargs["num_beams"]}: expected 1; there is no beam search')
    until = kwargs.get('until') or ()
    temperature = kwargs.get('temperature')
    return cls(
      int(kwargs.get('max_new_tokens') or MAX_NEW_TOKENS),
      float(1.0 if temperature is None else temperature) if kwargs.get('do_sample') else 0.0,
      int(kwargs.get('top_k') or 0),
      float(kwargs.get('top_p') or 1.0),
      tuple(u for u in ([until] if isinstance(until, str) else until) if u),
    )

  def cut(self, text: str) -> str:
    """The answer before the first of `until`, without white space around it."""
    for stop in self.until:
      text = text.split(stop)[0]
    return text.strip()


@dataclasses.dataclass(frozen=True)
class Question:
  """turns: [(role, text)], a picture standing at each `<image>` mark, or first where none has one.
  visuals: uint8 [H, W, 3] of a bucket's size, or the Path of a clip.
  """

  turns: list[tuple[str, str]]
  visuals: list
  settings: Settings


def from_visuals(text: str, visuals: Sequence, how: Reading, size_class: str, settings) -> Question:
  """A question whose pictures stand first. Marks in its text are removed, as in the authors'
  adapter.
  """
  chosen = list(visuals)[: 1 if how.images == 'first' else None]
  shown = [show(v, how.resize, size_class) for v in chosen]
  return Question([('user', text.replace(PLACEHOLDER, '').strip())], shown, settings)


def from_messages(messages: Sequence[Mapping], how: Reading, size_class: str, settings) -> Question:
  """A conversation of {'role', 'content': [{'type', 'text' or 'url'}]}, its pictures where they
  stand. A picture at the start of a turn is followed by a newline, as in training.
  """
  turns, visuals = [], []
  for message in messages:
    text = ''
    for piece in message['content']:
      kind = piece['type']
      if kind == 'text':
        text += piece['text'].replace(PLACEHOLDER, '')
      elif kind not in ('image', 'video'):
        raise UserError(f'content of type {kind!r}: expected text, image or video')
      elif how.images == 'all' or not visuals:
        visuals.append(show(piece['url'], how.resize, size_class))
        text += PLACEHOLDER if text.replace(PLACEHOLDER + '\n', '') else PLACEHOLDER + '\n'
    turns.append((message['role'], text.strip()))
  return Question(turns, visuals, settings)


def show(visual, resize: str, size_class: str):
  """A picture (PIL, path or array) as uint8 [H, W, 3] of a bucket, or the Path of a clip."""
  if isinstance(visual, str | pathlib.Path):
    visual = pathlib.Path(visual)
    if visual.is_dir() or visual.suffix.lower() in (*FILMS, '.gif'):
      return visual
    visual = str(visual)
  if resize == 'cover':
    return media.read_image(visual, size_class)
  plain = isinstance(visual, Image.Image) and visual.mode == 'RGB' and not visual.info
  picture = visual if plain else Image.fromarray(whole(visual))
  aspect = picture.width / picture.height
  height, width = min(media.buckets(size_class), key=lambda size: abs(size[1] / size[0] - aspect))
  return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def whole(picture) -> np.ndarray:
  """A picture (PIL, path or array) as uint8 [H, W, 3] of its own size."""
  return media.read_image(picture, '512', lambda height, width: (round(height), round(width)))


def answer(
  generator: Generator,
  questions: Iterable[Question],
  *,
  seed: int = 42,
  report: Callable[[int], None] = lambda count: None,
) -> Iterator[str]:
  """Yields the answers in the order of the questions, which are read one at a time.

  seed: with a temperature, question n uses seed + n. report: told how many were answered just now.
  """
  answers: dict[int, str] = {}
  pools: dict[tuple, list[tuple[int, Question]]] = {}  # that of the oldest question comes first
  full, done = BATCHES * generator.batch_size, 0

  def settle(key):
    numbers, asked = zip(*pools.pop(key))
    how = asked[0].settings
    said = generator.text(
      [q.turns for q in asked],
      [q.visuals for q in asked],
      max_new_tokens=how.max_new_tokens,
      temperature=how.temperature,
      top_k=how.top_k,
      top_p=how.top_p,
      seed=[(seed + n) % 2**32 for n in numbers],
    )
    answers.update((n, how.cut(text)) for n, text in zip(numbers, said))
    report(len(numbers))

  for n, question in enumerate(questions):
    key = (question.settings, tuple(_shape(v) for v in question.visuals))
    pools.setdefault(key, []).append((n, question))
    if len(pools[key]) == full:
      settle(key)
    oldest = next(iter(pools), None)
    if oldest is not None and n - pools[oldest][0][0] >= PATIENCE * full:
      settle(oldest)
    while done in answers:
      yield answers.pop(done)
      done += 1
  for key in list(pools):
    settle(key)
  yield from (answers[n] for n in sorted(answers))


def _shape(visual) -> tuple[int, ...] | None:
  return None if isinstance(visual, pathlib.Path) else visual.shape
