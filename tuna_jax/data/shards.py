"""Files that hold many records, on a disk or on object storage, read by the byte range of a record.

An index says where in a file its records start: 8 bytes per record. It is made by going through the
file once, and kept beside it as FILE.index.npz (where that may not be written, in the cache folder)
unless the file is small. A record is one request. numpy only.
"""

from __future__ import annotations

import concurrent.futures
import glob
import hashlib
import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError

Index = dict[str, np.ndarray]
SMALL = 1 << 24  # bytes of a file whose index is made again whenever it is opened
CHUNK = 1 << 25  # bytes that are read at once where an index is made
_CACHE = os.path.join('~', '.cache', 'tuna_jax', 'index')
_AT_ONCE = 16  # files whose index is asked for at once
_FORMAT = 'tuna_jax 1'


class Shards:
  """The records of files, in order: `len`, `read(i)`, `place(i)`.

  The index of a file is `starts`, int64 [n + 1]: record k is the bytes [starts[k], starts[k + 1] -
  gap); and `keep`, where not all of them count: the numbers of those that do, rising.
  """

  def __init__(
    self,
    paths: Sequence[str],
    build: Callable[[str], Index],
    gap: int = 0,
    choose: Callable[[Index], Index] = lambda index: index,
  ):
    """build: makes the index of a file. choose: adds a `keep` of this source to one that is kept
    for all. Raises UserError for files without records.
    """
    self.paths, self._gap = list(paths), gap
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      found = list(pool.map(lambda path: choose(index_of(path, build)), self.paths))
    self._starts = [index['starts'] for index in found]
    self._keep = [index.get('keep') for index in found]
    sizes = [len(s) - 1 if k is None else len(k) for s, k in zip(self._starts, self._keep)]
    self._first = np.array([0, *itertools.accumulate(sizes)])
    if not len(self):
      raise UserError(f'{self.paths[0]}: no records')

  def __len__(self):
    return int(self._first[-1])

  def place(self, index: int) -> tuple[str, int]:
    """(path, number in the file from 0) of a record."""
    file, number = self._find(index)
    return self.paths[file], number

  def _find(self, index):
    file = int(np.searchsorted(self._first, index, 'right')) - 1
    number, keep = int(index - self._first[file]), self._keep[file]
    return file, number if keep is None else int(keep[number])

  def read(self, index: int, limit: int, what: str) -> bytes:
    """The bytes of a record. Raises UserError for more than `limit` bytes; `what` names that."""
    file, number = self._find(index)
    path, starts = self.paths[file], self._starts[file]
    start, end = int(starts[number]), int(starts[number + 1]) - self._gap
    if end - start > limit:
      raise UserError(f'{end - start} bytes, more than {what}={limit}')
    data = read_range(path, start, end)
    if len(data) != end - start:
      raise UserError(f'the file ends at byte {start + len(data)}: it was changed after the start')
    return data

  def smallest(self) -> int:
    """The record of the fewest bytes."""
    best = []
    for first, starts, keep in zip(self._first, self._starts, self._keep):
      sizes = np.diff(starts)
      sizes = sizes if keep is None else sizes[keep]
      if len(sizes):
        best.append((int(sizes.min()), int(first) + int(sizes.argmin())))
    return min(best)[1]


# ---- paths


def paths_of(pattern: str) -> list[str]:
  """The files that a path names: itself, or what matches its `*`, `?` and `{000..099}` or `{a,b}`,
  in order of their names. Raises FileNotFoundError if there are none, or one of braces is absent.
  """
  if not re.search(r'[*?{]', pattern) or files.path(pattern).exists():
    found = [pattern]
  else:
    found = [path for part in _braces(pattern) for path in _glob(part)]
  if not found or not all(files.path(path).exists() for path in found[:1]):
    raise FileNotFoundError(f'{pattern}: no such file')
  return found


def _braces(pattern: str) -> list[str]:
  inner = re.search(r'\{([^{}]*)\}', pattern)
  if inner is None:
    return [pattern]
  numbers = re.fullmatch(r'(\d+)\.\.(\d+)', inner[1])
  words = inner[1].split(',')
  if numbers:
    words = [f'{n:0{len(numbers[1])}d}' for n in range(int(numbers[1]), int(numbers[2]) + 1)]
  head, tail = pattern[: inner.start()], pattern[inner.end() :]
  return [head + word + rest for word in words for rest in _braces(tail)]


def _glob(pattern: str) -> list[str]:
  if not re.search(r'[*?]', pattern):
    return [pattern]
  if files.is_remote(pattern):
    system = files.storage(pattern)
    return sorted(f'{pattern.split("://")[0]}://{p.split("://")[-1]}' for p in system.glob(pattern))
  return sorted(glob.glob(pattern))


# ---- bytes


def read_range(path: str, start: int, end: int) -> bytes:
  """The bytes [start, end) of a file, or fewer where it ends before."""
  if end <= start:
    return b''
  if files.is_remote(path):
    return files.storage(path).cat_file(path, start=start, end=end)
  with open(path, 'rb', buffering=0) as file:
    return os.pread(file.fileno(), end - start, start)


def chunks(path: str) -> Iterator[tuple[int, np.ndarray]]:
  """(position, uint8 array) of the pieces of a file."""
  size = _identity(path)[0]
  for start in range(0, size, CHUNK):
    yield start, _chunk(path, start, size)


def map_chunks(path: str, function: Callable[[int, np.ndarray], Any]) -> list:
  """`function` of each (position, uint8 array) of `chunks`, several at once on all cores."""
  size = _identity(path)[0]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    one = lambda start: function(start, _chunk(path, start, size))
    return list(pool.map(one, range(0, size, CHUNK)))


def _chunk(path, start, size) -> np.ndarray:
  return np.frombuffer(read_range(path, start, min(size, start + CHUNK)), np.uint8)


def _identity(path: str) -> tuple[int, str]:
  """(bytes, what differs when the file is another) of a file. Raises FileNotFoundError."""
  if files.is_remote(path):
    system = files.storage(path)
    return int(system.info(path)['size']), system.ukey(path)
  found = os.stat(path)
  return found.st_size, str(found.st_mtime_ns)


# ---- indices


def index_of(path: str, build: Callable[[str], Index]) -> Index:
  """What `build(path)` finds, kept from one run to the next as long as the file stays the same."""
  size, identity = _identity(path)
  if size < SMALL:
    return build(path)
  stamp = f'{_FORMAT} {build.__module__}.{build.__name__} {size} {identity}'
  for where in (beside := _beside(path), cached := _cached(path)):
    if (found := _load(where, stamp)) is not None:
      return found
  index = build(path)
  try:
    _save(beside, stamp, index)
  except OSError:  # of data that one may only read; object storage has its own such errors
    _save(cached, stamp, index)
  return index


def _beside(path: str):
  return files.path(f'{path}.index.npz')


def _cached(path: str):
  name = hashlib.blake2b(str(files.absolute(path)).encode(), digest_size=16).hexdigest()
  return files.path(_CACHE) / f'{name}.npz'


def _load(where, stamp: str) -> Index | None:
  if not where.exists():
    return None
  try:
    with where.open('rb') as file, np.load(file, allow_pickle=False) as found:
      arrays = dict(found)
  except (ValueError, OSError, EOFError, zipfile.BadZipFile):  # damaged: it is made again
    return None
  return arrays if str(arrays.pop('stamp', '')) == stamp else None


def _save(where, stamp: str, index: Index) -> None:
  where.parent.mkdir(parents=True, exist_ok=True)
  with files.writing(where) as file:
    np.savez(file, stamp=np.array(stamp), **index)


# ---- fields


def renamed(record: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
  """The record with our field names where a row's `fields` (ours -> theirs) gives theirs."""
  return record | {ours: record[theirs] for ours, theirs in fields.items() if theirs in record}
