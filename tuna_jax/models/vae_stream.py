"""The VAE's decoder a latent frame at a time: exact, and no buffer grows with the clip.

    latent frame 0  -> 1 picture         carry: the last two input frames of every convolution over time
    latent frame i  -> 4 pictures        (2 levels double the frames); zeros before the clip

The same parameters and numbers as `vae.VaeDecoder` in one pass; docs/architecture.md 2.4 says why.
Frame 0 passes the doubling convolutions untouched and is not seen by them, so it is a program of its own;
all others are one more.

Axes:  B clips   T latent frames   h, w, C as in `vae.py`
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from tuna_jax.config import VaeConfig
from tuna_jax.models import vae
from tuna_jax.sharding import anchor

PAST = 2  # frames before its own that a convolution over time sees


class _History:
  """The pasts of all convolutions over time, in the order they run."""

  def __init__(self, carry):
    self._old, self.new = carry, []

  def window(self, x):
    """[its last two frames; x], and x's last two are remembered. x [B, F, ...]."""
    past = self._old[len(self.new)] if self._old is not None else _zeros(x)
    window = jnp.concatenate([past, x], axis=1)
    self.new.append(window[:, -PAST:])
    return window

  def unseen(self, x):
    """Remembers zeros: the convolution does not see x."""
    self.new.append(_zeros(x))


def _zeros(x):
  return jnp.zeros((x.shape[0], PAST, *x.shape[2:]), x.dtype)


def decode_frame(config: VaeConfig, params, latents, carry=None):
  """(pixels, carry) of one latent frame.

  Args:
    params: of `WanVae`.
    latents: normalised, [B, 1, h, w, C].
    carry: what the frame before returned; None for the first.

  Returns:
    float[B, 1 or 4, 16 h, 16 w, 3], not clamped: 1 for the first frame, else the temporal stride;
    and the new carry.
  """
  x = _linear(params['post_quant'], vae.denormalize(config, latents))
  history, first = _History(carry), carry is None
  p = params['decoder']
  x = _causal(p['conv_in'], x, history)
  x = _residual(p['middle']['block_0'], x, history)
  x = vae.AttnBlock().apply({'params': p['middle']['attn']}, x)
  x = _residual(p['middle']['block_1'], x, history)
  last = len(config.dim_mult) - 1
  for i in range(len(config.dim_mult)):
    level, temporal = p[f'level_{i}'], i < last and config.temporal_down[::-1][i]
    y = x
    for n in range(config.decoder_blocks):
      y = _residual(level[f'block_{n}'], y, history)
    if i < last:
      y = _up(level['up'], y, history, temporal, first) + _dup_up(x, y.shape[-1], temporal, first)
    x = y
  x = _causal(p['conv_out'], _activate(p['norm_out'], x), history)
  return vae.unpatchify(x), tuple(history.new)


def decode_stream(config: VaeConfig, params, latents) -> Iterator:
  """Pixels of a clip, as they come: uint8[B, 1, 16 h, 16 w, 3], then [B, 4, ...] a latent frame.

  latents: normalised, [B, T, h, w, C]. Two programs are compiled, whatever T is.
  """
  carry = None
  for i in range(latents.shape[1]):
    pixels, carry = _step(params, latents[:, i : i + 1], carry, config=config)
    yield pixels


@functools.partial(jax.jit, static_argnames='config')
def _step(params, latents, carry, *, config):
  pixels, carry = decode_frame(config, params, latents, carry)
  return vae.to_uint8(pixels), tuple(
    anchor(past, 'rows') for past in carry
  )  # placed alike after every frame


def _linear(p, x):
  return x @ p['kernel'] + p['bias']


def _causal(p, x, history):
  """`vae.CausalConv` of new frames."""
  window, frames = history.window(x), x.shape[1]
  return (
    sum(vae._conv2d(window[:, tap : tap + frames], p['kernel'][tap]) for tap in range(PAST + 1))
    + p['bias']
  )


def _activate(p, x):
  return jax.nn.silu(vae.ChanNorm().apply({'params': p}, x))


def _residual(p, x, history):
  """`vae.ResBlock` of new frames."""
  y = _causal(p['conv1'], _activate(p['norm1'], x), history)
  y = _causal(p['conv2'], _activate(p['norm2'], y), history)
  return y + (_linear(p['shortcut'], x) if 'shortcut' in p else x)


def _up(p, x, history, temporal, first):
  """`vae.Up` of new frames."""
  if temporal and first:
    history.unseen(x)
  elif temporal:
    x = vae.TimeConv(2 * x.shape[-1]).apply({'params': p['time_conv']}, history.window(x))
    x = rearrange(x, 'b f h w (i c) -> b (f i) h w c', i=2)
  x = repeat(x, 'b f h w c -> b f (h j) (w k) c', j=2, k=2)
  return vae.FrameConv(x.shape[-1]).apply({'params': p['conv']}, x)


def _dup_up(x, features, temporal, first):
  """`vae.dup_up` of new frames; past the start of the clip no copy is dropped."""
  if first or not temporal:
    return vae.dup_up(x, features, 1 + temporal, 2)
  padded = jnp.concatenate([x[:, :1], x], axis=1)  # what is dropped comes from a frame put in front
  return vae.dup_up(padded, features, 2, 2)[:, 1:]
