"""The flow-matching head: hidden states in, velocity out (docs/architecture.md 7).

Axes:  B rows   L positions   V latent tokens   M images per row   D width   C latent channels
The time embedding of an image modulates the tokens of its span; other tokens are not modulated, and
their gate is 1.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tuna_jax.config import TunaConfig
from tuna_jax.models.layers import Attention, Mlp, RMSNorm, Span, SwiGLU, dense, modulate, stack
from tuna_jax.sharding import anchor

QK_NORM_EPS = 1e-6
FINAL_NORM_EPS = 1e-6


def per_token(modulation, owner):
  """modulation [B, M, n], owner int[B, L] -> [B, L, n]; zeros where there is no such owner.

  A product with one-hot rows is as exact as a gather, and its gradient is a sum in float32. That of
  a gather adds thousands of tokens to a few rows in the type of `modulation`, one by one.
  """
  rows = jax.nn.one_hot(owner, modulation.shape[1], dtype=modulation.dtype)
  return jnp.einsum('blm,bmn->bln', rows, modulation, precision='highest')


class FlowBlock(nn.Module):
  """adaLN-Zero block; (shift, scale, gate) for attention, then for the MLP."""

  config: TunaConfig

  @nn.compact
  def __call__(self, x, shared, cache=None):
    """shared: (span, time [B, M, D], owner int[B, L], in_span bool[B, L])."""
    span, time, owner, in_span = shared
    c = self.config
    f = c.flow_head
    x = checkpoint_name(anchor(x, 'hidden'), 'block_input')
    modulation = anchor(dense(6 * f.dim, c.dtype, name='adaln')(nn.silu(time)), 'images')
    modulation = per_token(modulation, jnp.where(in_span, owner, -1))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
    plain = (~in_span[..., None]).astype(modulation.dtype)  # the gate where there is no modulation
    y = modulate(RMSNorm(f.norm_eps, name='input_norm')(x), shift1, scale1)
    y, cache = Attention(
      f, c.dtype, c.attention, qkv_bias=False, qk_norm_eps=QK_NORM_EPS, name='attn'
    )(y, span, cache)
    x = x + (gate1 + plain) * y
    y = modulate(RMSNorm(f.norm_eps, name='post_norm')(x), shift2, scale2)
    return x + (gate2 + plain) * SwiGLU(f.mlp_dim, c.dtype, name='mlp')(y), cache


class FinalLayer(nn.Module):
  """Modulated norm and the linear map to latent channels, at visual tokens only."""

  config: TunaConfig

  @nn.compact
  def __call__(self, x, time, owner):
    """x [B, V, D], time [B, M, D], owner int[B, V] -> [B, V, C]."""
    c = self.config
    modulation = anchor(dense(2 * c.flow_head.dim, c.dtype, name='adaln')(nn.silu(time)), 'images')
    shift, scale = jnp.split(per_token(modulation, owner), 2, axis=-1)
    y = modulate(RMSNorm(FINAL_NORM_EPS, name='norm')(x), shift, scale)
    return dense(c.drawn_dim, c.dtype, name='linear')(y)


class FlowHead(nn.Module):
  """Blocks over the whole sequence, then the final layer where latent tokens are."""

  config: TunaConfig

  def setup(self):
    c = self.config
    self.layers = stack(
      FlowBlock, c.flow_head.num_layers, c.remat_of('flow_head'), 'layers', config=c
    )
    self.final = FinalLayer(c, name='final')
    if c.flow_head.dim != c.decoder.dim:
      width = c.flow_head.dim
      self.bridge = Mlp(width, width, c.dtype, approximate=False, name='bridge')

  def __call__(self, hidden, span: Span, time, owner, in_span, place, image, cache=None):
    """hidden [B, L, D], time [B, M, D], place and image int[B, V] -> (float32[B, V, C], cache)."""
    c = self.config
    x = hidden if c.flow_head.dim == c.decoder.dim else self.bridge(hidden)
    x, cache = self.layers(x, (span, time, owner, in_span), cache)
    visual = anchor(jnp.take_along_axis(x, place[..., None], axis=1), 'visual')
    return self.final(visual, time, jnp.maximum(image - 1, 0)).astype(jnp.float32), cache
