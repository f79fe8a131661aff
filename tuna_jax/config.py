"""The model's configuration as frozen dataclasses.

Dataclasses are hashable, so a config is a static argument of `jax.jit`. The named sizes are in
`sizes.py`; `mappings.py` reads a config from a mapping.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import NamedTuple

from tuna_jax.ranges import Count, Few, Finite, NotNegative, Positive, Width

# Per-channel latent statistics published with the Wan 2.2 VAE (docs/architecture.md 2.5).
# fmt: off
WAN_MEAN = (
  -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542,
  0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109,
  0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899,
  -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
  0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
WAN_STD = (
  0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344,
  0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804,
  0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999,
  0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
  0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


class UserError(ValueError):
  """What a person gave is wrong, and the message says what to change: the command line prints it
  without a traceback. Every other exception is a fault of ours and keeps its traceback."""


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """The shape of one transformer tower."""

  num_layers: Few
  dim: Width
  num_heads: Few
  num_kv_heads: Few
  head_dim: Few
  mlp_dim: Width
  norm_eps: Positive = 1e-6


# Kinds of vision tower, and how many tokens of its own each gives a picture. SigLIP and SigLIP-2
# are one: they differ in what they were trained on. DINOv3 has a class token and four registers.
ENCODERS = {'siglip': 0, 'dinov3': 5}


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
  """The vision tower. encoder: of ENCODERS. grid: side of SigLIP's learned position table, 32 in
  the published models; the rotary positions of DINOv3 have none. final_norm: whether the features
  are normed after the last layer, as those of DINOv3 were trained.
  """

  grid: Few = 32
  encoder: str = 'siglip'
  final_norm: bool = False

  def __post_init__(self):
    if self.encoder not in ENCODERS:
      raise UserError(
        f'vision.encoder={self.encoder!r}: expected one of {tuple(ENCODERS)}'
        f'{nearest(self.encoder, ENCODERS)}'
      )
    if ENCODERS[self.encoder] and self.head_dim % 4:
      raise UserError(f'vision.head_dim={self.head_dim}: {self.encoder} needs a multiple of 4')


@dataclasses.dataclass(frozen=True)
class DecoderConfig(TowerConfig):
  """Qwen2.5. `vocab_size` counts real tokens; the table is padded so that it divides over a pod."""

  vocab_size: Count = 151_669
  tied: bool = True
  rope_theta: Positive = 1e6
  vocab_multiple: Few = 128

  @property
  def padded_vocab(self) -> int:
    """Rows of the embedding table: `vocab_size` rounded up to `vocab_multiple`."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class FlowHeadConfig(TowerConfig):
  """The flow-matching head. Where its width is not the decoder's, two small maps join them.

  rotary: 'grid' turns a visual token by its (frame, row, column), text by its index and a time
  token not at all (docs/architecture.md 7.3); 'index' turns every token by its index.
  """

  norm_eps: Positive = 1e-5
  rotary: str = 'grid'

  def __post_init__(self):
    if self.rotary not in ('grid', 'index'):
      raise UserError(f"flow_head.rotary={self.rotary!r}: expected 'grid' or 'index'")
    if self.rotary == 'grid' and self.head_dim % 16:
      raise UserError(
        f'flow_head.head_dim={self.head_dim}: a multiple of 16 is needed, so that frames, rows and '
        'columns each rotate whole pairs'
      )


@dataclasses.dataclass(frozen=True)
class VaeConfig:
  """The causal video VAE: Wan 2.2 (16x in space, 4x in time) or, without `residual`, Wan 2.1 (8x).

  residual: pixels are folded 2x2 into channels, and every level has a shortcut. Without it there is
  neither, and each doubling of the decoder halves the channels.
  latent_mean, latent_std: per-channel constants that normalise latents; empty means none. Official
  Tuna checkpoints were trained with the std list in both places: `latent_mean=WAN_STD`. A VAE
  trained here stores the statistics measured on its own data.
  """

  latent_channels: Few = 48
  encoder_dim: Few = 160
  decoder_dim: Few = 256
  dim_mult: tuple[Few, ...] = (1, 2, 4, 4)
  encoder_blocks: Few = 2
  decoder_blocks: Few = 3
  temporal_down: tuple[bool, ...] = (False, True, True)
  latent_mean: tuple[Finite, ...] = WAN_MEAN
  latent_std: tuple[Positive, ...] = WAN_STD
  residual: bool = True

  def __post_init__(self):
    for field in ('latent_mean', 'latent_std'):
      if len(getattr(self, field)) not in (0, self.latent_channels):
        raise UserError(
          f'{field}: {len(getattr(self, field))} values for {self.latent_channels} latent channels'
        )

  @property
  def spatial_stride(self) -> int:
    return 2 ** (len(self.dim_mult) - 1 + self.residual)  # halvings between levels, and the folding

  @property
  def temporal_stride(self) -> int:
    return 2 ** sum(self.temporal_down)


class Design(NamedTuple):
  """What turns a picture into visual tokens.

  paths: the modules that each see the patch of a token; their features are concatenated.
  connector: whether a two-layer map to the decoder's width follows. pixels: a token holds a patch
  of the picture itself, and there is no VAE. apart: a clean picture goes through the first path and
  the connector as pixels, a drawn one through the second as latents; a token holds both.
  """

  paths: tuple[str, ...]
  connector: bool
  pixels: bool
  apart: bool = False


DESIGNS = {
  'cascade': Design(('vision',), True, False),  # Tuna
  'late_fusion': Design(('vision', 'projector'), True, False),  # Show-o2
  'pixel_encoder': Design(('vision',), True, True),  # Tuna-R
  'pixel': Design(('patches',), False, True),  # Tuna-2
  'decoupled': Design(('vision', 'projector'), True, False, apart=True),  # docs/decoupled.md
}


@dataclasses.dataclass(frozen=True)
class PathConfig:
  """The path from noise to a picture, x_t = t x + (1 - t) noise (docs/architecture.md 8).

  predicts: 'velocity', or 'clean': the flow head gives the picture itself, and the velocity follows
  from it. noise: the standard deviation at t = 0. mean, std: of the normal whose sigmoid is the t
  of training, before any shift.
  """

  predicts: str = 'velocity'
  noise: Positive = 1.0
  mean: Finite = 0.0
  std: NotNegative = 1.0

  def __post_init__(self):
    if self.predicts not in ('velocity', 'clean'):
      raise UserError(f"path.predicts={self.predicts!r}: expected 'velocity' or 'clean'")


TOWERS = ('vision', 'decoder', 'flow_head')
# From all of a layer's values to its input alone, and that in host memory (models/layers.py).
REMATS = ('none', 'dots', 'narrow', 'attention', 'block', 'offload')


@dataclasses.dataclass(frozen=True)
class TunaConfig:
  """The whole model.

  design: of DESIGNS, how a picture becomes visual tokens. A token holds `patch` x `patch` cells: of
  the VAE's latents, or pixels. layout: which ones a row of `Batch.latents` and of the velocity
  holds, 'patch' or 'raster' (`models.vision.patches` has the drawing).
  dtype: compute type; parameters stay float32. remat: what a layer keeps for the backward pass, of
  REMATS, for all towers ('block') or by tower ('vision=dots,decoder=block'; 'block' where nothing
  is said). attention: backend name of
  `models.attention`, or 'auto'. compat: 'clean' or 'official'; the latter reproduces the faults of
  docs/architecture.md 13.2 that live in the model. Raises UserError for another name.
  """

  vision: VisionConfig | None
  decoder: DecoderConfig
  flow_head: FlowHeadConfig
  vae: VaeConfig | None = VaeConfig()
  design: str = 'cascade'
  patch: Few = 1
  layout: str = 'patch'
  path: PathConfig = PathConfig()
  time_frequencies: Few = 256
  dtype: str = 'bfloat16'
  remat: str = 'block'
  attention: str = 'auto'
  compat: str = 'clean'

  def __post_init__(self):
    for field, allowed in (
      ('design', tuple(DESIGNS)),
      ('layout', ('patch', 'raster')),
      ('compat', ('clean', 'official')),
    ):
      if getattr(self, field) not in allowed:
        raise UserError(f'{field}={getattr(self, field)!r}: expected one of {allowed}')
    for tower in TOWERS:
      if self.remat_of(tower) not in REMATS:
        raise UserError(f'remat={self.remat!r}: expected one of {REMATS}, or TOWER=ONE,...')
    row = DESIGNS[self.design]
    for field, wanted in (('vae', not row.pixels), ('vision', 'vision' in row.paths)):
      if (getattr(self, field) is not None) != wanted:
        must = 'needs one' if wanted else 'has none; expected null'
        raise UserError(f'{field}: the design {self.design!r} {must}')

  def remat_of(self, tower: str) -> str:
    """What the layers of the tower 'vision', 'decoder' or 'flow_head' keep of their values
    [B, L, D] for the backward pass, one of REMATS. Raises UserError where `remat` names no tower.
    """
    if '=' not in self.remat:
      return self.remat
    rows = dict(row.strip().partition('=')[::2] for row in self.remat.split(','))
    if unknown := rows.keys() - set(TOWERS):
      raise UserError(f'remat={self.remat!r}: {sorted(unknown)} are none of the towers {TOWERS}')
    return rows.get(tower, 'block')

  @property
  def channels(self) -> int:
    """Numbers that one cell holds: latent channels, or 3 colours."""
    return self.vae.latent_channels if self.vae else 3

  @property
  def drawn_dim(self) -> int:
    """Numbers of one visual token that are drawn: its cells."""
    return self.channels * self.patch**2

  @property
  def seen_dim(self) -> int:
    """Numbers before them in which a design that sees pictures `apart` holds the pixels."""
    return 3 * self.strides[1] ** 2 if DESIGNS[self.design].apart else 0

  @property
  def pictures_only(self) -> bool:
    """Whether clips are refused: pixels seen `apart` are not merged over time as latents are, and
    an encoder with tokens of its own has them once a picture."""
    return bool(self.seen_dim or self.vision and ENCODERS[self.vision.encoder])

  @property
  def token_dim(self) -> int:
    """Numbers that one visual token holds: C of `Batch`."""
    return self.seen_dim + self.drawn_dim

  @property
  def window(self) -> int:
    """The side of what the tower embeds as one token, in latent cells or pixels."""
    return self.strides[1] if self.seen_dim else self.patch

  @property
  def strides(self) -> tuple[int, int]:
    """(frames, pixels of a side) that one visual token covers."""
    temporal, spatial = (self.vae.temporal_stride, self.vae.spatial_stride) if self.vae else (1, 1)
    return temporal, spatial * self.patch


def nearest(name: str, names) -> str:
  """'; nearest is X', or nothing when no name is near, for error messages. X is the shortest name
  that begins like `name`, or has it as its last part, or else one that is spelt alike.
  """
  name, names = str(name), [str(n) for n in names]
  begun = [n for n in names if len(name) > 1 and (n.startswith(name) or n.endswith(f'.{name}'))]
  found = sorted(begun, key=len)[:1] or difflib.get_close_matches(name, names, n=1, cutoff=0.55)
  return f'; nearest is {found[0]!r}' if found else ''
