"""Random-access record sources: the embedded world, official JSONL, TFDS directories; and the
mixture file that lists them.

A source has a length, a `task`, a `name`, and `source[i]` -> a record whose media are uint8 arrays
of bucket size; it raises `BadRecord`, naming file and line, for one that cannot be used. The
pipeline counts those. numpy only.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from etils import epath

from tuna_jax import files
from tuna_jax.config import UserError, from_dict
from tuna_jax.data import media
from tuna_jax.data.tasks import FIELDS, check_task, turns_of

MEDIA_FIELDS = ('image', 'raw_image', 'out_image', 'video')
TEXT_FIELDS = ('caption', 'instruction')
MANY = (
  ('vqa', 'image'),
  ('edit', 'raw_image'),
  *((task, 'video') for task in FIELDS),
)  # where a list may stand


class BadRecord(UserError):
  """One record that cannot be used; the message starts with where it is."""


class Source(Protocol):
  """See the module."""

  task: str
  name: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...

  def raw(self, index: int) -> dict[str, Any]:
    """The record as stored, media unread."""

  def where(self, index: int) -> str:
    """The record's place, for messages."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One row of a mixture.

  path: a JSONL file, 'shapes' (the embedded world) or 'tfds:DIR' (a prepared TFDS directory).
  root: what relative media paths of a JSONL start from; its own directory if empty.
  weight: share of the mixture, multiplied by the phase's weight for the task.   split: of 'shapes' and 'tfds:'.
  size, seed: records of 'shapes', and which world.
  """

  path: str
  task: str
  root: str = ''
  weight: float = 1.0
  split: str = 'train'
  size: int = 1_000_000
  seed: int = 0

  def __post_init__(self):
    check_task(self.task)
    if not self.weight > 0:
      raise UserError(f'{self.path}: weight={self.weight}, expected more than 0')


def read_mixture(path: str | os.PathLike) -> tuple[SourceConfig, ...]:
  """The rows of a mixture file: a JSON list of `{"path", "root", "task", "weight"}` (and split,
  size, seed).

  Relative paths start at the file's directory. Raises ValueError naming the row and key that are
  wrong.
  """
  path = files.path(path)
  try:
    rows = files.read_json(path)
  except FileNotFoundError as e:
    raise FileNotFoundError(f'mixture {path}: no such file') from e
  if not isinstance(rows, list) or not rows:
    raise UserError(f'{path}: expected a list of rows {{"path", "root", "task", "weight"}}')
  out = []
  for n, row in enumerate(rows):
    try:
      config = from_dict(SourceConfig, row)
    except (ValueError, TypeError) as e:
      raise type(e)(f'{path}: row {n}: {e}') from e
    if config.path != 'shapes':
      kind = 'tfds:' if config.path.startswith('tfds:') else ''
      config = dataclasses.replace(
        config,
        path=kind + _beside(path, config.path.removeprefix(kind)),
        root=_beside(path, config.root) if config.root else '',
      )
    out.append(config)
  return tuple(out)


def _beside(file, path: str) -> str:
  return path if '://' in path else str(file.parent / path)


def open_source(config: SourceConfig, media_config: media.MediaConfig) -> Source:
  """The source a mixture row means. Raises FileNotFoundError or ValueError naming it."""
  if config.path == 'shapes':
    return ShapesSource(config.task, config.split, config.seed, config.size)
  if config.path.startswith('tfds:'):
    return TfdsSource(config.path[5:], config.task, config.split, media_config)
  return JsonlSource(config.path, config.task, config.root, media_config)


class ShapesSource:
  """`size` records of the embedded world; nothing is stored. Pictures are 64x64, clips 9 frames, as
  rendered.
  """

  def __init__(self, task: str, split: str = 'train', seed: int = 0, size: int = 1_000_000):
    from tuna_jax.toy import records

    self.task, self.name = check_task(task), f'shapes/{task}/{split}'
    self._record, self._split, self._seed, self._size = records.record, split, seed, size

  def __len__(self):
    return self._size

  def __getitem__(self, index):
    return self.raw(index)

  def raw(self, index):
    return self._record(self.task, self._split, self._seed, int(index))

  def where(self, index):
    return f'{self.name}[{index}]'


class TfdsSource:
  """A prepared TFDS data set, read as a data source without TensorFlow. Fields are named as in
  JSONL records.
  """

  def __init__(
    self,
    directory: str,
    task: str,
    split: str = 'train',
    media_config: media.MediaConfig | None = None,
  ):
    import tensorflow_datasets as tfds

    self.task, self.name, self._media = (
      check_task(task),
      f'tfds:{directory}/{split}',
      media_config or media.MediaConfig(),
    )
    self._data = tfds.builder_from_directory(directory).as_data_source(split)

  def __len__(self):
    return len(self._data)

  def __getitem__(self, index):
    return load(self.raw(index), self.task, '', self._media, self.where(index))

  def raw(self, index):
    record = dict(self._data[int(index)])
    for key, value in record.items():
      if isinstance(value, bytes) and key not in MEDIA_FIELDS:
        record[key] = value.decode('utf-8')
    talk = record.get('conversations')
    if isinstance(talk, str):
      record['conversations'] = json.loads(talk)
    elif isinstance(talk, Mapping):  # TFDS turns a list of dicts into a dict of lists
      text = lambda v: v.decode('utf-8') if isinstance(v, bytes) else str(v)
      record['conversations'] = [
        {'from': text(f), 'value': text(v)} for f, v in zip(talk['from'], talk['value'])
      ]
    return record

  def where(self, index):
    return f'{self.name}[{index}]'


class JsonlSource:
  """Official JSONL records (docs/architecture.md 9.3). Lines are indexed once; a record is read
  when asked for.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    task: str,
    root: str = '',
    media_config: media.MediaConfig | None = None,
  ):
    """root: where media paths start; the file's own directory if empty. Raises FileNotFoundError,
    or ValueError if empty.
    """
    self.task, self.name, self._media = (
      check_task(task),
      str(path),
      media_config or media.MediaConfig(),
    )
    self._root = root or os.path.dirname(str(path)) or '.'
    try:
      data = (
        np.frombuffer(epath.Path(path).read_bytes(), np.uint8)
        if '://' in str(path)
        else (np.memmap(path, np.uint8, 'r') if os.path.getsize(path) else np.zeros(0, np.uint8))
      )
    except FileNotFoundError as e:
      raise FileNotFoundError(f'{path}: no such file (a JSONL of the mixture)') from e
    ends = np.concatenate([_newlines(data), [len(data)]])
    starts = np.concatenate([[0], ends[:-1] + 1])
    full = np.flatnonzero(ends - starts > 1)  # a record has at least '{}'
    self._data, self._starts, self._ends, self._lines = data, starts[full], ends[full], full + 1
    if not len(full):
      raise UserError(f'{path}: no records')

  def __len__(self):
    return len(self._lines)

  def __getitem__(self, index):
    return load(self.raw(index), self.task, self._root, self._media, self.where(index))

  def raw(self, index):
    where = self.where(index)
    try:
      record = json.loads(
        self._data[self._starts[index] : self._ends[index]].tobytes().decode('utf-8')
      )
    except ValueError as e:
      raise BadRecord(f'{where}: not JSON ({e})') from e
    if not isinstance(record, dict):
      raise BadRecord(f'{where}: expected a JSON object, found {type(record).__name__}')
    return record

  def where(self, index):
    return f'{self.name}:{self._lines[index]}'


def load(
  record: dict[str, Any], task: str, root: str, config: media.MediaConfig, where: str
) -> dict[str, Any]:
  """Checks one record and reads its media; raises BadRecord starting with `where`."""
  for field in FIELDS[task]:
    if field not in record:
      raise BadRecord(
        f'{where}: no field {field!r}; a record of {task} has {", ".join(FIELDS[task])}'
      )
  out = dict(record)
  try:
    for field in FIELDS[task]:
      value = record[field]
      if field in TEXT_FIELDS and (not isinstance(value, str) or not value.strip()):
        raise UserError(f'{field} is empty')
      if (
        field in MEDIA_FIELDS
        and isinstance(value, list)
        and (not value or (task, field) not in MANY)
      ):
        raise UserError(
          f'{field}: expected {"one or more paths" if (task, field) in MANY else "one path"}, found {value}'
        )
      if field == 'conversations':
        turns_of(record)
      if field == 'video':
        out[field] = media.read_video(_locate(value, root), config.video_size, config.frames)
      elif field == 'raw_image':
        first, *more = [_locate(v, root) for v in (value if isinstance(value, list) else [value])]
        read = [media.read_image(first, config.image_size)]
        read += [media.read_image(v, config.image_size, read[0].shape[:2]) for v in more]
        out[field] = read
      elif field == 'out_image':  # an edit keeps its picture's size
        out[field] = media.read_image(
          _locate(value, root), config.image_size, out['raw_image'][0].shape[:2]
        )
      elif field == 'image':
        many = isinstance(value, list)
        read = [
          media.read_image(_locate(v, root), config.image_size)
          for v in (value if many else [value])
        ]
        out[field] = read if many else read[0]
  except ValueError as e:
    raise BadRecord(f'{where}: {e}') from e
  return out


def _locate(value, root: str):
  """A media path (or list of them) below `root`; arrays and encoded bytes as they are. Raises
  ValueError outside.
  """
  if isinstance(value, (list, tuple)) and value:
    return [_locate(v, root) for v in value]
  if isinstance(value, (np.ndarray, bytes)):
    return value
  if not isinstance(value, str) or not value:
    raise UserError(f'expected a path, found {value!r}')
  if '://' in root:
    if value.startswith('/') or '..' in value.split('/') or '://' in value:
      raise UserError(f'{value!r} leaves the root {root}')
    return str(epath.Path(root) / value)
  base, path = os.path.abspath(root), os.path.abspath(os.path.join(root, value))
  if os.path.commonpath([base, path]) != base:
    raise UserError(f'{value!r} leaves the root {root}')
  return path


def _newlines(data: np.ndarray, chunk: int = 1 << 26) -> np.ndarray:
  found = [np.flatnonzero(data[i : i + chunk] == ord('\n')) + i for i in range(0, len(data), chunk)]
  return np.concatenate(found) if found else np.zeros(0, np.int64)
