"""The Qwen2.5 decoder (docs/architecture.md 6): text and visual tokens in, final-normed hidden
states out.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tuna_jax.config import DecoderConfig, TunaConfig
from tuna_jax.models import rope
from tuna_jax.models.layers import Attention, RMSNorm, Span, SwiGLU, dense, stack
from tuna_jax.sharding import anchor


class DecoderBlock(nn.Module):
  """Pre-norm attention and SwiGLU, with residuals."""

  config: TunaConfig

  @nn.compact
  def __call__(self, x, span: Span, cache=None):
    c = self.config
    d = c.decoder
    x = checkpoint_name(anchor(x, 'hidden'), 'block_input')
    y, cache = Attention(d, c.dtype, c.attention, qkv_bias=True, closed=True, name='attn')(
      RMSNorm(d.norm_eps, name='input_norm')(x), span, cache
    )
    x = x + y
    x = x + SwiGLU(d.mlp_dim, c.dtype, closed=True, name='mlp')(
      RMSNorm(d.norm_eps, name='post_norm')(x)
    )
    return x, cache


class Decoder(nn.Module):
  """`embed` looks tokens up, `__call__` runs the layers, `logits` is the language head."""

  config: TunaConfig

  def setup(self):
    c = self.config
    d = c.decoder
    self.embedder = nn.Embed(
      d.padded_vocab,
      d.dim,
      dtype=c.dtype,
      embedding_init=nn.initializers.normal(4 * d.dim**-0.5),
      name='embed',
    )
    self.layers = stack(DecoderBlock, d.num_layers, c.remat, 'layers', config=c)
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
    hidden = anchor(
      hidden, 'hidden'
    )  # a run of positions is split over `context` like the whole sequence
    out = self.embedder.attend(hidden) if d.tied else self.lm_head(hidden)
    out = anchor(out, 'logits').astype(jnp.float32)
    if d.padded_vocab == d.vocab_size:
      return out
    return jnp.where(jnp.arange(d.padded_vocab) < d.vocab_size, out, jnp.finfo(jnp.float32).min)


def looking_back(params, config: DecoderConfig, sharpness: float = 5.0, pairs: int = 6):
  """Fresh decoder parameters whose first layer starts with heads that look 1, 2, ... tokens back.

  The query heads of the first key/value head read positions alone: a constant key, and queries that
  are the same constant turned back by the rotary angle of 1, 2, ... tokens (`pairs` fastest
  frequencies of RoPE). What goes before a word is what recall in context needs first; found by
  gradient it takes several times more tokens.
  """
  d = config.head_dim
  pairs = min(pairs, d // 2)
  back = 1.0 + jnp.arange(config.num_heads // config.num_kv_heads)[:, None]
  angle = back * rope.frequencies(d, config.rope_theta)[:pairs]
  query = jnp.zeros((len(back), d)).at[:, :pairs].set(jnp.cos(angle))
  query = query.at[:, d // 2 : d // 2 + pairs].set(-jnp.sin(angle))
  attn = dict(params['layers']['attn'])
  for name, heads, bias in (
    ('q', len(query), query),
    ('k', 1, jnp.zeros((1, d)).at[:, :pairs].set(1.0)),
  ):
    leaf = attn[f'{name}_proj']
    attn[f'{name}_proj'] = {
      'kernel': leaf['kernel'].at[0, :, : heads * d].multiply(0.1),
      'bias': leaf['bias'].at[0, : heads * d].set(sharpness * bias.reshape(-1)),
    }
  return {**params, 'layers': {**params['layers'], 'attn': attn}}
