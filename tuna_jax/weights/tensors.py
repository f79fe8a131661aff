"""A tensor that is not read yet. Every reader gives {name: Lazy}; every writer and loader takes it.

A conversion is a new mapping of `Lazy` over an old one, so a slice asked of the result reads the
matching bytes of the file and nothing else: peak memory follows the slice, not the checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError

CHUNK_BYTES = 64 << 20  # the most that one read holds beside its result

FLOATS = tuple(np.dtype(d) for d in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
SHOWN = 60  # faults that a message lists


class CheckpointError(UserError):
  """A file that cannot be read, or does not fit: the message lists every fault, with names."""


class Damaged(CheckpointError):
  """What is stored is not what was saved; the message is one line and names the file or leaf."""


def raise_faults(title: str, faults: list[str]):
  """Raises CheckpointError if there are faults: the first in its text, all of them in `.faults`."""
  if faults:
    more = [f'... and {len(faults) - SHOWN} more'] if len(faults) > SHOWN else []
    lines = [f'{title}: {len(faults)} faults', *faults[:SHOWN], *more]
    error = CheckpointError('\n  '.join(lines))
    error.faults = faults
    raise error


@dataclasses.dataclass(frozen=True)
class Lazy:
  """One tensor: `read(index)` gives a slice as numpy; index is one slice(start, stop) per axis.

  digest: of a stored tensor, the one it was saved with (weights/digest.py). folder: where it is.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[tuple[slice, ...]], np.ndarray] = dataclasses.field(repr=False)
  digest: str = ''
  folder: str = ''

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def __getitem__(self, index) -> np.ndarray:
    """The slice, given for every axis or for the first ones; `lazy[()]` is the whole tensor."""
    return self.read(full_index(index, self.shape))

  def __array__(self, dtype=None, copy=None):
    del copy
    return np.asarray(self[()], dtype=dtype)


def full_index(index, shape) -> tuple[slice, ...]:
  """One slice(start, stop) for every axis of `shape`. Integers and steps are refused."""
  index = index if isinstance(index, tuple) else (index,)
  slices = []
  for axis, size in enumerate(shape):
    start, stop, step = (index[axis] if axis < len(index) else slice(None)).indices(size)
    if step != 1:
      raise UserError(f'axis {axis}: only slices of step 1 can be read, found step {step}')
    slices.append(slice(start, max(start, stop)))
  return tuple(slices)


def index_shape(index) -> tuple[int, ...]:
  """The shape that `index` selects."""
  return tuple(s.stop - s.start for s in index)


def lazy(array) -> Lazy:
  """Wraps an array in memory: numpy, or a jax.Array, which is sliced on its devices."""
  if isinstance(array, Lazy):
    return array
  shape, dtype = tuple(array.shape), np.dtype(array.dtype)
  return Lazy(shape, dtype, lambda index: np.asarray(array[index] if index else array))


def lazies(arrays: Mapping) -> dict[str, Lazy]:
  """{name: Lazy} from {name: array}."""
  return {name: lazy(array) for name, array in arrays.items()}


def row_blocks(value: Lazy, limit: int = CHUNK_BYTES):
  """Indices that cover the tensor in storage order, in slices of at most `limit` bytes.

  They follow the first axis, or the second where one step of the first is larger than `limit`.
  """
  if not value.shape:
    yield ()
    return
  row = max(1, value.nbytes // max(1, value.shape[0]))
  if row > limit and len(value.shape) > 1:
    inner = Lazy(value.shape[1:], value.dtype, value.read)
    for i in range(value.shape[0]):
      for index in row_blocks(inner, limit):
        yield (slice(i, i + 1), *index)
    return
  step = max(1, limit // row)
  for start in range(0, value.shape[0], step):
    yield full_index(slice(start, start + step), value.shape)


def blocks(value: Lazy):
  """The tensor's bytes in storage order, as uint8 arrays of at most 64 MB."""
  for index in row_blocks(value):
    yield np.ascontiguousarray(value.read(index)).reshape(-1).view(np.uint8)


def cast(tensors: Mapping[str, Lazy], dtype) -> dict[str, Lazy]:
  """The same tensors, read as `dtype`. CheckpointError where a finite value becomes infinite."""
  dtype = np.dtype(dtype)

  def read(name, value, index):
    array = value.read(index)
    with np.errstate(over='ignore'):
      out = array.astype(dtype, copy=False)
    if out is not array and np.isfinite(array).all() and not np.isfinite(out).all():
      raise CheckpointError(
        f'{name}: holds {float(np.abs(array).max()):.3g}, which is infinite as {dtype}; '
        'use --dtype=bfloat16 or float32'
      )
    return out

  return {
    name: Lazy(t.shape, dtype, functools.partial(read, name, t)) for name, t in tensors.items()
  }


def equal(a: Lazy, b: Lazy) -> bool:
  """Whether two tensors hold the same bytes, read block by block."""
  return (
    a.shape == b.shape
    and a.dtype == b.dtype
    and all(np.array_equal(x, y) for x, y in zip(blocks(a), blocks(b), strict=True))
  )


class Bytes:
  """A file read by position, local or on object storage, by one request per read."""

  def __init__(self, path):
    self.path, self._lock = files.path(path), threading.Lock()
    if files.is_remote(self.path):
      storage = files.storage(self.path)
      self.size = storage.size(str(self.path))
      self._fill = lambda start, out: _copy(
        storage.cat_file(str(self.path), start=start, end=start + len(out)), out
      )
    else:
      self._file = self.path.open('rb')
      self.size = self._file.seek(0, 2)
      self._fill = self._from_disk
    if what := files.impostor(self.read(0, min(self.size, 64)).tobytes()):
      raise CheckpointError(f'{path}: no weights: {what}')

  def read(self, start: int, size: int) -> np.ndarray:
    """uint8[size] from `start`. Raises CheckpointError where the file is shorter."""
    if start < 0 or start + size > self.size:
      raise CheckpointError(
        f'{self.path}: truncated: bytes {start}..{start + size} asked, the file has {self.size}'
      )
    data = np.empty(size, np.uint8)
    done = self._fill(start, memoryview(data)) if size else 0
    if done < size:
      raise CheckpointError(f'{self.path}: truncated at byte {start + done}')
    return data

  def _from_disk(self, start: int, out: memoryview) -> int:
    with self._lock:
      self._file.seek(start)
      done = 0
      while done < len(out) and (part := self._file.readinto(out[done:])):
        done += part
      return done

  def tensor(self, start: int, shape, dtype) -> Lazy:
    """The C-ordered tensor that begins at byte `start`; whole rows of the first axis are read."""
    shape, dtype = tuple(shape), np.dtype(dtype)
    row_shape = shape[1:]
    row_bytes = math.prod(row_shape) * dtype.itemsize

    def rows(first: int, count: int) -> np.ndarray:
      found = self.read(start + first * row_bytes, count * row_bytes)
      return found.view(dtype).reshape(count, *row_shape)

    def read(index):
      if not shape:
        return self.read(start, dtype.itemsize).view(dtype).reshape(())
      wanted, first = index_shape(index), index[0].start
      if not math.prod(wanted):
        return np.empty(wanted, dtype)
      if wanted[1:] == row_shape:
        return rows(first, wanted[0])
      out = np.empty(wanted, dtype)
      step = max(1, CHUNK_BYTES // row_bytes)
      for at in range(0, wanted[0], step):
        count = min(step, wanted[0] - at)
        out[at : at + count] = rows(first + at, count)[(slice(None), *index[1:])]
      return out

    return Lazy(shape, dtype, read)


def _copy(data: bytes, out: memoryview) -> int:
  out[: len(data)] = data
  return len(data)
