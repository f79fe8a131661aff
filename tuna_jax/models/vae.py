"""The causal video VAE: pixels to latents and back (docs/architecture.md 2, docs/showo2.md 2).

    whole clip   encode_pixels   pixels [n, F, ...] -> latents [n, T, ...]      decode_pixels   back
    in chunks    encode_stream   frame 0, then 4 frames -> 1 latent frame each time
                 decode_stream   latent frame 0 -> 1 frame, every later one -> 4 frames

Axes:  n, B clips   F frames   H, W pixels   C channels   T, h, w latent frames, rows, columns
       F = 1 + 4 (T - 1), H = 16 h, W = 16 w (8 h, 8 w in Wan 2.1)
A chunk runs the same modules as the whole clip and gives the same numbers; no buffer grows with the
clip. Frame 0 is not halved or doubled in time, so a stream compiles two programs: for frame 0 and
for all later chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.config import VaeConfig
from tuna_jax.models.layers import dense
from tuna_jax.models.vae_layers import (
  Carry,
  CausalConv,
  ChanNorm,
  Level,
  Middle,
  patchify,
  unpatchify,
)
from tuna_jax.sharding import anchor

LOGVAR_RANGE = (-30.0, 20.0)


class Moments(NamedTuple):
  """Posterior before normalisation: mean and log-variance, each [B, T, h, w, C]."""

  mean: jax.Array
  logvar: jax.Array

  def sample(self, noise):
    """mean + exp(logvar / 2) * noise."""
    return self.mean + jnp.exp(0.5 * jnp.clip(self.logvar, *LOGVAR_RANGE)) * noise


def normalize(config: VaeConfig, mean):
  """Posterior means -> latents the model sees."""
  if not config.latent_std:
    return mean
  return (mean - np.float32(config.latent_mean)) * (1.0 / np.float32(config.latent_std))


def denormalize(config: VaeConfig, latents):
  """The inverse of `normalize`."""
  if not config.latent_std:
    return latents
  return latents / (1.0 / np.float32(config.latent_std)) + np.float32(config.latent_mean)


def posterior_sample(config: VaeConfig, moments: Moments, noise, compat: str = 'clean'):
  """Normalised latents drawn from the posterior. 'official' leaves the noise in the scale of raw
  latents (docs/architecture.md 13.2, B12).
  """
  if compat == 'official':
    return moments._replace(mean=normalize(config, moments.mean)).sample(noise)
  return normalize(config, moments.sample(noise))


def check_clip(config: VaeConfig, frames: int, height: int, width: int):
  """Raises ValueError unless frames = k * temporal stride + 1 and the sides are multiples of the
  spatial stride.
  """
  if (frames - 1) % config.temporal_stride:
    raise ValueError(f'{frames} frames: expected {config.temporal_stride}k + 1')
  for side, name in ((height, 'height'), (width, 'width')):
    if side % config.spatial_stride:
      raise ValueError(f'{name} {side} is not a multiple of {config.spatial_stride}')


class Encoder(nn.Module):
  config: VaeConfig

  @nn.compact
  def __call__(self, video, carry: Carry):
    c = self.config
    last = len(c.dim_mult) - 1
    x = patchify(video) if c.residual else video
    x = CausalConv(c.encoder_dim, name='conv_in')(x, carry)
    for i, mult in enumerate(c.dim_mult):
      resample, temporal = ('same', False) if i == last else ('down', c.temporal_down[i])
      features = c.encoder_dim * mult
      level = Level(
        features, c.encoder_blocks, resample, temporal, shortcut=c.residual, name=f'level_{i}'
      )
      x = level(x, carry)
    x = nn.silu(ChanNorm(name='norm_out')(Middle(name='middle')(x, carry)))
    return CausalConv(2 * c.latent_channels, name='conv_out')(x, carry)


class VaeDecoder(nn.Module):
  config: VaeConfig

  @nn.compact
  def __call__(self, z, carry: Carry):
    c = self.config
    last = len(c.dim_mult) - 1
    x = CausalConv(c.decoder_dim * c.dim_mult[-1], name='conv_in')(z, carry)
    x = Middle(name='middle')(x, carry)
    for i, mult in enumerate(reversed(c.dim_mult)):
      resample, temporal = ('same', False) if i == last else ('up', c.temporal_down[::-1][i])
      features = c.decoder_dim * mult
      level = Level(
        features,
        c.decoder_blocks,
        resample,
        temporal,
        shortcut=c.residual and i < last,
        halving=not c.residual,
        name=f'level_{i}',
      )
      x = level(x, carry)
    x = nn.silu(ChanNorm(name='norm_out')(x))
    x = CausalConv(12 if c.residual else 3, name='conv_out')(x, carry)
    return unpatchify(x) if c.residual else x


class WanVae(nn.Module):
  """`encode`: pixels in [-1, 1] to Moments. `decode`: normalised latents to pixels, not clamped.

  `encode_chunk` and `decode_chunk` take the next frames of a clip and what the call before returned
  as carry, None for the first; they return the new carry as well.
  """

  config: VaeConfig

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.quant = dense(2 * c.latent_channels, None)
    self.post_quant = dense(c.latent_channels, None)
    self.decoder = VaeDecoder(c)

  def encode(self, video) -> Moments:
    """video float[B, F, H, W, 3] in [-1, 1], F = 4k + 1, H and W multiples of 16. Raises ValueError
    otherwise.
    """
    return self.encode_chunk(video)[0]

  def encode_chunk(self, video, carry=None):
    """(Moments, carry) of 4k + 1 frames at the start of a clip and 4k frames later."""
    started, (frames, height, width) = carry is not None, video.shape[1:4]
    check_clip(self.config, frames + started, height, width)
    carry = Carry(carry)
    return Moments(*jnp.split(self.quant(self.encoder(video, carry)), 2, axis=-1)), carry.frames

  def decode(self, latents):
    """latents float[B, T, h, w, C], normalised -> float[B, 1 + 4 (T - 1), 16 h, 16 w, 3]."""
    return self.decode_chunk(latents)[0]

  def decode_chunk(self, latents, carry=None):
    """(pixels, carry): 4 frames per latent frame, but 1 for the first of a clip."""
    carry = Carry(carry)
    z = denormalize(self.config, latents).astype(latents.dtype)
    return self.decoder(self.post_quant(z), carry), carry.frames

  def __call__(self, video, noise=None):
    """Reconstruction for training: (pixels, moments); `noise` samples the posterior."""
    moments = self.encode(video)
    z = moments.mean if noise is None else moments.sample(noise)
    return self.decode(normalize(self.config, z)), moments


def to_float(pixels):
  """uint8 in [0, 255] -> float32 in [-1, 1]."""
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video):
  """float in [-1, 1] -> uint8, clamped and rounded (the official code truncates)."""
  return jnp.round((jnp.clip(video.astype(jnp.float32), -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def encode_pixels(config: VaeConfig, params, pixels):
  """uint8[n, F, H, W, 3] -> the latents the model sees, float32[n, T, h, w, C]: normalised
  posterior means.

  params: of `WanVae`, or its `encoder` and `quant` alone; they decide in what type it computes.
  Raises ValueError as `WanVae.encode` does.
  """
  return encode_chunk(config, params, pixels)[0]


def encode_chunk(config: VaeConfig, params, pixels, carry=None):
  """(latents, carry) of the next frames of a clip: as `encode_pixels`, for frame 0 and then for 4
  frames at a time. carry: what the call before returned, None for frame 0.
  """
  video = to_float(pixels).astype(params['quant']['kernel'].dtype)
  apply = functools.partial(WanVae(config).apply, {'params': params}, method='encode_chunk')
  moments, carry = apply(video, carry)
  return normalize(config, moments.mean.astype(jnp.float32)), carry


def decode_pixels(config: VaeConfig, params, latents):
  """latents float32[n, T, h, w, C] -> uint8[n, F, H, W, 3], the whole clip at once; in the type of
  the parameters."""
  return _decode(config, params, latents, None)[0]


def encode_stream(config: VaeConfig, params, pixels) -> Iterator[jax.Array]:
  """What `encode_pixels` gives, one latent frame [n, 1, h, w, C] at a time."""
  check_clip(config, *pixels.shape[1:4])
  return _stream(encode_chunk, config, params, pixels, config.temporal_stride)


def decode_stream(config: VaeConfig, params, latents) -> Iterator[jax.Array]:
  """What `decode_pixels` gives: uint8[n, 1, H, W, 3], then [n, 4, H, W, 3] per latent frame."""
  return _stream(_decode, config, params, latents, 1)


def _decode(config, params, latents, carry):
  apply = functools.partial(WanVae(config).apply, {'params': params}, method='decode_chunk')
  pixels, carry = apply(latents.astype(params['post_quant']['kernel'].dtype), carry)
  return to_uint8(pixels), carry


def _stream(function, config, params, frames, size: int):
  """`function` of frame 0, then of `size` frames at a time."""
  starts = [0, *range(1, frames.shape[1] + 1, size)]
  carry = None
  for start, stop in zip(starts, starts[1:]):
    out, carry = _chunk(params, frames[:, start:stop], carry, function=function, config=config)
    yield out


@functools.partial(jax.jit, static_argnames=('function', 'config'))
def _chunk(params, frames, carry, *, function, config):
  out, carry = function(config, params, frames, carry)
  return out, tuple(anchor(past, 'rows') for past in carry)  # placed alike after every chunk
