"""A tensor that is not read yet. Every reader gives {name: Lazy}; every writer and loader takes it.

A conversion is a new mapping of `Lazy` over an old one, so a slice asked of the result reads the
matching bytes of the file and nothing else: peak memory follows the slice, not the checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
from etils import epath

from tuna_jax.config import UserError

CHUNK_BYTES = 64 << 20  # the most that one read holds beside its result

FLOATS = tuple(np.dtype(d) for d in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))


class CheckpointError(UserError):
  """A file that cannot be read, or does not fit: the message lists every fault, with names."""


@dataclasses.dataclass(frozen=True)
class Lazy:
  """One tensor: `read(index)` returns the slice as numpy, `index` being one slice(start, stop) an
  axis.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[tuple[slice, ...]], np.ndarray] = dataclasses.field(repr=False)

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def __getitem__(self, index) -> np.ndarray:
    """The slice, with slices given for every axis or for the first ones; `lazy[()]` is the whole
    tensor.
    """
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
  """Wraps an array that is already in memory: numpy, or a jax.Array, which is sliced on its
  devices.
  """
  return (
    array
    if isinstance(array, Lazy)
    else Lazy(
      tuple(array.shape),
      np.dtype(array.dtype),
      lambda index: np.asarray(array[index] if index else array),
    )
  )


def lazies(arrays: Mapping) -> dict[str, Lazy]:
  """{name: Lazy} from {name: array}."""
  return {name: lazy(array) for name, array in arrays.items()}


def row_blocks(value: Lazy, limit: int = CHUNK_BYTES):
  """Indices that cover the tensor in storage order in slices of at most `limit` bytes, if one row
  is not larger.

  Blocks follow the first axis; where one step of it is larger than `limit`, the second.
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


class Bytes:
  """A file read by position; local, or wherever `epath` reaches."""

  def __init__(self, path):
    self.path = epath.Path(path)
    self._lock = threading.Lock()
    self._file = self.path.open('rb')
    self.size = self._file.seek(0, 2)

  def read(self, start: int, size: int) -> np.ndarray:
    """uint8[size] from `start`. Raises CheckpointError where the file is shorter."""
    if start < 0 or start + size > self.size:
      raise CheckpointError(
        f'{self.path}: truncated: bytes {start}..{start + size} asked, the file has {self.size}'
      )
    with self._lock:
      self._file.seek(start)
      data = np.empty(size, np.uint8)
      view, done = memoryview(data), 0
      while done < size:
        part = self._file.readinto(view[done:]) if hasattr(self._file, 'readinto') else None
        if part is None:  # remote files may offer only read()
          block = self._file.read(size - done)
          part = len(block)
          view[done : done + part] = block
        if not part:
          raise CheckpointError(f'{self.path}: truncated at byte {start + done}')
        done += part
    return data

  def tensor(self, start: int, shape, dtype) -> Lazy:
    """The C-ordered tensor that begins at byte `start`."""
    shape, dtype = tuple(shape), np.dtype(dtype)

    def read(index):
      if not shape:
        return self.read(start, dtype.itemsize).view(dtype).reshape(())
      wanted = index_shape(index)
      row_shape = shape[1:]
      row_bytes = math.prod(row_shape) * dtype.itemsize
      whole_rows = wanted[1:] == row_shape
      out = None if whole_rows else np.empty(wanted, dtype)
      step = max(1, wanted[0] if whole_rows else CHUNK_BYTES // max(1, row_bytes))
      for row in range(index[0].start, index[0].stop, step):
        rows = min(step, index[0].stop - row)
        block = (
          self.read(start + row * row_bytes, rows * row_bytes).view(dtype).reshape(rows, *row_shape)
        )
        if whole_rows:
          return block
        at = row - index[0].start
        out[at : at + rows] = block[(slice(None), *index[1:])]
      return np.empty(wanted, dtype) if out is None else out

    return Lazy(shape, dtype, read)
