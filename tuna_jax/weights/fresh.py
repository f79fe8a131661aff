"""Initial values for what no part supplies, made leaf by leaf and slice by slice, so that a 7B
needs no memory.

The distributions are the model's own (a test holds them against `Tuna.init`); the draws are
numpy's, from the seed, the leaf's name, the layer and the block of rows alone: a slice is the same
however it is asked for.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from tuna_jax import tree
from tuna_jax.weights.tensors import Lazy, index_shape

ROWS = 256  # drawn together
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut at +-2


def _constant(value):
  return lambda shape, rng: np.full(shape, value, np.float32)


def _normal(std):
  return lambda shape, rng: rng.standard_normal(shape, np.float32) * np.float32(std)


def _lecun(shape, rng, *, fan_in):
  """Truncated normal of variance 1 / fan_in, as flax's default."""
  draw = rng.standard_normal(shape, np.float32)
  while (outside := np.abs(draw) > 2).any():
    draw[outside] = rng.standard_normal(int(outside.sum()), np.float32)
  return draw * np.float32(1 / (TRUNCATED_STD * math.sqrt(fan_in)))


INITIAL = (
  (r'.*/scale', _constant(1)),
  (r'.*/bias', _constant(0)),
  (r'flow_head/(layers|final)/adaln/kernel', _constant(0)),
  (r'flow_head/final/linear/kernel', _constant(0)),
  ('decoder/layers/(attn/o_proj|mlp/down_proj)/kernel', _constant(0)),
  ('vision/layers/(attn/out_proj|mlp/fc2)/kernel', _constant(0)),
  ('vision/position_embed/embedding', _normal(1.0)),
  ('patches/mask_token', lambda shape, rng: _normal(shape[-1] ** -0.5)(shape, rng)),
  ('decoder/embed/embedding', lambda shape, rng: _normal(4 * shape[-1] ** -0.5)(shape, rng)),
  (r'.*/kernel', None),  # lecun normal over the leaf's own inputs
)


def fresh(leaf: str, aval, seed: int) -> Lazy:
  """The initial value of one leaf of `Tuna` or `WanVae`: float32, lazily drawn."""
  shape = tuple(aval.shape)
  draw = tree.match(leaf, INITIAL, 'initial value')
  if draw is None:
    layer_shape = shape[1:] if '/layers/' in leaf else shape
    fan_in = math.prod(layer_shape[:-1])

    def draw(block, rng):
      return _lecun(block, rng, fan_in=fan_in)

  key = (seed, zlib.crc32(leaf.encode()))

  def rows(start, stop, rest, at):
    """Rows start..stop of one layer, cut from the blocks that hold them."""
    blocks = []
    for number in range(start // ROWS, -(-stop // ROWS)):
      first = number * ROWS
      height = min(ROWS, at[-1] - first)
      block = draw((height, *rest), np.random.Generator(np.random.Philox([*key, *at[:-1], number])))
      blocks.append(block[max(0, start - first) : stop - first])
    return np.concatenate(blocks) if blocks else np.empty((0, *rest), np.float32)

  def read(index):
    if '/layers/' not in leaf:
      if not shape:
        return draw((), np.random.default_rng(key))
      return rows(index[0].start, index[0].stop, shape[1:], (shape[0],))[(slice(None), *index[1:])]
    out = np.empty(index_shape(index), np.float32)
    for i, layer in enumerate(range(index[0].start, index[0].stop)):
      out[i] = rows(index[1].start, index[1].stop, shape[2:], (layer, shape[1]))[
        (slice(None), *index[2:])
      ]
    return out

  return Lazy(shape, np.dtype(np.float32), read)
