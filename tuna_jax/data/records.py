"""Raw records become usable ones: `TASKS` says which fields are checked and which are media.

A record is what people put in, so whatever it makes a library raise names it (`guard`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data import isolation, media
from tuna_jax.data.limits import LIMITS, Limits, locate, reason
from tuna_jax.data.tasks import PLACEHOLDER, TASKS, turns_of

PICTURES = ('picture', 'pictures')


class BadRecord(UserError):
  """One record that cannot be used; the message starts with where it is."""


_READING: dict[object, tuple[Callable[[], str], float]] = {}  # what is read, and since when


@contextlib.contextmanager
def noted(where: Callable[[], str]):
  """Within the block `reading` tells what is read."""
  key = object()
  _READING[key] = where, time.monotonic()
  try:
    yield
  finally:
    del _READING[key]


def reading() -> str:
  """What this process reads now, in any thread, and for how long, the longest first."""
  now, found = time.monotonic(), {}
  for where, since in sorted(_READING.copy().values(), key=lambda one: one[1]):
    found.setdefault(where(), f'{now - since:.0f} s')
  told = [f'{where} for {since}' for where, since in found.items()][:4]
  return f'reading {", ".join(told)}' if told else 'no record is being read'


@contextlib.contextmanager
def guard(source, index: int):
  """Turns whatever is raised inside into a BadRecord: 'file:line: what', in one printable line."""
  try:
    with noted(lambda: source.where(index)):
      yield
  except Exception as e:  # JSON, codecs and tokenizers raise anything for what people put in
    where = source.where(index)
    why = ' '.join((str(e) if isinstance(e, UserError) else reason(e)).split())
    why = why if why.startswith(where) else f'{where}: {why}'
    why = why if len(why) <= 1000 else f'{why[:600]} ... {why[-300:]}'
    raise BadRecord(why.encode('utf-8', 'backslashreplace').decode()) from e


def named(method):
  """A method (source, index) under `guard`."""

  @functools.wraps(method)
  def call(self, index):
    with guard(self, index):
      return method(self, index)

  return call


def usable(source, limit: int) -> Iterator[dict[str, Any]]:
  """The raw records among the first `limit` of a source whose fields and texts can be used."""
  for index in range(min(limit, len(source))):
    try:
      with guard(source, index):
        record = source.raw(index)
        collections.deque(texts_of(record, source.task), maxlen=0)
    except BadRecord:  # named and counted where records are trained on
      continue
    yield record


class Stored:
  """What sources have in common; each has `task`, `name`, `root`, `_media`, a length and `raw`."""

  @named
  def __getitem__(self, index):
    return load(self.raw(index), self.task, self.root, self._media)

  def where(self, index):
    """NAME[INDEX], counted over all files."""
    return f'{self.name}[{index}]'

  def smallest(self):
    """The first: sizes are not known before records are read, or all are about as large."""
    return 0


class Sharded(Stored):
  """The records of `_shards`, which know the place and the bytes of each."""

  def __len__(self):
    return len(self._shards)

  def where(self, index):
    """FILE[INDEX], counted within the file."""
    path, number = self._shards.place(index)
    return f'{path}[{number}]'

  def smallest(self):
    """The record of the fewest bytes."""
    return self._shards.smallest()


class Made(Stored):
  """`_config.size` records that are made when they are read, with their media."""

  root = ''

  def __len__(self):
    return self._config.size

  def __getitem__(self, index):
    return self.raw(index)


def load(record: dict[str, Any], task: str, root: str, config: media.MediaConfig) -> dict[str, Any]:
  """Checks one record and reads its media: uint8 arrays, or a list of them where a list stands.

  Pictures of several fields (the two sides of an edit) all take the size of the first. root: where
  media paths start. Raises UserError for what is wrong with the record.
  """
  if config.processes:
    here = dataclasses.replace(config, processes=0)
    pool = isolation.pool(config.processes)
    return pool.call(config.limits.wait, load, record, task, root, here)
  fields, out = TASKS[task].fields, dict(record)
  collections.deque(texts_of(record, task, config.limits), maxlen=0)
  one_size, size = sum(kind in PICTURES for kind in fields.values()) > 1, None
  for field, kind in fields.items():
    value = record[field]
    listed = isinstance(value, list)
    if kind in ('text', 'turns'):
      continue
    if listed and (not value or kind == 'picture'):
      wanted = 'one path' if kind == 'picture' else 'one or more paths'
      raise UserError(f'{field}: expected {wanted}, found {str(value)[:80]}')
    found = [_locate(one, root) for one in value] if listed else _locate(value, root)
    if kind == 'clip':
      video = config.video_size, config.frames, config.limits
      out[field] = media.read_video(found, *video, root=root)
    else:
      read = []
      for one in found if listed else [found]:
        read.append(media.read_image(one, config.image_size, size, config.limits))
        size = read[0].shape[:2] if one_size and size is None else size
      out[field] = read if listed else read[0]
  return out


def media_of(record: Mapping, task: str, kinds=(*PICTURES, 'clip')) -> list[np.ndarray]:
  """The pictures and clips of a record whose media are read, in the order of the task's fields."""
  found = []
  for field, kind in TASKS[task].fields.items():
    if kind in kinds:
      found += record[field] if isinstance(record[field], list) else [record[field]]
  return found


def texts_of(record: Mapping, task: str, limits: Limits = LIMITS) -> Iterator[str]:
  """The texts of a raw record, marks of pictures left out. Raises UserError for a missing field, a
  text that is empty, too long or no Unicode, and malformed turns.
  """
  fields = TASKS[task].fields
  for field, kind in fields.items():
    if field not in record:
      raise UserError(f'no field {field!r}; a record of {task} has {", ".join(fields)}')
    texts = [record[field]] if kind == 'text' else []
    if kind == 'turns':
      texts = [text for _, text in turns_of(record)]
    for text in texts:
      if kind == 'text' and (not isinstance(text, str) or not text.strip()):
        raise UserError(f'{field} is empty')
      if len(text) > limits.text:
        raise UserError(f'{field}: {len(text)} letters, more than limits.text={limits.text}')
      try:
        text.encode()
      except UnicodeEncodeError as e:
        raise UserError(f'{field}: letter {e.start} is half of a surrogate pair') from e
      yield from [text] if kind == 'text' else filter(None, text.split(PLACEHOLDER))


def _locate(value, root: str):
  """A media path below `root`; arrays and encoded bytes as they are."""
  return value if isinstance(value, (np.ndarray, bytes)) else locate(value, root)
