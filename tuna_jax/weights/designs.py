"""Official checkpoints of every design: `official` is the table that a config asks for.

Tuna holds one latent cell a token (weights.tables); Show-o2 and the pixel variants hold patches,
whose convolutions [out, c, p, p] are matrices [p p c, out] here. Names: docs/showo2.md 9, docs/pixel.md 9.
"""

from __future__ import annotations

import dataclasses

from tuna_jax.config import DESIGNS, TunaConfig
from tuna_jax.weights import tables
from tuna_jax.weights.tables import Exact, Misfit, Table, rows
from tuna_jax.weights.tensors import Lazy, index_shape


@dataclasses.dataclass(frozen=True)
class Window(Exact):
  """Torch keeps a patch of `side` x `side` cells as [out, c, row, column]; ours is [out, (row, column, c)]."""

  side: int

  def to_ours(self, value, shape):
    wanted = (shape[0], shape[1] // self.side**2, self.side, self.side)
    if value.shape != wanted:
      raise Misfit(f'found {list(value.shape)}, wanted {list(wanted)}')

    def read(index):
      block = value[index[0]].transpose(0, 2, 3, 1)
      return block.reshape(len(block), -1)[:, index[1]]

    return Lazy(tuple(shape), value.dtype, read), ''

  def to_torch(self, value):
    out, size = value.shape
    shape = (out, self.side, self.side, size // self.side**2)

    def read(index):
      block = value[index[0]].reshape(-1, *shape[1:]).transpose(0, 3, 1, 2)
      return block[(slice(None), *index[1:])]

    return Lazy((out, shape[3], self.side, self.side), value.dtype, read)


class FrontUnits(Exact):
  """Torch keeps axes of size 1 in front: the mask token [1, 1, D]."""

  def to_ours(self, value, shape):
    if value.shape != (1, 1, *shape):
      raise Misfit(f'found {list(value.shape)}, wanted {[1, 1, *shape]}')
    ones = (slice(0, 1),) * 2
    read = lambda index: value.read((*ones, *index)).reshape(index_shape(index))  # noqa: E731
    return Lazy(tuple(shape), value.dtype, read), ''

  def to_torch(self, value):
    read = lambda index: value.read(index[2:]).reshape(index_shape(index))  # noqa: E731
    return Lazy((1, 1, *value.shape), value.dtype, read)


def official(config: TunaConfig) -> Table:
  """The table of the released checkpoints of `config.design`."""
  return {'cascade': tables.tuna_official, 'late_fusion': showo2}.get(config.design, tuna_pixel)(
    config
  )


def showo2(config: TunaConfig) -> Table:
  """The released Show-o2 checkpoints: two projections of the latents, their fusion, a head of its own width."""
  patch = Window(config.patch)
  return Table(
    'official Show-o2',
    tables.trunk(config, 'showo.')
    + tables.tower(
      'image_embedder_und.proj', 'position_embedding', 'und_trans.layers.{}', patch, Exact()
    )
    + rows(
      ('projector/kernel', 'image_embedder_gen.proj.weight', patch),
      ('projector/bias', 'image_embedder_gen.proj.bias'),
      ('connector/norm/scale', 'fusion_proj.0.weight'),
      ('connector/{fc1,fc2}/kernel', 'fusion_proj.{1,3}.weight'),
      ('connector/{fc1,fc2}/bias', 'fusion_proj.{1,3}.bias'),
      ('time_token/{kernel,bias}', 'time_embed_proj.{weight,bias}'),
      ('flow_head/bridge/{fc1,fc2}/kernel', 'diff_proj.{0,2}.weight'),
      ('flow_head/bridge/{fc1,fc2}/bias', 'diff_proj.{0,2}.bias'),
    ),
    drops=tables.BUFFERS,
    prefixes=('module.', '_orig_mod.'),
    aliases=tables.tied(config.decoder, 'showo.'),
  )


def tuna_pixel(config: TunaConfig) -> Table:
  """Tuna-R and Tuna-2: pixels through SigLIP-2, or through a patch embedding alone."""
  patch = Window(config.patch)
  if 'vision' in DESIGNS[config.design].paths:
    visual = tables.tower(
      'vision_model.embeddings.patch_embedding',
      'vision_model.embeddings.position_embedding',
      'vision_model.encoder.layers.{}',
      patch,
      Exact(),
    ) + rows(*tables.CONNECTOR)
  else:
    visual = rows(
      ('patches/embed/kernel', 'vision_encoder.patch_embedding.weight', patch),
      ('patches/embed/bias', 'vision_encoder.patch_embedding.bias'),
      ('patches/norm/scale', 'vision_encoder.norm.weight'),
      ('patches/mask_token', 'mask_token', FrontUnits()),
    )
  return Table(
    f'official {"Tuna-R" if config.vision else "Tuna-2"}',
    tables.trunk(config, 'tuna.') + visual,
    drops=tables.BUFFERS,
    prefixes=('module.', '_orig_mod.', 'tuna_model.'),
    aliases=tables.tied(config.decoder, 'tuna.'),
  )
