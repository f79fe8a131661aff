"""Official checkpoints of every design: `official` is the table that a config asks for.

Tuna holds one latent cell per token (weights.tables); Show-o2 and the pixel variants hold patches.
Names: docs/showo2.md 9, docs/pixel.md 9.
"""

from __future__ import annotations

from tuna_jax.config import DESIGNS, TunaConfig
from tuna_jax.weights import tables
from tuna_jax.weights.adapt import Exact, FrontUnits, Window
from tuna_jax.weights.tables import Table, rows

_FUSION = """
projector/kernel                      image_embedder_gen.proj.weight  patch
projector/bias                        image_embedder_gen.proj.bias
connector/norm/scale                  fusion_proj.0.weight
connector/{fc1,fc2}/{kernel,bias}     fusion_proj.{1,3}.{weight,bias}
time_token/{kernel,bias}              time_embed_proj.{weight,bias}
flow_head/bridge/{fc1,fc2}/{kernel,bias}  diff_proj.{0,2}.{weight,bias}
"""
_PATCHES = """
patches/embed/kernel  vision_encoder.patch_embedding.weight  patch
patches/embed/bias    vision_encoder.patch_embedding.bias
patches/norm/scale    vision_encoder.norm.weight
patches/mask_token    mask_token                             token
"""


def official(config: TunaConfig) -> Table:
  """The table of the released checkpoints of `config.design`."""
  table = {'cascade': tables.tuna_official, 'late_fusion': showo2}.get(config.design, tuna_pixel)
  return table(config)


def showo2(config: TunaConfig) -> Table:
  """The released Show-o2 checkpoints: two projections of the latents, their fusion, and a flow head
  of its own width."""
  patch = Window(config.patch)
  names = {
    'embed': 'image_embedder_und.proj',
    'place': 'position_embedding',
    'l': 'und_trans.layers.{}',
  }
  return Table(
    'official Show-o2',
    tables.trunk(config, 'showo.')
    + tables.tower('', patch, Exact(), Exact(), **names)
    + rows(_FUSION, patch=patch),
    drops=tables.BUFFERS,
    aliases=tables.tied(config.decoder, 'showo.'),
  )


def tuna_pixel(config: TunaConfig) -> Table:
  """Tuna-R and Tuna-2: pixels through SigLIP-2, or through a patch embedding alone."""
  patch = Window(config.patch)
  if 'vision' in DESIGNS[config.design].paths:
    tower = tables.tower('vision_model.', patch, Exact(), Exact())
    name, visual = 'Tuna-R', tower + rows(tables.CONNECTOR)
  else:
    name, visual = 'Tuna-2', rows(_PATCHES, patch=patch, token=FrontUnits())
  return Table(
    f'official {name}',
    tables.trunk(config, 'tuna.') + visual,
    drops=tables.BUFFERS,
    prefixes=('tuna_model.',),
    aliases=tables.tied(config.decoder, 'tuna.'),
  )
