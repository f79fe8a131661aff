"""The Qwen2.5 decoder (docs/architecture.md 6): tokens in, final-normed hidden states out."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tuna_jax.config import TunaConfig
from tuna_jax.models.layers import Attention, Embed, RMSNorm, Span, SwiGLU, dense, stack
from tuna_jax.sharding import anchor


class DecoderBlock(nn.Module):
  """Pre-norm attention and SwiGLU, with residuals."""

  config: TunaConfig

  @nn.compact
  def __call__(self, x, span: Span, cache=None):
    c = self.config
    d = c.decoder
    x = checkpoint_name(anchor(x, 'hidden'), 'block_input')
    y, cache = Attention(d, c.dtype, c.attention, qkv_bias=True, name='attn')(
      RMSNorm(d.norm_eps, name='input_norm')(x), span, cache
    )
    x = x + y
    x = x + SwiGLU(d.mlp_dim, c.dtype, name='mlp')(RMSNorm(d.norm_eps, name='post_norm')(x))
    return x, cache


class Decoder(nn.Module):
  """`embed` looks tokens up, `__call__` runs the layers, `logits` is the language head."""

  config: TunaConfig

  def setup(self):
    c = self.config
    d = c.decoder
    self.embedder = Embed(d.padded_vocab, d.dim, c.dtype, name='embed')
    self.layers = stack(DecoderBlock, d.num_layers, c.remat_of('decoder'), 'layers', config=c)
    self.norm = RMSNorm(d.norm_eps, name='norm')
    if not d.tied:
      self.lm_head = dense(d.padded_vocab, c.dtype, bias=False, name='lm_head')

  def embed(self, tokens):
    """int32[B, L] -> [B, L, D]."""
    return anchor(self.embedder(tokens), 'looked_up')

  def __call__(self, x, span: Span, cache=None):
    """x [B, L, D] -> (final-normed hidden [B, L, D], cache)."""
    x, cache = self.layers(x, span, cache)
    return self.norm(x), cache

  def logits(self, hidden):
    """[..., D] -> float32[..., padded_vocab]; columns past `vocab_size` are the lowest float."""
    d = self.config.decoder
    hidden = anchor(hidden, 'hidden')  # a chunk of positions is split over `context` too
    out = self.embedder.attend(hidden) if d.tied else self.lm_head(hidden)
    out = anchor(out, 'logits').astype(jnp.float32)
    if d.padded_vocab == d.vocab_size:
      return out
    return jnp.where(jnp.arange(d.padded_vocab) < d.vocab_size, out, jnp.finfo(jnp.float32).min)
