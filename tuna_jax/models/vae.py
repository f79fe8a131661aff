"""The Wan 2.2 causal video VAE in one pass over the whole clip (docs/architecture.md 2).

Axes:  B clips   F frames   H, W pixels   C channels   T, h, w latent frames, rows, columns;  F = 1 + 4 (T - 1)
The official code streams with caches; section 2.4 proves the cache-free form used here equal to it. Layout is
[B, F, H, W, C]: frames fold into the batch and a causal 3-D convolution is a sum of 2-D ones, one a temporal tap,
which is several times faster than XLA's 3-D convolution on CPU and touches only the last tap for a still picture.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat

from tuna_jax.config import UserError, VaeConfig

LOGVAR_RANGE = (-30.0, 20.0)
_conv_init = nn.initializers.lecun_normal()


def _still_init(zeros: bool):
  """Init of a causal kernel as that of its last tap: a clip starts as its frames, a still picture
  by itself.
  """

  def init(key, shape, dtype=jnp.float32):
    last = jnp.zeros(shape[1:], dtype) if zeros else _conv_init(key, shape[1:], dtype)
    return jnp.zeros(shape, dtype).at[-1].set(last)

  return init


def _copy_init(key, shape, dtype=jnp.float32):
  """Init of a kernel over frames as a copy of the last one, into each output frame."""
  del key
  return (
    jnp.zeros(shape, dtype)
    .at[-1, 0, 0]
    .set(jnp.tile(jnp.eye(shape[-2], dtype=dtype), shape[-1] // shape[-2]))
  )


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
  latents (B12).
  """
  if compat == 'official':
    return moments._replace(mean=normalize(config, moments.mean)).sample(noise)
  return normalize(config, moments.sample(noise))


def check_clip(config: VaeConfig, frames: int, height: int, width: int):
  """Raises ValueError unless frames = k * temporal stride + 1 and the sides are multiples of the
  spatial stride.
  """
  if (frames - 1) % config.temporal_stride:
    raise UserError(f'{frames} frames: expected {config.temporal_stride}k + 1')
  for side, name in ((height, 'height'), (width, 'width')):
    if side % config.spatial_stride:
      raise UserError(f'{name} {side} is not a multiple of {config.spatial_stride}')


def _conv2d(x, kernel, stride=1, padding='SAME'):
  """x [B, F, H, W, C], kernel [kh, kw, in, out]; frame by frame."""
  b = x.shape[0]
  y = jax.lax.conv_general_dilated(
    rearrange(x, 'b f h w c -> (b f) h w c'),
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return rearrange(y, '(b f) h w c -> b f h w c', b=b)


class CausalConv(nn.Module):
  """3x3x3 convolution that sees the two frames before and none after."""

  features: int
  zeros: bool = False  # start at zero, so that a residual block starts as its shortcut

  @nn.compact
  def __call__(self, x):
    taps = 3
    kernel = self.param('kernel', _still_init(self.zeros), (taps, 3, 3, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    frames = x.shape[1]
    y = _conv2d(x, kernel[-1])
    for past in range(1, min(taps, frames)):
      seen = _conv2d(x[:, : frames - past], kernel[taps - 1 - past])
      y += jnp.pad(seen, ((0, 0), (past, 0), (0, 0), (0, 0), (0, 0)))
    return y + bias


class TimeConv(nn.Module):
  """3x1x1 convolution over frames, without padding: frames [stride * i, stride * i + 2] -> frame i."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', _copy_init, (3, 1, 1, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    out = (x.shape[1] - 3) // self.stride + 1
    last = self.stride * (out - 1) + 1
    return sum(x[:, tap : tap + last : self.stride] @ kernel[tap, 0, 0] for tap in range(3)) + bias


class FrameConv(nn.Module):
  """3x3 convolution of each frame; stride 2 pads one row below and one column on the right."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', _conv_init, (3, 3, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    padding = 'SAME' if self.stride == 1 else ((0, 1), (0, 1))
    return _conv2d(x, kernel, self.stride, padding) + bias


class ChanNorm(nn.Module):
  """x / |x| * sqrt(C) * scale over channels."""

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones_init(), (x.shape[-1],))
    x32 = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(x32), axis=-1, keepdims=True) + 1e-30)  # gradient at 0
    return (x32 / jnp.maximum(norm, 1e-12) * np.sqrt(x.shape[-1])).astype(x.dtype) * scale


class ResBlock(nn.Module):
  """Two normed causal convolutions and a shortcut."""

  features: int

  @nn.compact
  def __call__(self, x):
    y = CausalConv(self.features, name='conv1')(nn.silu(ChanNorm(name='norm1')(x)))
    y = CausalConv(self.features, zeros=True, name='conv2')(nn.silu(ChanNorm(name='norm2')(y)))
    if x.shape[-1] != self.features:
      x = nn.Dense(self.features, name='shortcut')(x)
    return x + y


class AttnBlock(nn.Module):
  """Single-head attention within each frame."""

  @nn.compact
  def __call__(self, x):
    b, f, h, w, c = x.shape
    qkv = nn.Dense(3 * c, name='qkv')(ChanNorm(name='norm')(x))
    q, k, v = jnp.split(rearrange(qkv, 'b f h w c -> (b f) (h w) c'), 3, axis=-1)
    p = nn.softmax(jnp.einsum('bqc,bkc->bqk', q, k).astype(jnp.float32) * c**-0.5, axis=-1)
    y = jnp.einsum('bqk,bkc->bqc', p.astype(v.dtype), v)
    y = rearrange(y, '(b f) (h w) c -> b f h w c', b=b, f=f, h=h, w=w)
    return x + nn.Dense(c, name='proj')(y)


class Middle(nn.Module):
  """Residual, attention, residual."""

  @nn.compact
  def __call__(self, x):
    features = x.shape[-1]
    x = ResBlock(features, name='block_0')(x)
    x = AttnBlock(name='attn')(x)
    return ResBlock(features, name='block_1')(x)


def patchify(x):
  """[B, F, 2h, 2w, C] -> [B, F, h, w, 4C], channel = 4 c + 2 (column offset) + row offset."""
  return rearrange(x, 'b f (h q) (w r) c -> b f h w (c r q)', q=2, r=2)


def unpatchify(x):
  """The inverse of `patchify`."""
  return rearrange(x, 'b f h w (c r q) -> b f (h q) (w r) c', q=2, r=2)


def avg_down(x, features: int, ft: int, fs: int):
  """Shortcut of a halving: cells move into channels, then groups of channels are averaged."""
  x = jnp.pad(x, ((0, 0), (-x.shape[1] % ft, 0), (0, 0), (0, 0), (0, 0)))
  x = rearrange(x, 'b (f i) (h j) (w k) c -> b f h w (c i j k)', i=ft, j=fs, k=fs)
  return reduce(x, 'b f h w (c g) -> b f h w c', 'mean', c=features)


def dup_up(x, features: int, ft: int, fs: int):
  """Shortcut of a doubling: channels repeat and move into cells; the first ft - 1 frames of the
  clip are dropped.
  """
  x = repeat(x, 'b f h w c -> b f h w (c r)', r=features * ft * fs * fs // x.shape[-1])
  x = rearrange(x, 'b f h w (c i j k) -> b (f i) (h j) (w k) c', i=ft, j=fs, k=fs)
  return x[:, ft - 1 :]


class Down(nn.Module):
  """Halves rows and columns and, if `temporal`, frames (the first frame stays as it is)."""

  temporal: bool

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    x = FrameConv(c, stride=2, name='conv')(x)
    if self.temporal:
      time_conv = TimeConv(c, stride=2, name='time_conv')
      # A still picture has nothing to halve, yet its parameters must exist.
      later = time_conv(x) if x.shape[1] > 1 else _touch(time_conv, x, 3)
      x = jnp.concatenate([x[:, :1], later], axis=1)
    return x


class Up(nn.Module):
  """Doubles rows and columns and, if `temporal`, every frame but the first, which the others do not
  see.
  """

  temporal: bool

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    if self.temporal:
      time_conv = TimeConv(2 * c, name='time_conv')
      if x.shape[1] > 1:
        later = time_conv(jnp.pad(x[:, 1:], ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0))))
        later = rearrange(later, 'b f h w (i c) -> b (f i) h w c', i=2)
        x = jnp.concatenate([x[:, :1], later], axis=1)
      else:
        _touch(time_conv, x, 3)
    x = repeat(x, 'b f h w c -> b f (h j) (w k) c', j=2, k=2)
    return FrameConv(c, name='conv')(x)


def _touch(module: TimeConv, x, frames: int):
  """Creates the parameters of `module` without computing anything: an empty picture passes through
  it.

  Returns no frames, in the shape the later frames of x would have.
  """
  module(jnp.zeros((1, frames, 0, 0, x.shape[-1]), x.dtype))
  return jnp.zeros((x.shape[0], 0, *x.shape[2:-1], module.features), x.dtype)


class Level(nn.Module):
  """Residual blocks of one resolution, then a resample, around an averaging or duplicating
  shortcut.
  """

  features: int
  blocks: int
  direction: str  # 'down', 'up' or 'same'
  temporal: bool
  shortcut: bool

  @nn.compact
  def __call__(self, x):
    y = x
    for i in range(self.blocks):
      y = ResBlock(self.features, name=f'block_{i}')(y)
    ft, fs = 1 + self.temporal, 1 + (self.direction != 'same')
    if self.direction == 'down':
      y = Down(self.temporal, name='down')(y)
    elif self.direction == 'up':
      y = Up(self.temporal, name='up')(y)
    if not self.shortcut:
      return y
    resample = dup_up if self.direction == 'up' else avg_down
    return y + resample(x, self.features, ft, fs)


class Encoder(nn.Module):
  config: VaeConfig

  @nn.compact
  def __call__(self, video):
    c = self.config
    last = len(c.dim_mult) - 1
    x = CausalConv(c.encoder_dim, name='conv_in')(patchify(video))
    for i, mult in enumerate(c.dim_mult):
      x = Level(
        c.encoder_dim * mult,
        c.encoder_blocks,
        'same' if i == last else 'down',
        i < last and c.temporal_down[i],
        True,
        name=f'level_{i}',
      )(x)
    x = Middle(name='middle')(x)
    return CausalConv(2 * c.latent_channels, name='conv_out')(nn.silu(ChanNorm(name='norm_out')(x)))


class VaeDecoder(nn.Module):
  config: VaeConfig

  @nn.compact
  def __call__(self, z):
    c = self.config
    last = len(c.dim_mult) - 1
    x = CausalConv(c.decoder_dim * c.dim_mult[-1], name='conv_in')(z)
    x = Middle(name='middle')(x)
    for i, mult in enumerate(reversed(c.dim_mult)):
      x = Level(
        c.decoder_dim * mult,
        c.decoder_blocks,
        'same' if i == last else 'up',
        i < last and c.temporal_down[::-1][i],
        i < last,
        name=f'level_{i}',
      )(x)
    return unpatchify(CausalConv(12, name='conv_out')(nn.silu(ChanNorm(name='norm_out')(x))))


class WanVae(nn.Module):
  """`encode`: pixels in [-1, 1] to Moments. `decode`: normalised latents to pixels, not clamped."""

  config: VaeConfig

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.quant = nn.Dense(2 * c.latent_channels)
    self.post_quant = nn.Dense(c.latent_channels)
    self.decoder = VaeDecoder(c)

  def encode(self, video) -> Moments:
    """video float[B, F, H, W, 3] in [-1, 1], F = 4k + 1, H and W multiples of 16. Raises ValueError
    otherwise.
    """
    check_clip(self.config, *video.shape[1:4])
    return Moments(*jnp.split(self.quant(self.encoder(video)), 2, axis=-1))

  def decode(self, latents):
    """latents float[B, T, h, w, C], normalised -> float[B, 1 + 4 (T - 1), 16 h, 16 w, 3]."""
    return self.decoder(self.post_quant(denormalize(self.config, latents)))

  def __call__(self, video, noise=None):
    """Reconstruction for training: (pixels, moments); samples the posterior where `noise` is given."""
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
  posterior means. params: of `WanVae`. Raises ValueError as `WanVae.encode` does.
  """
  moments = WanVae(config).apply({'params': params}, to_float(pixels), method='encode')
  return normalize(config, moments.mean)


def decode_pixels(config: VaeConfig, params, latents):
  """The way back: latents [n, T, h, w, C] -> uint8[n, F, H, W, 3], the whole clip at once."""
  return to_uint8(WanVae(config).apply({'params': params}, latents, method='decode'))
