"""Layers of the causal video VAE, Wan 2.1 and 2.2 (docs/architecture.md 2.1 to 2.4).

Axes:  B clips   F frames   H, W rows, columns   C channels
Layout is [B, F, H, W, C]: frames fold into the batch and a causal 3-D convolution is a sum of 2-D
convolutions, one per temporal tap. On a CPU that is several times faster than XLA's 3-D
convolution, and a picture costs the last tap alone.

Every layer works on a whole clip or on its next frames. The difference is in `Carry`, which holds
what earlier frames leave for later ones.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat

from tuna_jax.models.layers import SHAPE_ONLY, dense

TAPS = 3  # frames that a convolution over time sees: its own and the two before


class Carry:
  """The last two input frames of every convolution over time, in the order they run.

  `Carry()` begins a clip, with zeros before frame 0. After a run `frames` is a tuple of arrays
  [B, 2, H, W, C], and `Carry(frames)` continues the clip.
  """

  def __init__(self, frames: tuple[jax.Array, ...] | None = None):
    self.first = frames is None  # the clip begins here
    self.frames: tuple[jax.Array, ...] = ()
    self._before = frames

  def extend(self, x):
    """x [B, F, H, W, C] with the two frames before it in front; the last two are kept."""
    if self._before is None:
      before = jnp.zeros((x.shape[0], TAPS - 1, *x.shape[2:]), x.dtype)
    else:
      before = self._before[len(self.frames)]
    window = jnp.concatenate([before, x], axis=1)
    self.frames += (window[:, 1 - TAPS :],)
    return window


def conv2d(x, kernel, stride=1, padding='SAME'):
  """x [B, F, H, W, C], kernel [kh, kw, in, out]; each frame by itself."""
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

  @nn.compact
  def __call__(self, x, carry: Carry):
    kernel = self.param('kernel', SHAPE_ONLY, (TAPS, 3, 3, x.shape[-1], self.features))
    bias = self.param('bias', SHAPE_ONLY, (self.features,))
    frames, window = x.shape[1], carry.extend(x)
    y = conv2d(x, kernel[-1])
    for back in (1, 2):
      skipped = back if carry.first else 0  # frames that see only the zeros before the clip
      if skipped < frames:
        start = TAPS - 1 - back
        seen = conv2d(window[:, start + skipped : start + frames], kernel[-1 - back])
        y += jnp.pad(seen, ((0, 0), (skipped, 0), (0, 0), (0, 0), (0, 0)))
    return y + bias


class TimeConv(nn.Module):
  """3x1x1 convolution without padding: frames [stride * i, stride * i + 2] -> frame i."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', SHAPE_ONLY, (TAPS, 1, 1, x.shape[-1], self.features))
    bias = self.param('bias', SHAPE_ONLY, (self.features,))
    span = (x.shape[1] - TAPS) // self.stride * self.stride + self.stride
    return sum(x[:, i : i + span : self.stride] @ kernel[i, 0, 0] for i in range(TAPS)) + bias


class FrameConv(nn.Module):
  """3x3 convolution of each frame; stride 2 pads one row below and one column on the right."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', SHAPE_ONLY, (3, 3, x.shape[-1], self.features))
    bias = self.param('bias', SHAPE_ONLY, (self.features,))
    padding = 'SAME' if self.stride == 1 else ((0, 1), (0, 1))
    return conv2d(x, kernel, self.stride, padding) + bias


class ChanNorm(nn.Module):
  """x / |x| * sqrt(C) * scale over channels."""

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', SHAPE_ONLY, (x.shape[-1],))
    x32 = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(x32), axis=-1, keepdims=True) + 1e-30)  # gradient at 0
    return (x32 / jnp.maximum(norm, 1e-12) * np.sqrt(x.shape[-1])).astype(x.dtype) * scale


class ResBlock(nn.Module):
  """Two normed causal convolutions and a shortcut."""

  features: int

  @nn.compact
  def __call__(self, x, carry: Carry):
    y = CausalConv(self.features, name='conv1')(nn.silu(ChanNorm(name='norm1')(x)), carry)
    y = CausalConv(self.features, name='conv2')(nn.silu(ChanNorm(name='norm2')(y)), carry)
    if x.shape[-1] != self.features:
      x = dense(self.features, None, name='shortcut')(x)
    return x + y


class AttnBlock(nn.Module):
  """Single-head attention within each frame."""

  @nn.compact
  def __call__(self, x):
    b, f, h, w, c = x.shape
    qkv = dense(3 * c, None, name='qkv')(ChanNorm(name='norm')(x))
    q, k, v = jnp.split(rearrange(qkv, 'b f h w c -> (b f) (h w) c'), 3, axis=-1)
    p = nn.softmax(jnp.einsum('bqc,bkc->bqk', q, k).astype(jnp.float32) * c**-0.5, axis=-1)
    y = jnp.einsum('bqk,bkc->bqc', p.astype(v.dtype), v)
    y = rearrange(y, '(b f) (h w) c -> b f h w c', b=b, f=f, h=h, w=w)
    return x + dense(c, None, name='proj')(y)


class Middle(nn.Module):
  """Residual block, attention, residual block."""

  @nn.compact
  def __call__(self, x, carry: Carry):
    x = ResBlock(x.shape[-1], name='block_0')(x, carry)
    x = AttnBlock(name='attn')(x)
    return ResBlock(x.shape[-1], name='block_1')(x, carry)


class Down(nn.Module):
  """Halves rows and columns and, if `temporal`, frames; frame 0 of a clip stays as it is."""

  temporal: bool

  @nn.compact
  def __call__(self, x, carry: Carry):
    x = FrameConv(x.shape[-1], stride=2, name='conv')(x)
    if not self.temporal:
      return x
    window = carry.extend(x)
    time_conv = TimeConv(x.shape[-1], stride=2, name='time_conv')
    if not carry.first:
      return time_conv(window[:, 1:])
    return jnp.concatenate([x[:, :1], time_conv(x)], axis=1)


class Up(nn.Module):
  """Doubles rows and columns and, if `temporal`, frames; frame 0 of a clip stays single, and the
  others do not see it.
  """

  features: int
  temporal: bool

  @nn.compact
  def __call__(self, x, carry: Carry):
    c = x.shape[-1]
    if self.temporal:
      single = int(carry.first)
      later = TimeConv(2 * c, name='time_conv')(carry.extend(x[:, single:]))
      later = rearrange(later, 'b f h w (i c) -> b (f i) h w c', i=2)
      x = jnp.concatenate([x[:, :single], later], axis=1)
    x = repeat(x, 'b f h w c -> b f (h j) (w k) c', j=2, k=2)
    return FrameConv(self.features, name='conv')(x)


def patchify(x):
  """[B, F, 2h, 2w, C] -> [B, F, h, w, 4C], channel = 4 c + 2 (column offset) + row offset."""
  return rearrange(x, 'b f (h q) (w r) c -> b f h w (c r q)', q=2, r=2)


def unpatchify(x):
  """The inverse of `patchify`."""
  return rearrange(x, 'b f h w (c r q) -> b f (h q) (w r) c', q=2, r=2)


def avg_down(x, features: int, ft: int, fs: int):
  """Shortcut around `Down`: cells move into channels, then groups of channels are averaged. An odd
  number of frames begins a clip, and zeros are put before it.
  """
  x = jnp.pad(x, ((0, 0), (-x.shape[1] % ft, 0), (0, 0), (0, 0), (0, 0)))
  x = rearrange(x, 'b (f i) (h j) (w k) c -> b f h w (c i j k)', i=ft, j=fs, k=fs)
  return reduce(x, 'b f h w (c g) -> b f h w c', 'mean', c=features)


def dup_up(x, features: int, ft: int, fs: int, first: bool):
  """Shortcut around `Up`: channels repeat and move into cells; the `first` ft - 1 frames of a clip
  are dropped.
  """
  x = repeat(x, 'b f h w c -> b f h w (c r)', r=features * ft * fs * fs // x.shape[-1])
  x = rearrange(x, 'b f h w (c i j k) -> b (f i) (h j) (w k) c', i=ft, j=fs, k=fs)
  return x[:, ft - 1 :] if first else x


class Level(nn.Module):
  """Residual blocks of one resolution, then a resample, with a shortcut around all of it."""

  features: int
  blocks: int
  resample: str  # 'down', 'up' or 'same'
  temporal: bool  # frames are resampled too
  shortcut: bool = True
  halving: bool = False  # 'up' halves the channels

  @nn.compact
  def __call__(self, x, carry: Carry):
    y = x
    for i in range(self.blocks):
      y = ResBlock(self.features, name=f'block_{i}')(y, carry)
    ft, fs = 1 + self.temporal, 1 + (self.resample != 'same')
    if self.resample == 'down':
      y = Down(self.temporal, name='down')(y, carry)
    elif self.resample == 'up':
      y = Up(self.features // (1 + self.halving), self.temporal, name='up')(y, carry)
    if not self.shortcut:
      return y
    if self.resample == 'up':
      return y + dup_up(x, self.features, ft, fs, carry.first)
    return y + avg_down(x, self.features, ft, fs)
