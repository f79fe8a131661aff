"""Blockwise attention under the omni mask for GPUs: Pallas kernels that Triton compiles.

    forward    a block of queries walks the blocks of keys that it may see; saves log-sum-exps
    backward   dq the same way; dk and dv by a block of keys that walks the queries that may see it

The kernels test `key <= kv_limit[query] and equal segments` for every pair they visit, so results
are exact for any arrays. Which blocks are visited follows from cumulative maxima and minima over
blocks (`key_blocks`, `query_blocks`): neither scores nor a table of pairs of blocks is stored.
Softmax runs in base 2. Equations: Dao, 2023, "FlashAttention-2", algorithms 1 and 2.

Axes:  B rows   Lq queries   Lk keys   H query heads   K key/value heads (H = G K)   D head size
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

MASKED = -1e30  # score of a masked pair; finite, and exp2 of its distance to any score is 0
SAVED = 'attention'  # the name of what the backward pass needs, for rematerialisation
SEES_NOTHING = 1e30  # log-sum-exp of a query without keys: its weights are 0 in the backward pass


class Blocks(NamedTuple):
  """Sizes of a kernel, powers of 2: queries and keys of a block, warps, and pipeline stages."""

  q: int
  k: int
  warps: int = 4
  stages: int = 2


# The tiles fit the shared memory of every card; others are little faster on an H200 (docs/tpu.md).
BLOCKS_16_BIT, BLOCKS_32_BIT = Blocks(64, 64), Blocks(32, 32)


def flash_attention(q, k, v, kv_limit, q_segment, kv_segment, *, blocks=None, interpret=False):
  """`models.attention.attention` for one device: [B, Lq, H, D] in q's type, differentiable.

  blocks: Blocks, or None for those of q's type. interpret: emulated on any platform, for tests.
  """
  queries, keys = q.shape[1], k.shape[1]
  blocks = blocks or (BLOCKS_16_BIT if q.dtype.itemsize == 2 else BLOCKS_32_BIT)
  kv_limit = jnp.minimum(kv_limit, keys - 1)  # nobody sees the padding of the keys
  q, kv_limit, q_segment = (pad_to(x, blocks.q) for x in (q, kv_limit, q_segment))
  k, v, kv_segment = (pad_to(x, blocks.k) for x in (k, v, kv_segment))
  mask = (kv_limit, q_segment, kv_segment)
  return _flash(q, k.astype(q.dtype), v.astype(q.dtype), mask, blocks, interpret)[:, :queries]


def pad_to(x, multiple):
  """x [B, L, ...] made longer by repeating its last position, until `multiple` divides L."""
  extra = -x.shape[1] % multiple
  return x if not extra else jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2), mode='edge')


# ---- which blocks are visited


def key_blocks(kv_limit, q_segment, kv_segment, blocks):
  """int32[B, query blocks, 2]: the first block of keys to visit, and the one after the last.

  No key outside is visible; where segments rise along the row, with 0 last, few inside are not.
  """
  first, stop = _overlap(_extremes(q_segment, blocks.q), _extremes(kv_segment, blocks.k))
  stop = jnp.minimum(stop, _cut(kv_limit, blocks.q).max(-1) // blocks.k + 1)
  return jnp.stack([jnp.minimum(first, stop), stop], axis=-1)


def query_blocks(kv_limit, q_segment, kv_segment, blocks):
  """int32[B, key blocks, 2]: the blocks of queries to visit, from and to, as in `key_blocks`."""
  first, stop = _overlap(_extremes(kv_segment, blocks.k), _extremes(q_segment, blocks.q))
  reach = lax.cummax(_cut(kv_limit, blocks.q).max(-1), axis=1)  # no query before sees further
  keys = jnp.broadcast_to(jnp.arange(0, kv_segment.shape[1], blocks.k), first.shape)
  first = jnp.maximum(first, _search(reach, keys, 'left'))
  return jnp.stack([jnp.minimum(first, stop), stop], axis=-1)


def _cut(x, block):
  return x.reshape(x.shape[0], -1, block)


def _extremes(segment, block):
  """(least, greatest) segment of every block. Padding, 0, counts as greatest: it ends a row."""
  ordered = _cut(jnp.where(segment == 0, jnp.iinfo(jnp.int32).max, segment), block)
  return ordered.min(-1), ordered.max(-1)


def _overlap(ours, theirs):
  """(first, stop): of their blocks, those outside [first, stop) share no segment with ours."""
  first = _search(lax.cummax(theirs[1], axis=1), ours[0], 'left')
  stop = _search(lax.cummin(theirs[0], axis=1, reverse=True), ours[1], 'right')
  return first, stop


def _search(rising, values, side):
  find = functools.partial(jnp.searchsorted, side=side, method='scan_unrolled')
  return jax.vmap(find)(rising, values).astype(jnp.int32)


# ---- kernels; each sees one row and one head, with D padded to a power of 2


def _load(ref, size, *index):
  """Part of an array whose last axis has `size` real entries; zeros beyond them."""
  real = jnp.arange(ref.shape[-1]) < size
  return triton.load(ref.at[(*index, slice(None))], mask=real[None], other=0.0)


def _store(ref, value, size):
  real = jnp.arange(ref.shape[-1]) < size
  triton.store(ref, value.astype(ref.dtype), mask=real[None])


def _masked(scores, key, limit, kv_segment, q_segment):
  return jnp.where((key <= limit) & (kv_segment == q_segment), scores, MASKED)


def _forward_kernel(
  q_ref, k_ref, v_ref, limit_ref, q_segment_ref, kv_segment_ref, range_ref,
  out_ref, lse_ref, *, size, block_k,
):  # fmt: skip
  rows = slice(None)
  q = _load(q_ref, size, rows)
  limit, q_segment = limit_ref[...][:, None], q_segment_ref[...][:, None]

  def visit(i, carry):
    out, top, total = carry
    at = pl.ds(i * block_k, block_k)
    scores = triton.dot(q, _load(k_ref, size, at), trans_b=True) * (size**-0.5 * math.log2(math.e))
    key = i * block_k + jnp.arange(block_k)
    scores = _masked(scores, key[None], limit, kv_segment_ref[at][None], q_segment)
    new_top = jnp.maximum(top, scores.max(-1))
    weights, shrink = jnp.exp2(scores - new_top[:, None]), jnp.exp2(top - new_top)
    v = _load(v_ref, size, at)
    out = out * shrink[:, None] + triton.dot(weights.astype(v.dtype), v)
    return out, new_top, total * shrink + weights.sum(-1)

  zeros = jnp.zeros(q.shape[0], jnp.float32)
  # `top` starts above MASKED, so that masked pairs weigh 0 even before a visible one.
  start = jnp.zeros(q.shape, jnp.float32), zeros + MASKED / 2, zeros
  out, top, total = lax.fori_loop(range_ref[0], range_ref[1], visit, start)
  safe = jnp.where(total > 0, total, 1)
  _store(out_ref, out / safe[:, None], size)
  lse_ref[...] = jnp.where(total > 0, top + jnp.log2(safe), SEES_NOTHING)


def _dq_kernel(
  q_ref, k_ref, v_ref, limit_ref, q_segment_ref, kv_segment_ref, range_ref,
  dout_ref, lse_ref, delta_ref, dq_ref, *, size, block_k,
):  # fmt: skip
  rows = slice(None)
  q, dout = _load(q_ref, size, rows), _load(dout_ref, size, rows)
  limit, q_segment = limit_ref[...][:, None], q_segment_ref[...][:, None]
  lse, delta = lse_ref[...][:, None], delta_ref[...][:, None]

  def visit(i, dq):
    at = pl.ds(i * block_k, block_k)
    k, v = _load(k_ref, size, at), _load(v_ref, size, at)
    scores = triton.dot(q, k, trans_b=True) * (size**-0.5 * math.log2(math.e))
    key = i * block_k + jnp.arange(block_k)
    scores = _masked(scores, key[None], limit, kv_segment_ref[at][None], q_segment)
    dscores = jnp.exp2(scores - lse) * (triton.dot(dout, v, trans_b=True) - delta)
    return dq + triton.dot(dscores.astype(k.dtype), k)

  dq = lax.fori_loop(range_ref[0], range_ref[1], visit, jnp.zeros(q.shape, jnp.float32))
  _store(dq_ref, dq * size**-0.5, size)


def _dkv_kernel(
  q_ref, k_ref, v_ref, limit_ref, q_segment_ref, kv_segment_ref, range_ref,
  dout_ref, lse_ref, delta_ref, dk_ref, dv_ref, *, size, block_q, group,
):  # fmt: skip
  """All query heads of one key head. Scores are [keys, queries], so that no weights are turned."""
  rows = slice(None)
  k, v = _load(k_ref, size, rows), _load(v_ref, size, rows)
  key = (pl.program_id(2) * k.shape[0] + jnp.arange(k.shape[0]))[:, None]
  kv_segment = kv_segment_ref[...][:, None]

  def head(g, carry):
    def visit(i, carry):
      dk, dv = carry
      at = pl.ds(i * block_q, block_q)
      q, dout = _load(q_ref, size, at, g), _load(dout_ref, size, at, g)
      scores = triton.dot(k, q, trans_b=True) * (size**-0.5 * math.log2(math.e))
      scores = _masked(scores, key, limit_ref[at][None], kv_segment, q_segment_ref[at][None])
      weights = jnp.exp2(scores - lse_ref[g, at][None])
      dscores = weights * (triton.dot(v, dout, trans_b=True) - delta_ref[g, at][None])
      dk = dk + triton.dot(dscores.astype(q.dtype), q)
      return dk, dv + triton.dot(weights.astype(dout.dtype), dout)

    return lax.fori_loop(range_ref[0], range_ref[1], visit, carry)

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk, dv = lax.fori_loop(0, group, head, (zeros, zeros))
  _store(dk_ref, dk * size**-0.5, size)
  _store(dv_ref, dv, size)


# ---- their calls, and the derivative


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q, k, v, mask, blocks, interpret):
  return _forward(q, k, v, mask, blocks, interpret)[0]


def _call(kernel, name, grid, blocks, interpret, **call):
  params = triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
  return pl.pallas_call(
    kernel, grid=grid, name=name, compiler_params=params, interpret=interpret, **call
  )


def _by_queries(q, k, blocks):
  """(grid, specs of q, k, v, mask and range, spec of [B, H, Lq]) of kernels that walk the keys."""
  group, wide = q.shape[2] // k.shape[2], _wide(q)
  head = pl.BlockSpec((None, blocks.q, None, wide), lambda b, h, i: (b, i, h, 0))
  keys = pl.BlockSpec((None, k.shape[1], None, wide), lambda b, h, i: (b, 0, h // group, 0))
  row = pl.BlockSpec((None, blocks.q), lambda b, h, i: (b, i))
  all_keys = pl.BlockSpec((None, k.shape[1]), lambda b, h, i: (b, 0))
  bounds = pl.BlockSpec((None, None, 2), lambda b, h, i: (b, i, 0))
  stat = pl.BlockSpec((None, None, blocks.q), lambda b, h, i: (b, h, i))
  grid = (q.shape[0], q.shape[2], q.shape[1] // blocks.q)
  return grid, [head, keys, keys, row, row, all_keys, bounds], stat


def _by_keys(q, k, blocks):
  """The same of the kernel that walks the queries."""
  group, wide, length = q.shape[2] // k.shape[2], _wide(q), q.shape[1]
  heads = pl.BlockSpec((None, length, group, wide), lambda b, h, i: (b, 0, h, 0))
  key = pl.BlockSpec((None, blocks.k, None, wide), lambda b, h, i: (b, i, h, 0))
  all_rows = pl.BlockSpec((None, length), lambda b, h, i: (b, 0))
  keys = pl.BlockSpec((None, blocks.k), lambda b, h, i: (b, i))
  bounds = pl.BlockSpec((None, None, 2), lambda b, h, i: (b, i, 0))
  stat = pl.BlockSpec((None, group, length), lambda b, h, i: (b, h, 0))
  grid = (k.shape[0], k.shape[2], k.shape[1] // blocks.k)
  return grid, [heads, key, key, all_rows, all_rows, keys, bounds], stat


def _wide(q):
  return max(16, pl.next_power_of_2(q.shape[-1]))


def _forward(q, k, v, mask, blocks, interpret):
  grid, specs, stat = _by_queries(q, k, blocks)
  stats = jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)
  kernel = functools.partial(_forward_kernel, size=q.shape[-1], block_k=blocks.k)
  out, lse = _call(
    kernel, 'omni_forward', grid, blocks, interpret,
    in_specs=specs, out_specs=[specs[0], stat], out_shape=[_like(q), stats],
  )(q, k, v, *mask, key_blocks(*mask, blocks))  # fmt: skip
  out, lse = checkpoint_name(out, SAVED), checkpoint_name(lse, SAVED)
  return out, (q, k, v, mask, out, lse)


def _backward(blocks, interpret, saved, dout):
  q, k, v, mask, out, lse = saved
  delta = jnp.einsum('bqhd,bqhd->bhq', out, dout, preferred_element_type=jnp.float32)
  grid, specs, stat = _by_queries(q, k, blocks)
  kernel = functools.partial(_dq_kernel, size=q.shape[-1], block_k=blocks.k)
  dq = _call(
    kernel, 'omni_dq', grid, blocks, interpret,
    in_specs=[*specs, specs[0], stat, stat], out_specs=specs[0], out_shape=_like(q),
  )(q, k, v, *mask, key_blocks(*mask, blocks), dout, lse, delta)  # fmt: skip
  grid, specs, stat = _by_keys(q, k, blocks)
  group = q.shape[2] // k.shape[2]
  kernel = functools.partial(_dkv_kernel, size=q.shape[-1], block_q=blocks.q, group=group)
  dk, dv = _call(
    kernel, 'omni_dkv', grid, blocks, interpret,
    in_specs=[*specs, specs[0], stat, stat], out_specs=specs[1:3], out_shape=[_like(k), _like(v)],
  )(q, k, v, *mask, query_blocks(*mask, blocks), dout, lse, delta)  # fmt: skip
  return dq, dk, dv, None


_flash.defvjp(_forward, _backward)


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
