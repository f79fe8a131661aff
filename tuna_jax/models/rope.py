"""Every rotary convention of the model, known to no other module (docs/architecture.md 6 and 7.3).

The decoder rotates halves by the index in the example. The flow head has three classes of position:

    text    halves of the head, llama3-scaled frequencies, index in the example
    time    not rotated
    visual  adjacent pairs, by *minus* the angle of (frame, row, column), counted within the span

Angles are float32 whatever the compute type: bfloat16 frequencies give an error of radians at
position 2000.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

# Constants of the llama3 frequency scaling in the flow head (docs/architecture.md 7.3).
TEXT_THETA, TEXT_FACTOR, LOW_FREQ, HIGH_FREQ, ORIGINAL_LENGTH = 500_000.0, 32.0, 1.0, 4.0, 8192
VISUAL_THETA = 10_000.0
PICTURE_THETA = 100.0  # of DINOv3


class Rotary(NamedTuple):
  """x -> x * cos + halves(x) * sin_half + pairs(x) * sin_pair; each float32[B, L, head_dim].

  halves([a, b]) = [-b, a] on the two halves; pairs((e, o)) = (o, -e) on adjacent pairs. `sin_pair`
  is None where no position is visual.
  """

  cos: jnp.ndarray
  sin_half: jnp.ndarray
  sin_pair: jnp.ndarray | None = None


def rotate(x, rotary: Rotary):
  """x [B, L, heads, head_dim], rotated; same type."""
  a, b = jnp.split(x, 2, axis=-1)
  cos, sin_half = rotary.cos[:, :, None], rotary.sin_half[:, :, None]
  y = x * cos + jnp.concatenate([-b, a], axis=-1) * sin_half
  if rotary.sin_pair is not None:
    e, o = x[..., 0::2], x[..., 1::2]
    y += jnp.stack([o, -e], axis=-1).reshape(x.shape) * rotary.sin_pair[:, :, None]
  return y.astype(x.dtype)


def frequencies(head_dim: int, theta: float):
  """theta ** (-2i / head_dim), float32[head_dim / 2], each step rounded correctly: on some CPUs
  numpy's float32 power is off by 2 ulp, which is an error of 4e-4 rad at position 8191.
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  return np.float32(1) / (theta ** exponent.astype(np.float64)).astype(np.float32)


def scaled_frequencies(head_dim: int):
  """The flow head's llama3-scaled text frequencies, float32[head_dim / 2]."""
  freq = frequencies(head_dim, TEXT_THETA)
  wavelength = 2 * np.pi / freq
  smooth = (ORIGINAL_LENGTH / wavelength - LOW_FREQ) / (HIGH_FREQ - LOW_FREQ)
  between = (1 - smooth) * freq / TEXT_FACTOR + smooth * freq
  scaled = np.where(wavelength > ORIGINAL_LENGTH / LOW_FREQ, freq / TEXT_FACTOR, between)
  return np.where(wavelength < ORIGINAL_LENGTH / HIGH_FREQ, freq, scaled).astype(np.float32)


def axis_dims(head_dim: int) -> tuple[int, int, int]:
  """How many dimensions of a head belong to (frame, row, column)."""
  frame = head_dim // 4
  return frame, (head_dim - frame) // 2, (head_dim - frame) // 2


def visual_angles(coords, head_dim: int):
  """coords int[..., 3] -> float32[..., head_dim / 2], one angle for each adjacent pair."""
  parts = [
    coords[..., i, None].astype(jnp.float32) * frequencies(dim, VISUAL_THETA)
    for i, dim in enumerate(axis_dims(head_dim))
  ]
  return jnp.concatenate(parts, axis=-1)


def _by_index(position, frequencies) -> Rotary:
  angle = position[..., None].astype(jnp.float32) * frequencies
  angle = jnp.concatenate([angle, angle], axis=-1)
  return Rotary(jnp.cos(angle), jnp.sin(angle))


def decoder_rotary(position, head_dim: int, theta: float) -> Rotary:
  """position int[B, L] -> the decoder's tables."""
  return _by_index(position, frequencies(head_dim, theta))


def flow_rotary(position, coords, is_text, is_visual, head_dim: int) -> Rotary:
  """The flow head's tables.

  Args:
    position: int[B, L] index within the example.
    coords: int[B, L, 3] (frame, row, column); read where `is_visual`.
    is_text, is_visual: bool[B, L]; a position that is neither is a time token.
  """
  text = position[..., None].astype(jnp.float32) * scaled_frequencies(head_dim)
  text = jnp.concatenate([text, text], axis=-1)
  pair = jnp.repeat(visual_angles(coords, head_dim), 2, axis=-1)
  is_text, is_visual = is_text[..., None], is_visual[..., None]
  cos = jnp.where(is_text, jnp.cos(text), jnp.where(is_visual, jnp.cos(pair), 1.0))
  return Rotary(
    cos, jnp.where(is_text, jnp.sin(text), 0.0), jnp.where(is_visual, jnp.sin(pair), 0.0)
  )


def index_rotary(position, head_dim: int) -> Rotary:
  """The flow head's text tables for every token; position int[B, L]."""
  return _by_index(position, scaled_frequencies(head_dim))


def picture_rotary(coords, size, head_dim: int) -> Rotary:
  """DINOv3's tables: coords int[B, V, 3] (frame, row, column) in a grid of size int[B, V, 2].

  Centres of patches lie in (-1, 1) on either axis, whatever the size; the first half of the angles
  is of rows, the second of columns, and both halves of the head have the same.
  """
  centre = 2 * (coords[..., 1:] + 0.5) / jnp.maximum(size, 1) - 1
  frequency = 2 * np.pi * frequencies(head_dim // 2, PICTURE_THETA)  # turns become radians
  angle = (centre[..., None] * frequency).reshape(*coords.shape[:-1], head_dim // 2)
  angle = jnp.concatenate([angle, angle], axis=-1)
  return Rotary(jnp.cos(angle), jnp.sin(angle))


def no_rotary(position, head_dim: int) -> Rotary:
  """Tables that rotate nothing: the official flow head on a batch without pictures, and tokens of
  an encoder that have no place."""
  shape = (*position.shape, head_dim)
  return Rotary(jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32))
