"""Files of JSON records as sources: JSON lines, and lists, in the official record formats
(docs/architecture.md 9.3). A record is read when it is asked for.
"""

from __future__ import annotations

import json
import os
import re

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data import shards
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import Sharded, named
from tuna_jax.data.sources import SourceConfig
from tuna_jax.mappings import kind


class JsonlSource(Sharded):
  """The lines of a file, or of the files of a pattern. Media paths start at the row's root, or at
  the directory of the first file.
  """

  def __init__(self, config: SourceConfig, media: MediaConfig):
    """Raises FileNotFoundError, or UserError for a file without records."""
    path = config.path
    if path.endswith(_PACKED):
      raise UserError(f'{path}: unpack it first, since records are read in random order')
    self.task, self.name, self._media, self._fields = config.task, path, media, config.fields
    self.root = config.root or os.path.dirname(path) or '.'
    try:
      self._shards = self._open(shards.paths_of(path))
    except FileNotFoundError as e:
      raise FileNotFoundError(f'{path}: no such file (a JSONL of the mixture)') from e

  def _open(self, paths):
    return shards.Shards(paths, lines, gap=1)

  @named
  def raw(self, index):
    """The JSON object of a record. Raises BadRecord for anything else."""
    limits = self._media.limits
    data = self._shards.read(index, limits.text, 'limits.text')
    if nesting(data) > limits.nesting:
      raise UserError(f'brackets nested more than limits.nesting={limits.nesting} deep')
    try:
      record = json.loads(data.decode('utf-8-sig'))
    except ValueError as e:
      raise UserError(f'not JSON ({e})') from e
    if not isinstance(record, dict):
      raise UserError(f'expected a JSON object, found {kind(record)}')
    return shards.renamed(record, self._fields)

  def where(self, index):
    """FILE:LINE."""
    path, number = self._shards.place(index)
    return f'{path}:{number + 1}'


_PACKED = ('.gz', '.tgz', '.bz2', '.xz', '.zst', '.zip')


def lines(path: str) -> shards.Index:
  """The index of the lines of a file; blank ones are left out."""

  def ends(start, data):
    found = np.flatnonzero(data == ord('\n')) + (start + 1)
    return found, start + len(data)

  found = shards.map_chunks(path, ends)
  starts = np.concatenate([np.zeros(1, np.int64), *(after for after, _ in found)])
  if found and starts[-1] != found[-1][1]:
    starts = np.append(starts, found[-1][1] + 1)  # the last line does not end
  full = np.diff(starts) > 2  # a record has at least '{}'
  return {'starts': starts} if full.all() else {'starts': starts, 'keep': np.flatnonzero(full)}


def nesting(line: bytes) -> int:
  """How deep brackets stand inside brackets in a line of JSON, those in strings not counted."""
  deepest = line.count(b'[') + line.count(b'{')
  if deepest > 8:  # otherwise it is a bound that passes any sensible limit
    bare = np.frombuffer(re.sub(rb'"(?:[^"\\]|\\.)*"', b'', line), np.uint8)
    steps = np.isin(bare, list(b'[{')).astype(int) - np.isin(bare, list(b']}'))
    deepest = int(np.cumsum(steps).max(initial=0))
  return deepest
