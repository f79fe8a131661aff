"""Prompts of different length as one fixed-shape Batch.

    row 0   bos a red ball boi . . .  |      what a sampler prefills: all that stands before the
    row 1   bos boi . . . . . . . . . |      target span or the answer; `.` is masked padding

The cache of a prefill has one next free index for all rows, so what follows has the same key index
in every row, while its rotary position continues the prompt of its row.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuna_jax.batch import Batch
from tuna_jax.config import TunaConfig, UserError
from tuna_jax.data.latents import fill_latents
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
  """(everything before the target span, the grid to draw) of a plan with exactly one target.

  What follows the target cannot change it and is dropped (docs/architecture.md 10.6).
  """
  targets = [n for n, piece in enumerate(plan) if not isinstance(piece, Text) and piece.target]
  if len(targets) != 1:
    raise UserError(f'a plan to draw has one target, this one has {len(targets)}')
  media = plan[targets[0]].media
  before = [*plan[: targets[0]], Text((special.boi,))]
  media = media if media.ndim == 4 else media[None]
  return layout(before, special, strides), grid_of(media, strides)


def collate(examples: Sequence[Example], channels: int, length: int | None = None) -> Batch:
  """One example per row, padded to `length` or the bucket of the longest. Media are latents, float
  [T, h, w, C]."""
  length = length or bucket(max(e.length for e in examples))
  cells, images = max(e.cells for e in examples), max(e.images for e in examples)
  return fill_latents(
    pack([[e] for e in examples], (len(examples), length, cells, images, channels))
  )


def lengths(prompts: Batch):
  """int32[B]: how many positions of each row are not padding."""
  return (prompts.segment > 0).sum(axis=1)
