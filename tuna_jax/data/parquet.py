"""Parquet files as a source, media embedded or beside, as `datasets` of Hugging Face writes them.

Parquet is read by row group: to read one record at random is to read some hundred. As many groups
are remembered as `_MEMORY` holds, so larger data are better packed (`data pack`) before training.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import json
import os
import threading

import numpy as np
import pyarrow.parquet as pq

from tuna_jax import files
from tuna_jax.config import UserError, nearest
from tuna_jax.data import shards
from tuna_jax.data.columns import read_classes, record_of
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import Stored, named
from tuna_jax.data.sources import SourceConfig
from tuna_jax.data.tasks import TASKS

_MEMORY = 512 << 20  # bytes of row groups remembered; the last one always is
_FILES = 64  # files kept open


class ParquetSource(Stored):
  """The rows of files, in order. A column is the field of its name, or as the `fields` say."""

  def __init__(self, config: SourceConfig, media: MediaConfig):
    """Raises FileNotFoundError, or UserError for a missing column or files without rows."""
    self.task, self.name, self._media = config.task, config.path, media
    self.root = config.root or os.path.dirname(config.path) or '.'
    self._paths = shards.paths_of(config.path)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      sizes = list(pool.map(lambda path: shards.index_of(path, groups)['rows'], self._paths))
    self._groups = [(file, group) for file, rows in enumerate(sizes) for group in range(len(rows))]
    self._ends = np.cumsum(np.concatenate(sizes))
    self._files = np.array([0, *np.cumsum([int(rows.sum()) for rows in sizes])])
    if not len(self):
      raise UserError(f'{self.name}: no records')
    self._lock = threading.Lock()  # files and groups are for one thread at a time
    self._open = functools.lru_cache(_FILES)(opened)
    self._tables: collections.OrderedDict[int, pq.Table] = collections.OrderedDict()
    schema = self._open(self._paths[0]).schema_arrow
    self._columns = {f: config.fields.get(f, f) for f in TASKS[self.task].fields}
    for field, column in self._columns.items():
      if column not in schema.names:
        have = f'it has {", ".join(schema.names)}{nearest(column, schema.names)}'
        advice = f'name the column of a field with "fields": {{"{field}": COLUMN}}'
        raise UserError(f'{self.name}: no column {column!r}; {have}; {advice}')
    self._classes = _class_names(schema, self._columns.values()) or read_classes(config.classes)

  def __len__(self):
    return int(self._ends[-1]) if len(self._ends) else 0

  @named
  def raw(self, index):
    """The record, embedded media as encoded bytes."""
    group = int(np.searchsorted(self._ends, index, 'right'))
    row = int(index) - (int(self._ends[group - 1]) if group else 0)
    values = self._table(group).slice(row, 1).to_pylist()[0]
    record = {field: values[column] for field, column in self._columns.items()}
    return record_of(record, self.task, self._classes)

  def where(self, index):
    """FILE[ROW]."""
    file = int(np.searchsorted(self._files, index, 'right')) - 1
    return f'{self._paths[file]}[{int(index - self._files[file])}]'

  def _table(self, group: int):
    with self._lock:
      if group not in self._tables:
        file, number = self._groups[group]
        columns = list(dict.fromkeys(self._columns.values()))
        read = self._open(self._paths[file]).read_row_group(number, columns, use_threads=False)
        self._tables[group] = read
        while len(self._tables) > 1 and sum(t.nbytes for t in self._tables.values()) > _MEMORY:
          self._tables.popitem(last=False)
      self._tables.move_to_end(group)
      return self._tables[group]


def opened(path: str) -> pq.ParquetFile:
  """A file whose footer is read. Raises UserError where it is no Parquet."""
  try:
    if files.is_remote(path):
      system = files.storage(path)
      return pq.ParquetFile(system.open(path, 'rb', cache_type='none'), pre_buffer=True)
    return pq.ParquetFile(path, memory_map=True)
  except ValueError as e:  # pyarrow's ArrowInvalid
    raise UserError(f'{path}: not a readable Parquet file ({e})') from e


def groups(path: str) -> shards.Index:
  """The numbers of rows of the row groups of a file."""
  with opened(path) as file:
    found = file.metadata
    return {'rows': np.array([found.row_group(n).num_rows for n in range(found.num_row_groups)])}


def _class_names(schema, columns) -> list[str]:
  """The names that `datasets` keeps in a file for a column of class numbers."""
  described = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
  features = described.get('info', {}).get('features', {})
  found = [features[c]['names'] for c in columns if 'names' in features.get(c, {})]
  return found[0] if found else []
