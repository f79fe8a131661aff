r"""`Batch`: packed text tokens, latent tokens with coordinates, and the indices that join them.

Axes:  B rows   L positions   V latent tokens   M images or clips per row   C latent channels

Every task, resolution, aspect ratio and clip length has this one shape, so a train step compiles
once. A row holds several examples side by side (`segment`); an example is text with visual spans,
each of them a time token and N latent tokens:

    text  <boi>  [time] [v0] [v1] ... [vN-1]  <eoi>  text
     |             |     \_______ _______/
     |             |             slot = M + v   row v of `latents`
     |             slot = m      the time embedding of image m
     slot = -1     kv_limit = last index of the span, for the whole span; text sees up to itself

So "causal, or in the same span" is `key <= kv_limit[query]`, and packing adds "and the same
segment"; no [L, L] array is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from tuna_jax.config import TunaConfig, UserError

Array = Any  # np.ndarray on the host, jax.Array inside jit


class Batch(NamedTuple):
  """See the module's docstring for the axes; docs/design.md 3 for why."""

  tokens: Array  # int32[B, L], text ids; the image pad id under visual positions
  labels: Array  # int32[B, L], target at this position: the id of the *next* token
  label_weight: Array  # float32[B, L], weight of that target; 0 where nothing is learned
  segment: Array  # int32[B, L], number of the packed example, from 1; 0 is padding
  position: Array  # int32[B, L], index within the example: the 1-D rotary position
  kv_limit: Array  # int32[B, L], last key index this query may see
  slot: Array  # int32[B, L], a time token in [0, M), a latent token in [M, M + V), text if -1
  task: Array  # int32[B, L], number of the example's task, for metrics only
  latents: Array  # float32[B, V, C], clean latents of each visual token, frame-major
  coords: Array  # int32[B, V, 3], (frame, row, column) of each latent token
  image: Array  # int32[B, V], number of its image, from 1; 0 is padding
  grid: Array  # int32[B, M, 3], (frames, rows, columns) of each image; 0 where there is none
  place: Array  # int32[B, V], sequence position of each latent token; 0 for padding
  target: Array  # bool[B, M], whether the image is noised and has a flow loss; else t = 1

  @property
  def sizes(self) -> tuple[int, int, int, int, int]:
    """(B, L, V, M, C)."""
    return (*self.tokens.shape, self.latents.shape[1], self.grid.shape[1], self.latents.shape[2])


_DTYPES = Batch(*['int32'] * 2, 'float32', *['int32'] * 5, 'float32', *['int32'] * 4, 'bool')


def colours(pixels: Array) -> Array:
  """uint8 pixels -> float32 in [-1, 1]."""
  return pixels.astype(np.float32) / np.float32(127.5) - 1


def to_tokens(cells: Array, side: int, layout: str) -> Array:
  """Cells [..., F, H, W, c] -> tokens [..., F, H / side, W / side, side^2 c], as a row of
  `latents` holds them.

  layout: 'patch', the cells that the token covers, line by line; 'raster', a run of side^2 cells of
  the frame read line by line (models.vision.patches has the drawing).
  """
  *front, height, width, channels = cells.shape
  if layout == 'patch':
    cells = rearrange(cells, '... (i r) (j q) c -> ... i j (r q c)', r=side, q=side)
  return cells.reshape(*front, height // side, width // side, side**2 * channels)


def check_frames(config: TunaConfig, frames: int) -> None:
  """Raises UserError for clips where the model takes pictures only."""
  if config.pictures_only and frames > 1:
    what = f'the design {config.design!r}' if config.seen_dim else config.vision.encoder
    raise UserError(
      f'a clip of {frames} frames: {what} takes pictures only; leave t2v, video_caption and '
      'video_vqa out'
    )


def to_rows(config: TunaConfig, cells: Array, pixels: Array) -> Array:
  """What `latents` holds of pictures uint8 [..., F, H, W, 3] whose cells are [..., T, h, w, c]:
  their tokens, and before them their pixels where the design sees clean pictures apart.

  Raises UserError as `check_frames` does.
  """
  check_frames(config, pixels.shape[-4])
  rows = to_tokens(cells, config.patch, config.layout)
  if not config.seen_dim:
    return rows
  seen = to_tokens(colours(pixels), config.strides[1], 'patch')
  return np.concatenate([seen, rows], axis=-1)


def to_cells(tokens: Array, side: int, layout: str) -> Array:
  """The inverse of `to_tokens`."""
  if layout == 'patch':
    return rearrange(tokens, '... i j (r q c) -> ... (i r) (j q) c', r=side, q=side)
  *front, height, width, size = tokens.shape
  return tokens.reshape(*front, height * side, width * side, size // side**2)


def shapes(rows: int, length: int, visual: int, images: int, channels: int) -> Batch:
  """The shape of every field, as a Batch of tuples."""
  seq, cell = (rows, length), (rows, visual)
  return Batch(
    *[seq] * 8, (*cell, channels), (*cell, 3), cell, (rows, images, 3), cell, (rows, images)
  )


def empty(rows: int, length: int, visual: int, images: int, channels: int) -> Batch:
  """An all-padding Batch of numpy arrays."""
  batch = Batch(
    *(np.zeros(s, d) for s, d in zip(shapes(rows, length, visual, images, channels), _DTYPES))
  )
  batch.slot[:] = -1
  batch.kv_limit[:] = np.arange(length, dtype=np.int32)
  return batch


def check(batch: Batch) -> Batch:
  """Returns the numpy `batch`; raises ValueError naming a field of wrong shape, type or range."""
  b, l, v, m, c = batch.sizes
  for name, array, shape, dtype in zip(Batch._fields, batch, shapes(b, l, v, m, c), _DTYPES):
    if tuple(array.shape) != shape or str(array.dtype) != dtype:
      raise ValueError(
        f'Batch.{name}: expected {dtype}{list(shape)}, found {array.dtype}{list(array.shape)}'
      )
  ranges = {'slot': (-1, m + v), 'kv_limit': (0, l), 'image': (0, m + 1), 'place': (0, l)}
  for name, (low, high) in ranges.items():
    array = getattr(batch, name)
    if array.size and (array.min() < low or array.max() >= high):
      raise ValueError(
        f'Batch.{name}: values {array.min()}..{array.max()}, expected [{low}, {high})'
      )
  return batch
