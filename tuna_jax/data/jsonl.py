"""Files of JSON lines as a source, in the official record formats (docs/architecture.md 9.3)."""

from __future__ import annotations

import json
import os
import re

import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import load, named
from tuna_jax.data.sources import SourceConfig


class JsonlSource:
  """The lines of a file, indexed once; a record is read when asked for. Media paths start at the
  row's root, or at the file's own directory.
  """

  def __init__(self, config: SourceConfig, media: MediaConfig):
    """Raises FileNotFoundError, or UserError for a file without records."""
    path = config.path
    self.task, self.name, self._media = config.task, path, media
    self._root = config.root or os.path.dirname(path) or '.'
    try:
      if files.is_remote(path):
        data = np.frombuffer(files.path(path).read_bytes(), np.uint8)
      else:
        data = np.memmap(path, np.uint8, 'r') if os.path.getsize(path) else np.zeros(0, np.uint8)
    except FileNotFoundError as e:
      raise FileNotFoundError(f'{path}: no such file (a JSONL of the mixture)') from e
    ends = np.concatenate([line_breaks(data), [len(data)]])
    starts = np.concatenate([[0], ends[:-1] + 1])
    full = np.flatnonzero(ends - starts > 1)  # a record has at least '{}'
    self._data, self._starts, self._ends, self._lines = data, starts[full], ends[full], full + 1
    if not len(full):
      raise UserError(f'{path}: no records')

  def __len__(self):
    return len(self._lines)

  @named
  def __getitem__(self, index):
    return load(self.raw(index), self.task, self._root, self._media)

  @named
  def raw(self, index):
    """The JSON object of a line. Raises BadRecord for anything else."""
    line, limits = self._data[self._starts[index] : self._ends[index]], self._media.limits
    if len(line) > limits.text:
      raise UserError(f'a line of {len(line)} bytes, more than limits.text={limits.text}')
    line = line.tobytes()
    if nesting(line) > limits.nesting:
      raise UserError(f'brackets nested more than limits.nesting={limits.nesting} deep')
    try:
      record = json.loads(line.decode('utf-8-sig'))
    except ValueError as e:
      raise UserError(f'not JSON ({e})') from e
    if not isinstance(record, dict):
      raise UserError(f'expected a JSON object, found {type(record).__name__}')
    return record

  def where(self, index):
    """FILE:LINE."""
    return f'{self.name}:{self._lines[index]}'


def line_breaks(data: np.ndarray, chunk: int = 1 << 26) -> np.ndarray:
  """The indices of the line feeds in uint8 `data`, found a chunk at a time to bound memory."""
  found = [np.flatnonzero(data[i : i + chunk] == ord('\n')) + i for i in range(0, len(data), chunk)]
  return np.concatenate(found) if found else np.zeros(0, np.int64)


def nesting(line: bytes) -> int:
  """How deep brackets stand inside brackets in a line of JSON, those in strings not counted."""
  deepest = line.count(b'[') + line.count(b'{')
  if deepest > 8:  # otherwise it is a bound that passes any sensible limit
    bare = np.frombuffer(re.sub(rb'"(?:[^"\\]|\\.)*"', b'', line), np.uint8)
    steps = np.isin(bare, list(b'[{')).astype(int) - np.isin(bare, list(b']}'))
    deepest = int(np.cumsum(steps).max(initial=0))
  return deepest
