"""Official checkpoints of every design: `official` is the table that a config asks for.

Tuna holds one latent cell per token (weights.tables); Show-o2 and the pixel variants hold patches.
Names: docs/showo2.md 9, docs/pixel.md 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tuna_jax.config import DESIGNS, TunaConfig
from tuna_jax.weights import tables
from tuna_jax.weights.adapt import Exact, FrontUnits, Window
from tuna_jax.weights.tables import Table, rows
from tuna_jax.weights.tensors import CheckpointError, Lazy

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


# What --source calls the released checkpoints, and their design.
SOURCES = {'tuna': 'cascade', 'showo2': 'late_fusion', 'tuna-r': 'pixel_encoder', 'tuna-2': 'pixel'}
_SIZES = {
  ('tuna', 1536): ('Tuna 2B', '2b'),
  ('tuna', 3584): ('Tuna 7B', '7b'),
  ('showo2', 1536): ('Show-o2 1.5B', 'showo2-1.5b'),
  ('showo2', 3584): ('Show-o2 7B', 'showo2-7b'),
  ('tuna-r', 3584): ('Tuna-R 7B', 'tuna-r-7b'),
  ('tuna-2', 3584): ('Tuna-2 7B', 'tuna-2-7b'),
}


# A tensor that tells a part of a model, what that is, and what to do with it.
_OTHERS = {
  'encoder.conv1.weight': ('the VAE of Wan', '--vae=PATH takes it beside the model'),
  'quant_conv.weight': ('the VAE of Wan', '--vae=PATH takes it beside the model'),
  'und_trans.layers.0.layer_norm1.weight': (
    'the semantic layers of Show-o2',
    '`tuna-jax convert assemble --vision=PATH` takes them',
  ),
  'encoder.layers.0.layer_norm1.weight': (
    'SigLIP',
    '`tuna-jax convert assemble --vision=PATH` takes it',
  ),
  'model.embed_tokens.weight': (
    'a language model',
    '`tuna-jax convert assemble --decoder=PATH` takes it',
  ),
}


class Identity(NamedTuple):
  """A released checkpoint: its source, what it is called, and its named size where it has one."""

  source: str
  title: str
  size: str | None


def identify(path, reader: Mapping[str, Lazy], said: str = '') -> Identity:
  """Which released checkpoint it is, by names and shapes of its tensors. Raises CheckpointError,
  saying what it is, where it is none or not of the source `said`."""
  names = {tables.bare(name).removeprefix('tuna_model.'): value for name, value in reader.items()}
  embed = names.get('vision_model.embeddings.patch_embedding.weight')
  if 'fusion_proj.0.weight' in names:
    source = 'showo2'
  elif 'vision_encoder.patch_embedding.weight' in names:
    source = 'tuna-2'
  elif embed is not None and any(name.startswith('siglip_proj.') for name in names):
    source = 'tuna' if embed.shape[-1] == 1 else 'tuna-r'
  elif other := next((n for n in _OTHERS if n in names or f'vision_model.{n}' in names), None):
    what, advice = _OTHERS[other]
    raise CheckpointError(f'{path}: this is {what}, no released checkpoint; {advice}')
  else:
    raise CheckpointError(
      f'{path}: no checkpoint of Tuna, Show-o2, Tuna-R or Tuna-2: neither fusion_proj, '
      'vision_encoder nor siglip_proj is among its tensors'
    )
  prefix = 'showo' if source == 'showo2' else 'tuna'
  norm = names.get(f'{prefix}.model.norm.weight')
  width = norm.shape[0] if norm is not None else 0
  title, size = _SIZES.get((source, width), (f'a {source} checkpoint of width {width}', None))
  if said not in ('', source):
    raise CheckpointError(f'{path}: this is {title}; --source={source}')
  return Identity(source, title, size)


def official(config: TunaConfig) -> Table:
  """The table of released checkpoints of `config.design`; CheckpointError where there are none."""
  if config.design not in SOURCES.values():
    raise CheckpointError(f'no checkpoint of the design {config.design!r} has been published')
  table = {'cascade': tables.tuna_official, 'late_fusion': showo2}.get(config.design, tuna_pixel)
  return table(config)


def distilled(config: TunaConfig) -> Table:
  """The published distilled semantic layers of Show-o2, from which it is trained."""
  return Table('distilled semantic layers', _semantic(config), drops=tables.BUFFERS)


def _semantic(config: TunaConfig):
  names = {
    'embed': 'image_embedder_und.proj',
    'place': 'position_embedding',
    'l': 'und_trans.layers.{}',
  }
  return tables.tower('', Window(config.patch), Exact(), Exact(), **names)


def showo2(config: TunaConfig) -> Table:
  """The released Show-o2 checkpoints: two projections of the latents, their fusion, and a flow head
  of its own width."""
  patch = Window(config.patch)
  return Table(
    'official Show-o2',
    tables.trunk(config, 'showo.') + _semantic(config) + rows(_FUSION, patch=patch),
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
