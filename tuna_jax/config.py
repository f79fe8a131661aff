"""Every size of the model as frozen dataclasses, and the one strict way in from a mapping.

A size is a constant (`TINY`, `TUNA_2B`, `TUNA_7B`); a stage is a file in `configs/`; their product
is never written down. Dataclasses are hashable, so a config is a static argument of `jax.jit`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping

# Per-channel latent statistics published with the Wan 2.2 VAE (docs/architecture.md 2.5).
WAN_MEAN = (
  -0.2289,
  -0.0052,
  -0.1323,
  -0.2339,
  -0.2799,
  0.0174,
  0.1838,
  0.1557,
  -0.1382,
  0.0542,
  0.2813,
  0.0891,
  0.1570,
  -0.0098,
  0.0375,
  -0.1825,
  -0.2246,
  -0.1207,
  -0.0698,
  0.5109,
  0.2665,
  -0.2108,
  -0.2158,
  0.2502,
  -0.2055,
  -0.0322,
  0.1109,
  0.1567,
  -0.0729,
  0.0899,
  -0.2799,
  -0.1230,
  -0.0313,
  -0.1649,
  0.0117,
  0.0723,
  -0.2839,
  -0.2083,
  -0.0520,
  0.3748,
  0.0152,
  0.1957,
  0.1433,
  -0.2944,
  0.3573,
  -0.0548,
  -0.1681,
  -0.0667,
)
WAN_STD = (
  0.4765,
  1.0364,
  0.4514,
  1.1677,
  0.5313,
  0.4990,
  0.4818,
  0.5013,
  0.8158,
  1.0344,
  0.5894,
  1.0901,
  0.6885,
  0.6165,
  0.8454,
  0.4978,
  0.5759,
  0.3523,
  0.7135,
  0.6804,
  0.5833,
  1.4146,
  0.8986,
  0.5659,
  0.7069,
  0.5338,
  0.4889,
  0.4917,
  0.4069,
  0.4999,
  0.6866,
  0.4093,
  0.5709,
  0.6065,
  0.6415,
  0.4944,
  0.5726,
  1.2042,
  0.5458,
  1.6887,
  0.3971,
  1.0600,
  0.3943,
  0.5537,
  0.5444,
  0.4089,
  0.7468,
  0.7744,
)


class UserError(ValueError):
  """What a person gave is wrong, and the message says what to change: the command line prints it
  without a traceback. Every other exception is a fault of ours and keeps its traceback."""


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """The shape of one transformer tower."""

  num_layers: int
  dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
  """SigLIP-2 on latents. `grid` is the side of the learned position table (32 in the published
  models).
  """

  grid: int = 32


@dataclasses.dataclass(frozen=True)
class DecoderConfig(TowerConfig):
  """Qwen2.5. `vocab_size` counts real tokens; the table is padded so that it divides over a pod."""

  vocab_size: int = 151_669
  tied: bool = True
  rope_theta: float = 1e6
  vocab_multiple: int = 128

  @property
  def padded_vocab(self) -> int:
    """Rows of the embedding table: `vocab_size` rounded up to `vocab_multiple`."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class FlowHeadConfig(TowerConfig):
  """The flow-matching head. Its width must equal the decoder's (docs/architecture.md 1.1)."""

  norm_eps: float = 1e-5

  def __post_init__(self):
    if self.head_dim % 16:
      raise UserError(
        f'flow_head.head_dim={self.head_dim}: a multiple of 16 is needed, so that frames, rows and '
        'columns each rotate whole pairs'
      )


@dataclasses.dataclass(frozen=True)
class VaeConfig:
  """Wan 2.2 causal video VAE: 16x in space, 4x in time.

  latent_mean, latent_std: per-channel constants that normalise latents; empty means none. The
  default is Wan 2.2's;
    official Tuna checkpoints were trained with the std list in both places: `latent_mean=WAN_STD`.
    A VAE trained here stores the statistics measured on its own data.
  """

  latent_channels: int = 48
  encoder_dim: int = 160
  decoder_dim: int = 256
  dim_mult: tuple[int, ...] = (1, 2, 4, 4)
  encoder_blocks: int = 2
  decoder_blocks: int = 3
  temporal_down: tuple[bool, ...] = (False, True, True)
  latent_mean: tuple[float, ...] = WAN_MEAN
  latent_std: tuple[float, ...] = WAN_STD

  def __post_init__(self):
    for field in ('latent_mean', 'latent_std'):
      if len(getattr(self, field)) not in (0, self.latent_channels):
        raise UserError(
          f'{field}: {len(getattr(self, field))} values for {self.latent_channels} latent channels'
        )

  @property
  def spatial_stride(self) -> int:
    return 2 ** len(self.dim_mult)  # 2x2 patchify, then one halving between levels

  @property
  def temporal_stride(self) -> int:
    return 2 ** sum(self.temporal_down)


@dataclasses.dataclass(frozen=True)
class TunaConfig:
  """The whole model.

  dtype: compute type; parameters stay float32. remat: what a layer keeps for the backward pass:
  'none' (everything), 'dots', 'block' (its input), 'offload'. attention: backend name of
  `models.attention`, or 'auto'. compat: 'clean' or 'official'; the latter reproduces the faults of
  docs/architecture.md 13.2 that live in the model.
  """

  vision: VisionConfig
  decoder: DecoderConfig
  flow_head: FlowHeadConfig
  vae: VaeConfig = VaeConfig()
  time_frequencies: int = 256
  dtype: str = 'bfloat16'
  remat: str = 'block'
  attention: str = 'auto'
  compat: str = 'clean'

  def __post_init__(self):
    if self.flow_head.dim != self.decoder.dim:
      raise UserError(
        f'flow_head.dim is {self.flow_head.dim} and decoder.dim is {self.decoder.dim}: they must be equal'
      )
    for field, allowed in (
      ('remat', ('none', 'dots', 'block', 'offload')),
      ('compat', ('clean', 'official')),
    ):
      if getattr(self, field) not in allowed:
        raise UserError(f'{field}={getattr(self, field)!r}: expected one of {allowed}')


TINY = TunaConfig(
  vision=VisionConfig(
    num_layers=2, dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256, grid=4
  ),
  decoder=DecoderConfig(
    num_layers=4,
    dim=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=256,
    vocab_size=384,
    rope_theta=1e4,
  ),
  flow_head=FlowHeadConfig(
    num_layers=4, dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=256
  ),
  vae=VaeConfig(
    latent_channels=16,
    encoder_dim=16,
    decoder_dim=16,
    encoder_blocks=1,
    decoder_blocks=1,
    latent_mean=(),
    latent_std=(),
  ),
  dtype='float32',
)

_SO400M = VisionConfig(
  num_layers=26, dim=1152, num_heads=16, num_kv_heads=16, head_dim=72, mlp_dim=4304
)

TUNA_2B = TunaConfig(
  vision=_SO400M,
  decoder=DecoderConfig(
    num_layers=28, dim=1536, num_heads=12, num_kv_heads=2, head_dim=128, mlp_dim=8960, tied=True
  ),
  flow_head=FlowHeadConfig(
    num_layers=40, dim=1536, num_heads=24, num_kv_heads=8, head_dim=64, mlp_dim=8960
  ),
)

TUNA_7B = TunaConfig(
  vision=_SO400M,
  decoder=DecoderConfig(
    num_layers=28, dim=3584, num_heads=28, num_kv_heads=4, head_dim=128, mlp_dim=18944, tied=False
  ),
  flow_head=FlowHeadConfig(
    num_layers=16, dim=3584, num_heads=56, num_kv_heads=14, head_dim=64, mlp_dim=18944
  ),
)

SIZES = types.MappingProxyType({'tiny': TINY, '2b': TUNA_2B, '7b': TUNA_7B})


def nearest(name: str, names) -> str:
  """'; nearest is X', or nothing when no name is near. For error messages."""
  found = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
  return f'; nearest is {found[0]!r}' if found else ''


def size(name: str) -> TunaConfig:
  """The named size. Raises ValueError with the known names."""
  if name not in SIZES:
    raise UserError(f'unknown size {name!r}: expected one of {sorted(SIZES)}{nearest(name, SIZES)}')
  return SIZES[name]


def from_dict(cls, mapping: Mapping, path: str = ''):
  """Builds the frozen dataclass `cls` from a (nested) mapping.

  Raises ValueError naming the full path of an unknown field (with the nearest right name) or a
  missing one, and TypeError for a value of another type. Integers are accepted where floats are
  asked, lists where tuples are.
  """
  where = path or cls.__name__
  if not isinstance(mapping, Mapping):
    raise UserError(f'{where}: expected a mapping, found {type(mapping).__name__} {mapping!r}')
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in mapping:
    if key not in fields:
      raise UserError(
        f'{path + "." if path else ""}{key}: no such field in {cls.__name__}{nearest(key, fields)}'
      )
  values = {}
  for name, field in fields.items():
    full = f'{path}.{name}' if path else name
    if name in mapping:
      values[name] = _convert(hints[name], mapping[name], full)
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise UserError(f'{full}: missing')
  return cls(**values)


def to_dict(config) -> dict:
  """The nested plain mapping that `from_dict` reads back to an equal config."""
  return dataclasses.asdict(config)


def _convert(hint, value, path):
  """`value` as type `hint`, or TypeError with the path."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    return _convert(next(a for a in args if a is not type(None)), value, path)
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else from_dict(hint, value, path)
  if origin is tuple and isinstance(value, (list, tuple)):
    if args[-1] is Ellipsis:
      args = (args[0],) * len(value)
    if len(args) != len(value):
      raise UserError(f'{path}: expected {len(args)} items, found {len(value)}: {value!r}')
    return tuple(_convert(a, v, f'{path}[{i}]') for i, (a, v) in enumerate(zip(args, value)))
  if hint is float and type(value) is int:
    return float(value)
  if hint is typing.Any or (type(value) is hint):
    return value
  raise UserError(
    f'{path}: expected {getattr(hint, "__name__", hint)}, found {type(value).__name__} {value!r}'
  )
