"""Prompts of different length as one fixed-shape Batch.

    row 0   bos a red ball boi . . .  |          what a sampler prefills: everything before the target span, or
    row 1   bos boi . . . . . . . . . |          before the answer; `.` is padding on the right, seen by nobody

The cache of a prefill has one free index for all rows, so what follows stands at the same key in
every row while its position (the rotary index) continues each row's own prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuna_jax.batch import Batch
from tuna_jax.config import TunaConfig, UserError
from tuna_jax.data.segments import Example, Plan, Specials, Text, grid_of, layout, pack

Grid = tuple[int, int, int]  # (frames, rows, columns) in latent cells


def strides(config: TunaConfig) -> tuple[int, int]:
  """(temporal, spatial) stride of one visual token."""
  return config.strides


def bucket(length: int) -> int:
  """The padded length of a prompt: multiples of 16, from 64 on quarters of a power of two."""
  step = max(16, 1 << max(0, (length - 1).bit_length() - 3))
  return -(-length // step) * step


def split(plan: Plan, special: Specials, strides: tuple[int, int]) -> tuple[Example, Grid]:
  """(everything before the target span, the grid to draw) of a plan that draws.

  What follows the target cannot change it and is dropped (docs/architecture.md 10.6). Raises
  ValueError unless exactly one piece is a target.
  """
  targets = [n for n, piece in enumerate(plan) if not isinstance(piece, Text) and piece.target]
  if len(targets) != 1:
    raise UserError(f'a plan to draw has one target, this one has {len(targets)}')
  media = plan[targets[0]].media
  before = [*plan[: targets[0]], Text((special.boi,))]
  return layout(before, special, strides), grid_of(
    media if media.ndim == 4 else media[None], strides
  )


def collate(examples: Sequence[Example], channels: int, length: int | None = None) -> Batch:
  """One example a row, padded to the bucket of the longest. Media must be latents, float [T, h, w,
  C].

  length: of the padded rows, instead. Raises ValueError for media that are still pixels.
  """
  length = length or bucket(max(e.length for e in examples))
  sizes = (
    len(examples),
    length,
    max(e.cells for e in examples),
    max(e.images for e in examples),
    channels,
  )
  packed = pack([[e] for e in examples], sizes)
  for piece in packed.media:
    if piece.media.dtype == np.uint8:
      raise ValueError('collate: a picture is still pixels; encode it to latents first')
    packed.batch.latents[piece.row, piece.start : piece.start + piece.cells] = piece.media.reshape(
      piece.cells, -1
    )
  return packed.batch


def lengths(prompts: Batch):
  """int32[B]: how many positions of each row are not padding."""
  return (prompts.segment > 0).sum(axis=1)
