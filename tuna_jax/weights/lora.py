"""Low-rank adapters (arXiv 2106.09685) beside kernels: x W + lora_scale x A B, W frozen.

    X/kernel       [..., in, out]   of the model; not changed by training
    X/lora_a       [..., in, rank]  random at first, as PEFT draws it
    X/lora_b       [..., rank, out] zero at first, so that a new adapter changes nothing
    X/lora_scale   [...]            alpha / rank; never trains

`...` is the axis of scanned layers, where there is one. A row of adapters is (pattern of kernel
names, rank, alpha); the first match wins, and kernels without one get none. Merged, W + lora_scale
A B takes the place of W, and the model is as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from tuna_jax import tree
from tuna_jax.config import UserError, nearest
from tuna_jax.weights.fresh import fresh
from tuna_jax.weights.tensors import Lazy, index_shape, lazies

PARTS = ('lora_a', 'lora_b', 'lora_scale')
Rows = Sequence[tuple[str, int, float]]


def is_adapter(leaf: str) -> bool:
  """Whether the name is that of a leaf of an adapter."""
  return leaf.rpartition('/')[2] in PARTS


def extend(shapes, rows: Rows):
  """The tree of shapes with the adapters of `rows` beside their kernels.

  Raises UserError where a row selects no kernel, or asks for more than a kernel's own rank.
  """
  found, used = tree.flatten(shapes), set()
  for leaf, aval in list(found.items()):
    row = next((n for n, r in enumerate(rows) if re.fullmatch(r[0], leaf)), None)
    if row is None or not leaf.endswith('/kernel'):
      continue
    used.add(row)
    module, rank = leaf.removesuffix('kernel'), rows[row][1]
    *stack, inputs, outputs = aval.shape
    if rank > min(inputs, outputs):
      raise UserError(f'lora: rank {rank} of {leaf}: expected at most {min(inputs, outputs)}')
    sizes = ((*stack, inputs, rank), (*stack, rank, outputs), tuple(stack))
    for part, shape in zip(PARTS, sizes):
      found[module + part] = jax.ShapeDtypeStruct(shape, np.float32)
  if unused := [row[0] for n, row in enumerate(rows) if n not in used]:
    kernels = [leaf for leaf in found if leaf.endswith('/kernel')]
    raise UserError(f'lora: {unused[0]!r} selects no kernel{nearest(unused[0], kernels)}')
  return tree.unflatten(found)


def added(leaves: Mapping[str, Lazy], wanted: Mapping, rows: Rows, seed: int) -> dict[str, Lazy]:
  """`leaves`, with the adapters that `wanted` names and they lack at their first values."""
  out = dict(leaves)
  for leaf, aval in wanted.items():
    if leaf in out or not is_adapter(leaf):
      continue
    if leaf.endswith('lora_scale'):
      kernel = leaf.replace('lora_scale', 'kernel')
      _, rank, alpha = next(row for row in rows if re.fullmatch(row[0], kernel))
      value = np.full(aval.shape, alpha / rank, np.float32)
      out |= lazies({leaf: value})
    else:
      out[leaf] = fresh(leaf, aval, seed)
  return out


def merged(leaves: Mapping[str, Lazy]) -> dict[str, Lazy]:
  """The model's own leaves, with every adapter added to its kernel, in float32."""
  return {
    leaf: _merged(value, *(leaves[leaf.removesuffix('kernel') + part] for part in PARTS))
    if leaf.endswith('/kernel') and leaf.removesuffix('kernel') + 'lora_a' in leaves
    else value
    for leaf, value in leaves.items()
    if not is_adapter(leaf)
  }


def _merged(kernel: Lazy, a: Lazy, b: Lazy, scale: Lazy) -> Lazy:
  whole = slice(0, a.shape[-1])

  def read(index):
    *stack, inputs, outputs = index
    out = kernel.read(index).astype(np.float32)
    factors = scale.read(tuple(stack)).astype(np.float32)[..., None, None]
    left = a.read((*stack, inputs, whole)).astype(np.float32) * factors
    out += left @ b.read((*stack, whole, outputs)).astype(np.float32)
    return out.reshape(index_shape(index))

  return Lazy(kernel.shape, np.dtype(np.float32), read)
