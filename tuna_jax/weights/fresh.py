"""The initial value of every parameter: one table from names to distributions.

Modules declare shapes only. Values are drawn by numpy in blocks, from the seed, the leaf's name and
the block's place alone: a slice is the same however it is asked for, and a 7B model needs no more
memory than the slices it reads.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from tuna_jax import tree
from tuna_jax.weights.convert import place
from tuna_jax.weights.tensors import Lazy, index_shape

FLOAT32 = np.dtype(np.float32)
BLOCK = 512  # rows and columns that are drawn together
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut at +-2


# A draw gives a block of the matrices that a leaf's last two axes are. shape: of the leaf without
# its layer axis. at: the matrix's index in it. block: the ranges of rows and of columns.


def _normal(std: Callable):
  def draw(shape, at, block, rng):
    return rng.standard_normal([len(axis) for axis in block], np.float32) * np.float32(std(shape))

  return draw


def _lecun(shape, at, block, rng):
  """Truncated normal of variance 1 / (number of inputs)."""
  draw = rng.standard_normal([len(axis) for axis in block], np.float32)
  while (outside := np.abs(draw) > 2).any():
    draw[outside] = rng.standard_normal(int(outside.sum()), np.float32)
  return draw * np.float32(1 / (TRUNCATED_STD * math.sqrt(math.prod(shape[:-1]))))


def _current_frame(shape, at, block, rng):
  """Only the current-frame tap of a convolution over space and time is not zero."""
  draw = _lecun(shape[1:], at[1:], block, rng)
  return draw * (at[0] == shape[0] - 1)


def _copy_frame(shape, at, block, rng):
  """A convolution over time that copies the current frame into each of its outputs."""
  rows, columns = block
  return np.equal.outer(rows, np.array(columns) % shape[-2]) * (at[0] == shape[0] - 1)


INITIAL = (
  ('.*/lora_a', _normal(lambda shape: (3 * shape[-2]) ** -0.5)),
  ('.*/lora_b', 0.0),
  ('.*/scale', 1.0),
  ('.*/bias', 0.0),
  # At first residual blocks add nothing, and the flow head modulates nothing and predicts zero.
  ('flow_head/(layers|final)/adaln/kernel|flow_head/final/linear/kernel', 0.0),
  ('decoder/layers/(attn/o_proj|mlp/down_proj)/kernel', 0.0),
  ('vision/layers/(attn/out_proj|mlp/(fc2|down_proj))/kernel', 0.0),
  ('vision/layers/layer_scale[12]', 1.0),
  ('vision/(cls_token|register_tokens)', _normal(lambda shape: 0.02)),
  ('vision/position_embed/embedding', _normal(lambda shape: 1.0)),
  ('patches/mask_token', _normal(lambda shape: shape[-1] ** -0.5)),
  ('decoder/embed/embedding', _normal(lambda shape: 4 * shape[-1] ** -0.5)),
  # At first the VAE treats each frame by itself, and its residual blocks add nothing.
  ('(encoder|decoder)/.*/conv2/kernel', 0.0),
  ('(encoder|decoder)/(.*/conv1|conv_in|conv_out)/kernel', _current_frame),
  ('.*/time_conv/kernel', _copy_frame),
  ('.*/kernel', _lecun),
)


def init(abstract, seed: int, shardings=None, change: Callable[[dict], Mapping] | None = None):
  """Fresh parameters of `Tuna` or `WanVae` on devices, a tree like `abstract`.

  change: a function from {leaf name: Lazy} to the same names; a recipe's own initial values.
  """
  leaves = {leaf: fresh(leaf, aval, seed) for leaf, aval in tree.flatten(abstract).items()}
  return place(change(leaves) if change else leaves, abstract, shardings)


def fresh(leaf: str, aval, seed: int) -> Lazy:
  """The initial value of one leaf: float32, lazily drawn. Raises ValueError for an unknown name."""
  shape = tuple(aval.shape)
  draw = tree.match(leaf, INITIAL, 'initial value')
  if not callable(draw):
    return Lazy(shape, FLOAT32, lambda index: np.full(index_shape(index), draw, FLOAT32))
  stacked = int('/layers/' in leaf)  # layers are drawn one by one
  axes = (1, *shape)[-max(2, len(shape)) :]  # a vector is a matrix of one row

  def drawn(*at):
    """One block; `at` are the indices of its matrix in the leaf, then its own in the matrix."""
    rng = np.random.Generator(np.random.Philox([seed, zlib.crc32(leaf.encode()), *at]))
    block = [range(n)[b * BLOCK : (b + 1) * BLOCK] for b, n in zip(at[-2:], axes[-2:])]
    return draw(axes[stacked:], at[stacked:-2], block, rng)

  def read(index):
    out = np.empty(index_shape(index), FLOAT32)
    *others, rows, columns = (range(s.start, s.stop) for s in (slice(0, 1), *index)[-len(axes) :])

    def fill(matrix, at):
      top, left = rows[0] // BLOCK, columns[0] // BLOCK
      down, across = range(top, rows[-1] // BLOCK + 1), range(left, columns[-1] // BLOCK + 1)
      whole = np.block([[drawn(*at, r, c) for c in across] for r in down])
      corner = whole[rows[0] - top * BLOCK :, columns[0] - left * BLOCK :]
      matrix[:] = corner[: len(rows), : len(columns)]

    if out.size:
      with concurrent.futures.ThreadPoolExecutor() as pool:
        matrices = out.reshape(-1, len(rows), len(columns))
        list(pool.map(fill, matrices, itertools.product(*others)))
    return out

  return Lazy(shape, FLOAT32, read)
