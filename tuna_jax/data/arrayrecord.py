"""ArrayRecord files: our own packed form of records, their media inside.

A record is a MessagePack map from field to text, number, bytes, list, map or numpy array (extension
1, the bytes of a .npy file). The library reads local files and gs:// alike, and opens a file when
its first record is asked for.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import Stored, named
from tuna_jax.data.shards import paths_of, renamed
from tuna_jax.data.sources import SourceConfig
from tuna_jax.mappings import kind

ENDING = '.array_record'
COUNTS = (
  'counts.json'  # {file name: records} in a folder of shards: they need not be opened to count
)
_OPTIONS = 'group_size:1,uncompressed'  # each record by itself; pictures are compressed already
_ARRAY = 1


class ArrayRecordSource(Stored):
  """The records of packed files: a path, or a pattern of paths (`shards.paths_of`)."""

  def __init__(self, config: SourceConfig, media: MediaConfig):
    """Raises FileNotFoundError, or UserError for files without records."""
    self.task, self.name, self.root = config.task, config.path, config.root
    self._media, self._fields = media, config.fields
    self._data = open_files(paths_of(config.path))
    if not len(self._data):
      raise UserError(f'{config.path}: no records')

  def __len__(self):
    return len(self._data)

  @named
  def raw(self, index):
    """The record as it was packed. Raises BadRecord for anything else."""
    return renamed(loads(self._data[int(index)]), self._fields)


def open_files(paths: list[str], counted: bool = True) -> ArrayRecordDataSource:
  """The records of files as bytes, in order. Files that the COUNTS of their folder name are opened
  only when a record of theirs is read; counted=False opens and counts them in any case.
  """
  known: dict[str, int] = {}
  for folder in dict.fromkeys(os.path.dirname(path) for path in paths) if counted else ():
    counts = files.path(folder or '.') / COUNTS
    if counts.exists():
      for name, count in files.read_object(counts).items():
        if type(count) is not int or count < 0:
          raise UserError(f'{counts}: {name}: expected a number of records, found {count!r}')
        known[os.path.join(folder, name)] = count
  return ArrayRecordDataSource([f'{p}[0:{known[p]}]' if p in known else p for p in paths])


@contextlib.contextmanager
def writing(where: str | os.PathLike) -> Iterator[Callable[[Mapping[str, Any]], None]]:
  """Yields a function that adds a record to a file, which appears whole if the block ends well."""
  where = files.path(where)
  remote = files.is_remote(where)
  with tempfile.TemporaryDirectory(prefix='.pack', dir=None if remote else where.parent) as folder:
    part = os.path.join(folder, 'part')
    writer = ArrayRecordWriter(part, _OPTIONS)
    try:
      yield lambda record: writer.write(dumps(record))
    finally:
      writer.close()
    with open(part, 'rb') as made:
      if remote:
        with files.writing(where) as uploaded:
          shutil.copyfileobj(made, uploaded, 1 << 24)
      else:
        os.fsync(made.fileno())
        os.replace(part, where)


def dumps(record: Mapping[str, Any]) -> bytes:
  """A record as bytes."""
  return msgpack.packb(dict(record), default=_encode)


def loads(data: bytes) -> dict[str, Any]:
  """The record that `dumps` made bytes of. Raises UserError for other bytes."""
  try:
    record = msgpack.unpackb(data, ext_hook=_decode)
  except (ValueError, msgpack.exceptions.UnpackException) as e:
    raise UserError('not a record that `tuna-jax data pack` wrote') from e
  if not isinstance(record, dict):
    raise UserError('not a record that `tuna-jax data pack` wrote')
  return record


def _encode(value):
  if isinstance(value, np.generic):
    return value.item()
  if not isinstance(value, np.ndarray):
    raise UserError(f'expected texts, numbers, bytes or arrays, found {kind(value)}')
  file = io.BytesIO()
  np.save(file, value, allow_pickle=False)
  return msgpack.ExtType(_ARRAY, file.getvalue())


def _decode(code, data):
  if code != _ARRAY:
    raise UserError(f'a value of the unknown MessagePack extension {code}')
  return np.load(io.BytesIO(data), allow_pickle=False)
