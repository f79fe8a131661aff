"""How parameters are held where they do not train: float32, bfloat16 or int8.

In int8, a kernel [..., in, out] has one scale for each output, `kernel_scale` float32[..., out],
and an embedding [rows, width] one for each row: value = scale x integer, the largest of a column
or row being 127. Matrix products read integers and multiply what comes out (`models.layers`), so
that a quarter of float32's bytes, and no copy in another type, is all that a device holds. Norms,
biases and what is not a matrix of a tower are bfloat16 then.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import tree
from tuna_jax.config import UserError, nearest
from tuna_jax.weights import digest
from tuna_jax.weights.tensors import Damaged, Lazy, index_shape

DTYPES = ('float32', 'bfloat16', 'int8')
INT8 = re.compile(
  r'(vision|decoder|flow_head)/layers/.*/kernel|decoder/(embed/embedding|lm_head/kernel)'
)
MOST = 127  # of an integer
SMALLEST = 1e-30  # scale, of numbers that are all zero
# XLA for CPUs slices no bfloat16, and so makes a whole stack of layers float32 ahead of the loop
# over them. Without this pass, one layer at a time.
LAYERWISE = {'xla_disable_hlo_passes': 'while-loop-invariant-code-motion'}


def held(shapes, dtype: str, but: Collection[str] = ()):
  """The tree of shapes as `dtype` holds it; leaves named in `but` stay as they are."""
  if dtype not in DTYPES:
    raise UserError(f'dtype {dtype!r}: expected one of {", ".join(DTYPES)}{nearest(dtype, DTYPES)}')
  found = {}
  for leaf, aval in tree.flatten(shapes).items():
    kind = aval.dtype
    if leaf not in but and dtype == 'int8' and INT8.fullmatch(leaf):
      kind = jnp.int8
      shape = _per_scale(leaf, aval.shape)
      found[f'{leaf}_scale'] = jax.ShapeDtypeStruct(shape, jnp.float32)
    elif leaf not in but and dtype != 'float32':
      kind = jnp.bfloat16
    found[leaf] = jax.ShapeDtypeStruct(aval.shape, kind)
  return tree.unflatten(found)


def fitted(leaves: Mapping[str, Lazy], wanted: Mapping) -> dict[str, Lazy]:
  """`leaves` of the model's own types, with those that `wanted` has in int8 as integers and
  scales."""
  out = dict(leaves)
  for leaf, aval in wanted.items():
    if aval.dtype == jnp.int8 and leaf in leaves and leaves[leaf].dtype != np.int8:
      out[leaf], out[f'{leaf}_scale'] = _quantized(leaf, leaves[leaf])
  return out


def program(**options):
  """A decorator: jax.jit(function, **options) of a function whose first argument is parameters. On
  a CPU, layers that are held in bfloat16 become float32 one at a time."""

  def decorate(function):
    usual = jax.jit(function, **options)
    layerwise = jax.jit(function, compiler_options=LAYERWISE, **options)

    @functools.wraps(usual)
    def call(params, *args, **named):
      held = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
      return (layerwise if held and jax.default_backend() == 'cpu' else usual)(
        params, *args, **named
      )

    call.lower, call._cache_size = usual.lower, usual._cache_size
    return call

  return decorate


def _axis(leaf: str) -> int:
  """The axis of numbers that share a scale."""
  return -2 if leaf.endswith('kernel') else -1


def _per_scale(leaf: str, shape) -> tuple[int, ...]:
  """The shape of the scales of a leaf of `shape`."""
  gone = len(shape) + _axis(leaf)
  return (*shape[:gone], *shape[gone + 1 :])


def _quantized(leaf: str, value: Lazy) -> tuple[Lazy, Lazy]:
  """(integers, scales). Matrices are read whole, one at a time, and once where slices are asked for
  layer by layer; when all have been, they are compared with the digest, if there is one."""
  axis, stacked = _axis(leaf), len(value.shape) > 2
  count = value.shape[0] if stacked else 1
  running, lock, known = digest.Running(value.shape), threading.Lock(), {}

  @functools.lru_cache(maxsize=1)
  def matrix(layer: int) -> np.ndarray:
    read = value[layer : layer + 1] if stacked else value[()]
    if layer not in known:
      running.add((layer, 0, 0) if stacked else (0, 0), read)
    full = read.reshape(read.shape[-2:]).astype(np.float32)
    known[layer] = np.maximum(np.abs(full).max(axis) / MOST, SMALLEST)
    if value.digest and len(known) == count and running.hex() != value.digest:
      raise Damaged(f'{value.folder} is damaged: {leaf} is not what was saved')
    return np.rint(full / np.expand_dims(known[layer], axis)).astype(np.int8)

  def scales_of(layer: int) -> np.ndarray:
    if layer not in known:
      matrix(layer)
    return known[layer]

  def read(index, part: Callable[[int], np.ndarray], dtype):
    out = np.empty(index_shape(index), dtype)
    if not stacked:
      out[...] = part(0)[index]
      return out
    for at, layer in enumerate(range(index[0].start, index[0].stop)):
      out[at] = part(layer)[index[1:]]
    return out

  def locked(part, dtype):
    def reading(index):
      with lock:
        return read(index, part, np.dtype(dtype))

    return reading

  return (
    Lazy(value.shape, np.dtype(np.int8), locked(matrix, np.int8)),
    Lazy(_per_scale(leaf, value.shape), np.dtype(np.float32), locked(scales_of, np.float32)),
  )
