"""What may differ between a tensor of somebody else's and a leaf of ours, beyond the order of axes.

  Exact            nothing
  Units(n)         torch keeps n trailing axes of size 1
  PadRows(real)    vocabulary: rows past `real` are not carried; ours are zero
  ResampleGrid     a square position table of another size is resized
  Window(side)     torch keeps a patch of cells as a convolution
  FrontUnits       torch keeps two leading axes of size 1
  FreshUnlessEqual the leaf is initialised by `weights.fresh` unless the tensor has our shape

Shapes here are in torch's order of axes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tuna_jax.models.vision import cubic_weights
from tuna_jax.weights.tensors import Lazy, index_shape


class Misfit(Exception):
  """A tensor's shape does not suit its leaf."""


@dataclasses.dataclass(frozen=True)
class Exact:
  """The shapes are equal."""

  def to_ours(self, value: Lazy, shape) -> tuple[Lazy | None, str]:
    """`value` at `shape`, and a note on what was changed. None: the leaf must be fresh."""
    if value.shape != tuple(shape):
      raise Misfit(f'found {list(value.shape)}, wanted {list(shape)}')
    return value, ''

  def to_torch(self, value: Lazy) -> Lazy:
    """What `to_ours` would accept to give `value`."""
    return value


@dataclasses.dataclass(frozen=True)
class Units(Exact):
  """Norm gains [C, 1, 1, 1], pointwise convolutions [out, in, 1, 1]: `count` axes of size 1."""

  count: int

  def to_ours(self, value, shape):
    super().to_ours(value, (*shape, *(1,) * self.count))
    unit = (slice(0, 1),) * self.count
    read = lambda index: value.read((*index, *unit)).reshape(index_shape(index))  # noqa: E731
    return Lazy(tuple(shape), value.dtype, read), ''

  def to_torch(self, value):
    rank = len(value.shape)
    read = lambda index: value.read(index[:rank]).reshape(index_shape(index))  # noqa: E731
    return Lazy((*value.shape, *(1,) * self.count), value.dtype, read)


@dataclasses.dataclass(frozen=True)
class PadRows(Exact):
  """Both sides pad the vocabulary differently: the first `real` rows are carried."""

  real: int

  def to_ours(self, value, shape):
    if value.shape[1:] != tuple(shape[1:]) or value.shape[0] < self.real:
      wanted = [self.real, *shape[1:]]
      raise Misfit(f'found {list(value.shape)}, wanted at least {wanted}')

    def read(index):
      rows, *rest = index
      stop = max(rows.start, min(rows.stop, self.real))
      out = np.zeros(index_shape(index), value.dtype)
      if stop > rows.start:
        out[: stop - rows.start] = value.read((slice(rows.start, stop), *rest))
      return out

    extra = value.shape[0] - self.real
    note = f'dropped {extra} rows from {self.real} on' if extra else ''
    return Lazy(tuple(shape), value.dtype, read), note

  def to_torch(self, value):
    return Lazy((self.real, *value.shape[1:]), value.dtype, value.read)


@dataclasses.dataclass(frozen=True)
class ResampleGrid(Exact):
  """A learned table over a square grid of another side: bicubic with a = -0.75, as the tower itself
  resizes."""

  def to_ours(self, value, shape):
    if value.shape == tuple(shape):
      return value, ''
    old, new = math.isqrt(value.shape[0]), math.isqrt(shape[0])
    if value.shape != (old * old, shape[1]) or shape[0] != new * new:
      raise Misfit(
        f'found {list(value.shape)}, wanted {list(shape)} or another square grid of that width'
      )

    def read(index):
      table = value[()].astype(np.float64).reshape(old, old, -1)
      weight = np.asarray(cubic_weights(np.arange(new), np.asarray(new), old), np.float64)
      resized = np.einsum('ai,bj,ijd->abd', weight, weight, table).reshape(shape)
      return resized[index].astype(np.float32)

    note = f'resampled from {old}x{old} to {new}x{new}'
    return Lazy(tuple(shape), np.dtype(np.float32), read), note


@dataclasses.dataclass(frozen=True)
class Window(Exact):
  """Torch keeps a patch of `side` x `side` cells as [out, c, row, column], ours is the matrix
  [out, (row, column, c)]."""

  side: int

  def to_ours(self, value, shape):
    super().to_ours(value, (shape[0], shape[1] // self.side**2, self.side, self.side))

    def read(index):
      block = value[index[0]].transpose(0, 2, 3, 1)
      return block.reshape(len(block), -1)[:, index[1]]

    return Lazy(tuple(shape), value.dtype, read), ''

  def to_torch(self, value):
    out, size = value.shape
    shape = (out, self.side, self.side, size // self.side**2)

    def read(index):
      block = value[index[0]].reshape(-1, *shape[1:]).transpose(0, 3, 1, 2)
      return block[(slice(None), *index[1:])]

    return Lazy((out, shape[3], self.side, self.side), value.dtype, read)


@dataclasses.dataclass(frozen=True)
class FrontUnits(Exact):
  """The mask token is [1, 1, D] in torch."""

  def to_ours(self, value, shape):
    super().to_ours(value, (1, 1, *shape))
    ones = (slice(0, 1),) * 2
    read = lambda index: value.read((*ones, *index)).reshape(index_shape(index))  # noqa: E731
    return Lazy(tuple(shape), value.dtype, read), ''

  def to_torch(self, value):
    read = lambda index: value.read(index[2:]).reshape(index_shape(index))  # noqa: E731
    return Lazy((1, 1, *value.shape), value.dtype, read)


@dataclasses.dataclass(frozen=True)
class FreshUnlessEqual(Exact):
  """SigLIP's patch embedding sees 16x16 RGB and ours one latent cell. If one leaf of a module is
  fresh, its other leaves of this kind are fresh too."""

  equal: Exact

  def to_ours(self, value, shape):
    try:
      return self.equal.to_ours(value, shape)
    except Misfit as misfit:
      return None, str(misfit)

  def to_torch(self, value):
    return self.equal.to_torch(value)
