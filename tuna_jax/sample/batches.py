"""What runs together: batches of one shape, so that a list of 200 requests compiles once; and
pixels through the VAE in such batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from tuna_jax.config import VaeConfig
from tuna_jax.models.vae import decode_pixels, decode_stream, encode_pixels
from tuna_jax.sample.prompt import bucket
from tuna_jax.sharding import anchor, fetch

# The VAE encodes or decodes this many pixels at once: activations take hundreds of bytes of each.
PIXELS = 1 << 19


def batches(
  shapes: Sequence,
  lengths: Sequence[int],
  batch_size: int,
  most: Mapping[Any, int] = MappingProxyType({}),
) -> Iterator[tuple[list[int], int, int]]:
  """(indices, how many of them are real, padded length) of each batch of items of one shape.

  All batches of a shape have the same number of rows: full ones near `batch_size` (or `most` of
  that shape, if less), or a power of two where there is only one. The last repeats its first item.
  """
  for shape in dict.fromkeys(shapes):
    group = [i for i, s in enumerate(shapes) if s == shape]
    length = bucket(max(lengths[i] for i in group))
    limit = min(batch_size, most.get(shape, batch_size))
    count = -(-len(group) // limit)
    rows = -(-len(group) // count)
    if count == 1:
      rows = min(limit, 1 << (rows - 1).bit_length())
    for at in range(0, len(group), rows):
      chunk = group[at : at + rows]
      yield chunk + chunk[:1] * (rows - len(chunk)), len(chunk), length


def map_by_shape(
  fn: Callable[[np.ndarray], Any],
  arrays: Sequence[np.ndarray],
  pixels: Sequence[int],
  batch_size: int,
) -> list[np.ndarray]:
  """`fn` of every array, called with stacks of one shape: of `batch_size` arrays, or the largest
  power of two whose `pixels` (of each array) come to at most PIXELS."""
  out: list[Any] = [None] * len(arrays)
  shapes = [a.shape for a in arrays]
  most = {shape: 1 << max(0, (PIXELS // n).bit_length() - 1) for shape, n in zip(shapes, pixels)}
  for rows, count, _ in batches(shapes, [0] * len(arrays), batch_size, most):
    results = fetch(fn(np.stack([arrays[i] for i in rows])))
    for i, result in zip(rows[:count], results):
      out[i] = result
  return out


def encode(config: VaeConfig, params, media: Sequence[np.ndarray], batch_size: int):
  """uint8 [F, H, W, 3] each -> normalised latents float32 [T, h, w, C]: posterior means."""
  run = lambda pixels: _encode(params, pixels, config=config)
  return map_by_shape(run, media, [x[..., 0].size for x in media], batch_size)


def decode(config: VaeConfig, params, latents: Sequence[np.ndarray], batch_size: int):
  """Normalised latents float32 [T, h, w, C] each -> uint8 [F, H, W, 3]. A clip is decoded one
  latent frame at a time."""

  def run(stack):
    if stack.shape[1] == 1:
      return _decode(params, stack, config=config)
    frames = decode_stream(config, params, anchor(stack, 'rows'))
    return np.concatenate([fetch(pixels) for pixels in frames], axis=1)

  area = config.spatial_stride**2
  return map_by_shape(run, latents, [x[..., 0].size * area for x in latents], batch_size)


@jax.jit(static_argnames='config')
def _encode(params, pixels, *, config):
  return encode_pixels(config, params, anchor(pixels, 'rows'))


@jax.jit(static_argnames='config')
def _decode(params, latents, *, config):
  return decode_pixels(config, params, anchor(latents, 'rows'))
