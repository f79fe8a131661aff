"""Building blocks shared by the towers. Leaf names are the checkpoint's.

Axes:  B rows   L positions   D width   H heads   K key/value heads   d head size   F MLP width
Parameters are float32, matrix products run in `dtype`, norms and modulation in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from tuna_jax.config import TowerConfig
from tuna_jax.models import rope
from tuna_jax.models.attention import attention
from tuna_jax.models.flash import SAVED
from tuna_jax.sharding import anchor


class Span(NamedTuple):
  """What attention needs to know about a sequence; the same for every layer of a tower."""

  rotary: rope.Rotary | None  # tables of the queries and of their own keys
  kv_limit: jax.Array  # int32[B, L], as in `Batch`
  segment: jax.Array  # int32[B, L], as in `Batch`
  kv_segment: jax.Array  # int32[B, Lk] of all keys, those of the cache included
  index: jax.Array | None = None  # where the new keys go in the cache


# Modules declare shapes; the initial value of every parameter is in `weights.fresh`.
SHAPE_ONLY = nn.initializers.zeros_init()


class Dense(nn.Module):
  """x kernel + bias, in `dtype` (None: that of x and kernel). What stands beside the kernel in the
  parameters takes part: `kernel_scale` float32[out] of a kernel in int8, and the low-rank adapter
  `lora_scale` x lora_a lora_b (weights/lora.py).
  """

  features: int
  dtype: str | None
  bias: bool

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', SHAPE_ONLY, (x.shape[-1], self.features))
    dtype = self.dtype or jnp.result_type(x, kernel)
    x = x.astype(dtype)
    y = x @ kernel.astype(dtype)
    if self.has_variable('params', 'kernel_scale'):
      y = y * self.get_variable('params', 'kernel_scale').astype(dtype)
    if self.has_variable('params', 'lora_a'):
      a, b, scale = (
        self.get_variable('params', f'lora_{name}').astype(dtype) for name in ('a', 'b', 'scale')
      )
      y = y + x @ a @ b * scale
    if not self.bias:
      return y
    return y + self.param('bias', SHAPE_ONLY, (self.features,)).astype(dtype)


def dense(features: int, dtype, *, bias: bool = True, name: str | None = None) -> Dense:
  """A linear layer."""
  return Dense(features, dtype, bias, name=name)


class Embed(nn.Module):
  """A table of [rows, width]; `embedding_scale` float32[rows] stands beside one in int8."""

  rows: int
  width: int
  dtype: str

  def setup(self):
    self.embedding = self.param('embedding', SHAPE_ONLY, (self.rows, self.width))

  def __call__(self, index):
    """int32[...] -> [..., width]."""
    x = jnp.take(self.embedding.astype(self.dtype), index, axis=0)
    return x if (scale := self._scale()) is None else x * jnp.take(scale, index)[..., None]

  def attend(self, x):
    """[..., width] -> [..., rows], the product with every row."""
    y = x.astype(self.dtype) @ self.embedding.astype(self.dtype).T
    return y if (scale := self._scale()) is None else y * scale

  def _scale(self):
    if self.has_variable('params', 'embedding_scale'):
      return self.get_variable('params', 'embedding_scale').astype(self.dtype)
    return None


class RMSNorm(nn.Module):
  """g * x / rms(x); statistics in float32, cast back to the type of x before the gain."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', SHAPE_ONLY, (x.shape[-1],))
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
    return x32.astype(x.dtype) * scale.astype(x.dtype)


def modulate(x, shift, scale):
  """x * (1 + scale) + shift in float32, in the type of x."""
  return (
    x.astype(jnp.float32) * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)
  ).astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention under the omni mask; optional qk-norm, rotary tables and cache."""

  config: TowerConfig
  dtype: str
  impl: str
  qkv_bias: bool
  k_bias: bool = True  # where q and v have one
  out_bias: bool = False
  out_name: str = 'o_proj'
  qk_norm_eps: float | None = None

  @nn.compact
  def __call__(self, x, span: Span, cache=None):
    """x [B, L, D], cache (keys, values) each [B, Lk, K, d] or None -> (y [B, L, D], new cache)."""
    c = self.config
    q = dense(c.num_heads * c.head_dim, self.dtype, bias=self.qkv_bias, name='q_proj')(x)
    k_bias = self.qkv_bias and self.k_bias
    k = dense(c.num_kv_heads * c.head_dim, self.dtype, bias=k_bias, name='k_proj')(x)
    v = dense(c.num_kv_heads * c.head_dim, self.dtype, bias=self.qkv_bias, name='v_proj')(x)
    q, k, v = (
      checkpoint_name(anchor(rearrange(a, 'b l (h d) -> b l h d', d=c.head_dim), 'heads'), NARROW)
      for a in (q, k, v)
    )
    if self.qk_norm_eps is not None:
      q = RMSNorm(self.qk_norm_eps, name='q_norm')(q)
      k = RMSNorm(self.qk_norm_eps, name='k_norm')(k)
    if span.rotary is not None:
      q, k = rope.rotate(q, span.rotary), rope.rotate(k, span.rotary)
    if cache is not None:
      k, v = (
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), span.index, axis=1)
        for old, new in zip(cache, (k, v))
      )
      cache = (k, v)
    masks = dict(kv_limit=span.kv_limit, q_segment=span.segment, kv_segment=span.kv_segment)
    with jax.named_scope('scores'):  # profiles name the other parts by their modules
      y = attention(q, k, v, impl=self.impl, **masks)
    y = rearrange(y, 'b l h d -> b l (h d)')
    y = dense(x.shape[-1], self.dtype, bias=self.out_bias, name=self.out_name)(y)
    return checkpoint_name(y, NARROW), cache


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x))."""

  mlp_dim: int
  dtype: str
  bias: bool = False

  @nn.compact
  def __call__(self, x):
    gate = dense(self.mlp_dim, self.dtype, bias=self.bias, name='gate_proj')(x)
    up = dense(self.mlp_dim, self.dtype, bias=self.bias, name='up_proj')(x)
    y = anchor(nn.silu(gate) * up, 'mlp')
    return dense(x.shape[-1], self.dtype, bias=self.bias, name='down_proj')(y)


class Mlp(nn.Module):
  """fc2(gelu(fc1(x))); `approximate` is the tanh form."""

  mlp_dim: int
  out_dim: int
  dtype: str
  approximate: bool

  @nn.compact
  def __call__(self, x):
    y = nn.gelu(dense(self.mlp_dim, self.dtype, name='fc1')(x), approximate=self.approximate)
    return dense(self.out_dim, self.dtype, name='fc2')(anchor(y, 'mlp'))


NARROW = 'narrow'  # of attention's projections, whose width is the tower's
_only = jax.checkpoint_policies.save_only_these_names
_POLICIES = {
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _only(SAVED)
  ),
  'narrow': _only(SAVED, NARROW),
  'attention': _only(SAVED),
  'block': jax.checkpoint_policies.nothing_saveable,
  'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=['block_input'],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


def stack(block: type[nn.Module], length: int, remat: str, name: str, **attributes):
  """`length` blocks, scanned under one name and rematerialised; a block maps (x, what all layers
  share, its layer of the cache) to (x, its layer of the cache).
  """
  if remat != 'none':
    block = nn.remat(block, policy=_POLICIES[remat], prevent_cse=False)
  scanned = nn.scan(
    block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=(nn.broadcast, 0),
    length=length,
  )
  return scanned(name=name, **attributes)
