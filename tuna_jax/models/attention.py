"""Attention under the omni mask, one contract and several kernels.

    a query attends to a key  iff  key index <= kv_limit[query]  and  their segments are equal

Axes:  B rows   Lq queries   Lk keys   H query heads   K key/value heads (H = G K)   D head size

`kv_limit` is a key index, so cached sampling is the same call with fewer queries than keys. No
kernel builds the mask on the host, and none holds [Lq, Lk] scores of a long sequence.

  dense    plain XLA, all scores at once: what tests compare with, and few queries on accelerators
  cpu      a hand-written backward pass in [B, K, G Lq, D], where XLA's own is slow
  flash    blocks of queries and keys on GPUs (`models.flash`); blocks that nobody sees are skipped
  chunked  `dense` over runs of queries, recomputed backwards: linear memory on any platform
  splash   jax's TPU kernel with masks made at run time; blocks that nobody sees are skipped
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import PartitionSpec as P

from tuna_jax.config import UserError, nearest
from tuna_jax.models.flash import SAVED, flash_attention, pad_to
from tuna_jax.sharding import activation_spec, active_mesh

MASKED = -1e30  # score of masked keys; finite, so that a fully masked row has a gradient
CHUNK = 512  # queries that `chunked` takes at a time
CPU_WHOLE = 1024  # up to this many queries `cpu` takes all scores at once
BLOCKWISE_MIN_QUERIES = 128  # fewer take `dense` where 'flash' or 'splash' is named
# With more keys the fused backward pass holds too many partial dq (docs/tpu.md 2).
SPLASH_FUSED_KEYS = 4096
AUTO = {'cpu': 'cpu', 'gpu': 'flash', 'tpu': 'splash'}  # other platforms take 'chunked'


def attention(q, k, v, *, kv_limit, q_segment, kv_segment, impl: str = 'auto'):
  """softmax(q k^T / sqrt(D)) v over the keys each query may see; exact for every `impl`.

  Args:
    q: float[B, Lq, H, D].
    k, v: float[B, Lk, K, D]; K divides H.
    kv_limit: int32[B, Lq], the last key index each query may see.
    q_segment, kv_segment: int32[B, Lq] and [B, Lk].
    impl: 'dense', 'cpu', 'chunked', 'flash', 'splash'; 'flash_interpret' and 'splash_interpret'
      (the same kernels emulated, for tests); or 'auto': chosen by the platform of the mesh that is
      set, or jax's default.

  Returns:
    [B, Lq, H, D] in q's type. A query that may see nothing gives zeros, and no gradient.

  Raises ValueError for an unknown `impl`, K not dividing H, or H not divided by the tensor axis.
  Under a mesh a device computes its own rows, heads and queries, with keys gathered over `context`.
  """
  heads, kv_heads = q.shape[2], k.shape[2]
  if heads % kv_heads:
    raise UserError(f'attention: {kv_heads} key/value heads do not divide {heads} query heads')
  mesh = active_mesh()
  local = _kernel(impl, mesh, q.shape[1])
  args = (q, k, v, kv_limit, q_segment, kv_segment)
  if mesh is None or mesh.size == 1:
    return local(*args)
  tensor = mesh.shape['tensor']
  if heads % tensor:
    raise UserError(f'attention: a tensor axis of {tensor} does not divide {heads} heads')
  if kv_heads % tensor:  # each device needs whole heads: repeat as few times as gives them
    fits = lambda n: kv_heads * n % tensor == 0 and heads % (kv_heads * n) == 0
    repeats = next(filter(fits, range(2, heads // kv_heads + 1)))
    k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    args = (q, k, v, kv_limit, q_segment, kv_segment)
  q_spec, kv_spec = activation_spec('heads', q.shape, mesh), activation_spec('keys', k.shape, mesh)
  specs = (q_spec, kv_spec, kv_spec, P(*q_spec[:2]), P(*q_spec[:2]), P(kv_spec[0]))
  return jax.shard_map(local, in_specs=specs, out_specs=q_spec, check_vma=False)(*args)


def _kernel(impl, mesh, queries):
  """The function that `impl` names, on this platform."""
  if impl == 'auto':
    platform = jax.default_backend() if mesh is None else mesh.abstract_device.platform
    impl = AUTO.get(platform, 'chunked')
  if impl in ('flash', 'splash') and queries < BLOCKWISE_MIN_QUERIES:
    impl = 'dense'
  kernels = {
    'dense': dense,
    'cpu': cpu,
    'chunked': chunked,
    'flash': flash_attention,
    'flash_interpret': functools.partial(flash_attention, interpret=True),
    'splash': splash_attention,
    'splash_interpret': functools.partial(splash_attention, interpret=True),
  }
  if impl not in kernels:
    raise UserError(f'attention: no kernel {impl!r}{nearest(impl, kernels)}')
  return kernels[impl]


def visible(kv_limit, q_segment, kv_segment):
  """bool[B, Lq, Lk]: the mask itself."""
  key = jnp.arange(kv_segment.shape[1])
  return (key <= kv_limit[:, :, None]) & (q_segment[:, :, None] == kv_segment[:, None, :])


def dense(q, k, v, kv_limit, q_segment, kv_segment):
  """Plain XLA."""
  kv_heads = k.shape[2]
  mask = visible(kv_limit, q_segment, kv_segment)[:, None, None]  # [B, 1, 1, Lq, Lk]
  q = q.reshape(*q.shape[:2], kv_heads, -1, q.shape[3])  # [B, Lq, K, G, D]
  scores = (
    jnp.einsum('bqkgd,bskd->bkgqs', q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  )
  weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1), 0)
  out = jnp.einsum('bkgqs,bskd->bqkgd', weights.astype(v.dtype), v)
  return out.reshape(*out.shape[:2], -1, out.shape[4]).astype(q.dtype)


def chunked(q, k, v, kv_limit, q_segment, kv_segment, kernel=dense):
  """`kernel` over runs of CHUNK queries; the backward pass recomputes a run at a time."""
  length = q.shape[1]
  if length <= CHUNK:
    return kernel(q, k, v, kv_limit, q_segment, kv_segment)

  def cut(x):
    return rearrange(pad_to(x, CHUNK), 'b (n c) ... -> n b c ...', c=CHUNK)

  def run(args):
    q, kv_limit, q_segment = args
    return kernel(q, k, v, kv_limit, q_segment, kv_segment)

  out = jax.lax.map(jax.checkpoint(run), (cut(q), cut(kv_limit), cut(q_segment)))
  return rearrange(out, 'n b c ... -> b (n c) ...')[:, :length]


def cpu(q, k, v, kv_limit, q_segment, kv_segment):
  """The fast path of a CPU, in float32: 3 times XLA's own at [8, 256, 6, 32] with 2 key heads."""
  if q.shape[1] > CPU_WHOLE:
    return chunked(q, k, v, kv_limit, q_segment, kv_segment, kernel=cpu)
  mask = visible(kv_limit, q_segment, kv_segment)
  out = _cpu(*(x.astype(jnp.float32) for x in (q, k, v)), mask)
  return out.astype(q.dtype)


@jax.custom_vjp
def _cpu(q, k, v, mask):
  return _cpu_forward(q, k, v, mask)[0]


def _cpu_forward(q, k, v, mask):
  heads, kv_heads, size = q.shape[2], k.shape[2], q.shape[3]
  q = _fold(q, kv_heads) * size**-0.5  # [B, K, G Lq, D]: the heads of a group as more queries
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  scores = jnp.einsum('bkqd,bksd->bkqs', q, k)
  grouped = scores.reshape(*scores.shape[:2], heads // kv_heads, *mask.shape[1:])
  scores = jnp.where(mask[:, None, None], grouped, MASKED).reshape(scores.shape)
  top = scores.max(axis=-1)
  weights = jnp.exp(scores - top[..., None])
  ones = jnp.ones(weights.shape[-1])
  total = jnp.einsum('bkqs,s->bkq', weights, ones)  # XLA:CPU runs a reduction on one core only
  scale = jnp.where(top > MASKED / 2, 1 / total, 0)  # 0 where the query sees nothing
  out = jnp.einsum('bkqs,bksd->bkqd', weights, v) * scale[..., None]
  return _unfold(out, heads), (q, k, v, out, weights, scale)


def _cpu_backward(saved, dout):
  q, k, v, out, weights, scale = saved
  heads, size = dout.shape[2], dout.shape[3]
  # The saved weights are not normalised, so their scale is applied to dout.
  dout = _fold(dout, k.shape[1]) * scale[..., None]
  dv = jnp.einsum('bkqs,bkqd->bksd', weights, dout)
  dweights = jnp.einsum('bkqd,bksd->bkqs', dout, v)
  delta = jnp.einsum('bkqd,bkqd->bkq', out, dout)
  dscores = weights * (dweights - delta[..., None])
  dq = jnp.einsum('bkqs,bksd->bkqd', dscores, k) * size**-0.5
  dk = jnp.einsum('bkqs,bkqd->bksd', dscores, q)
  return _unfold(dq, heads), dk.swapaxes(1, 2), dv.swapaxes(1, 2), None


_cpu.defvjp(_cpu_forward, _cpu_backward)


def _fold(x, kv_heads):
  """The heads of a group as more positions: [B, L, K G, D] -> [B, K, G L, D]."""
  return rearrange(x, 'b l (k g) d -> b k (g l) d', k=kv_heads)


def _unfold(x, heads):
  """The inverse of `_fold`."""
  return rearrange(x, 'b k (g l) d -> b l (k g) d', g=heads // x.shape[1])


def splash_attention(q, k, v, kv_limit, q_segment, kv_segment, *, interpret: bool = False):
  """The TPU kernel of jax. Lengths are padded to its blocks; blocks that nobody sees are not read.

  The kernel evaluates `mask_function(q_sequence, key index)`, and `q_sequence` is an array of the
  run: with kv_limit there, its causal mask becomes the omni mask.
  """
  queries, keys = q.shape[1], k.shape[1]
  block_q, block_kv = _block(queries), _block(keys)
  seen = visible(kv_limit, q_segment, kv_segment).any(axis=-1)  # fused by XLA: no [Lq, Lk] array
  kv_limit = jnp.minimum(kv_limit, keys - 1)  # nobody sees the padding
  q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
  q, kv_limit, q_segment = (pad_to(x, block_q) for x in (q, kv_limit, q_segment))
  k, v, kv_segment = (pad_to(x, block_kv) for x in (k, v, kv_segment))
  sizes = _block_sizes(block_q, block_kv, fused=keys <= SPLASH_FUSED_KEYS)

  def row(q, k, v, kv_limit, q_segment, kv_segment):
    forward, backward = block_tables(kv_limit, q_segment, kv_segment, block_q, block_kv)
    kernel = splash.SplashAttentionKernel(
      forward,
      None if sizes.use_fused_bwd_kernel else forward,
      backward,
      block_sizes=sizes,
      is_mqa=False,
      save_residuals=False,
      mask_value=splash.DEFAULT_MASK_VALUE,
      attn_logits_soft_cap=None,
      residual_checkpoint_name=SAVED,
      mask_function=_at_most,
      interpret=interpret,
    )
    return kernel(q, k, v, segment_ids=splash.SegmentIds(q_segment, kv_segment))

  out = jax.vmap(row)(*(x.swapaxes(1, 2) for x in (q, k, v)), kv_limit, q_segment, kv_segment)
  return jnp.where(seen[..., None, None], out.swapaxes(1, 2)[:, :queries], 0)


def _at_most(limit, key):
  return key <= limit


def _block(length):
  """The kernel's block size for a sequence: large blocks, unless they need much padding."""
  if length <= 256:
    return -(-length // 128) * 128
  return min((512, 384, 256), key=lambda size: -(-length // size) * size * (1 + 64 / size))


def _block_sizes(block_q, block_kv, fused):
  return splash.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_kv_compute=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_kv_dkv_compute=block_kv,
    block_q_dq=None if fused else block_q,
    block_kv_dq=None if fused else block_kv,
    use_fused_bwd_kernel=fused,
  )


def block_tables(kv_limit, q_segment, kv_segment, block_q, block_kv):
  """MaskInfo of one row for the forward pass (keys innermost) and the backward (queries)."""
  limit, q_ids = kv_limit.reshape(-1, block_q), q_segment.reshape(-1, block_q)
  kv_ids = kv_segment.reshape(-1, block_kv)
  first_key = jnp.arange(kv_ids.shape[0]) * block_kv
  run = (
    (first_key <= limit.max(1)[:, None])
    & (kv_ids.min(1) <= q_ids.max(1)[:, None])
    & (kv_ids.max(1) >= q_ids.min(1)[:, None])
  )
  # Keep one block per query row, or the softmax denominator is 0.
  run = run.at[:, 0].set(run[:, 0] | ~run.any(axis=1))
  table = run.astype(jnp.int32)[None]
  forward = MaskInfo(_next_block(run)[None], None, table, None, kv_limit, None)
  backward = MaskInfo(_next_block(run.T).T[None], None, table, None, kv_limit, None)
  return forward, backward


def _next_block(run):
  """The column of the next true entry in reading order, which the kernel prefetches."""
  flat = run.reshape(-1)
  index = jnp.where(flat, jnp.arange(flat.size), flat.size)
  following = jax.lax.cummin(index, axis=0, reverse=True)
  following = jnp.where(following == flat.size, 0, following)
  return (following % run.shape[1]).astype(jnp.int32).reshape(run.shape)
