"""Every design of config.DESIGNS at the smallest size, with random weights and packed batches."""

import dataclasses

import numpy as np

from tests.models import small
from tuna_jax.config import DESIGNS, FlowHeadConfig, PathConfig, TunaConfig
from tuna_jax.data.latents import fill_latents
from tuna_jax.data.segments import Image, Text, layout, pack
from tuna_jax.data.tokenizer import Letters

SIDE = 2  # cells of a token's side


def config(design: str) -> TunaConfig:
  """The design at width 32, tokens of 2 x 2 cells in raster runs; late fusion with its own head."""
  row, base = DESIGNS[design], small.CONFIG
  head = FlowHeadConfig(2, 48, 6, 2, 8, 40, rotary='index')
  return dataclasses.replace(
    base,
    design=design,
    patch=SIDE,
    layout='raster',
    vae=None if row.pixels else base.vae,
    vision=base.vision if 'vision' in row.paths else None,
    flow_head=head if design == 'late_fusion' else base.flow_head,
    path=PathConfig('clean', 2.0, -0.8, 0.8) if row.pixels else PathConfig(),
  )


def plans(config: TunaConfig) -> dict:
  """A question and an edit, whose pictures are 2 x 3 tokens."""

  def picture(seed, target=False):
    values = np.random.default_rng(seed).normal(size=(1, 2, 3, config.token_dim))
    return Image(values.astype(np.float32), target)

  return {
    'vqa': [Text(small.ids(3, 0)), picture(1), Text(small.ids(5, 2), loss=True)],
    'edit': [Text(small.ids(2, 3)), picture(4), Text(small.ids(4, 5)), picture(6, target=True)],
  }


def batch(config: TunaConfig, *rows: tuple[str, ...]):
  """The named examples side by side, pictures filled in."""
  made = {name: layout(plan, Letters(), config.strides) for name, plan in plans(config).items()}
  sizes = (len(rows), 48, 24, 4, config.token_dim)
  return fill_latents(pack([[made[name] for name in row] for row in rows], sizes))
