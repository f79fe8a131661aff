"""The named sizes of the model: the published ones (docs/architecture.md 0), and the tiny one.

A stage is a file in `configs/`; the product of stages and sizes is never written down.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Iterator, Mapping

from tuna_jax.config import (
  DecoderConfig,
  FlowHeadConfig,
  PathConfig,
  TunaConfig,
  UserError,
  VaeConfig,
  VisionConfig,
  nearest,
)

# Towers: layers, width, heads, key/value heads, head size, MLP width.
_SO400M = VisionConfig(26, 1152, 16, 16, 72, 4304)

TUNA_2B = TunaConfig(
  vision=_SO400M,
  decoder=DecoderConfig(28, 1536, 12, 2, 128, 8960, tied=True),
  flow_head=FlowHeadConfig(40, 1536, 24, 8, 64, 8960),
)
TUNA_7B = TunaConfig(
  vision=_SO400M,
  decoder=DecoderConfig(28, 3584, 28, 4, 128, 18944, tied=False),
  flow_head=FlowHeadConfig(16, 3584, 56, 14, 64, 18944),
)

# Published with the Wan 2.1 VAE.
# fmt: off
_WAN21_MEAN = (
  -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
  0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_WAN21_STD = (
  2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
  3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on
WAN21_VAE = VaeConfig(16, 96, 96, latent_mean=_WAN21_MEAN, latent_std=_WAN21_STD, residual=False)

SHOWO2_1_5B = TunaConfig(
  vision=dataclasses.replace(_SO400M, grid=27),
  decoder=TUNA_2B.decoder,
  flow_head=FlowHeadConfig(10, 2048, 32, 8, 64, 8192, rotary='index'),
  vae=WAN21_VAE,
  design='late_fusion',
  patch=2,
  layout='raster',
)
SHOWO2_7B = dataclasses.replace(SHOWO2_1_5B, decoder=TUNA_7B.decoder)

TUNA_R_7B = dataclasses.replace(
  TUNA_7B,
  vae=None,
  design='pixel_encoder',
  patch=16,
  layout='raster',
  path=PathConfig('clean', noise=2.0, mean=-0.8, std=0.8),
)
TUNA_2_7B = dataclasses.replace(TUNA_R_7B, vision=None, design='pixel')

# The third design of the paper's comparison, at its size (docs/decoupled.md).
DECOUPLED_2B = dataclasses.replace(TUNA_2B, design='decoupled')


class UnknownSize(UserError, KeyError):
  """A name of a size that there is not."""

  __str__ = UserError.__str__


class _Sizes(Mapping):
  """{name: TunaConfig}; a row 'module:name' or 'module:dict/key' is imported when asked for."""

  def __init__(self, rows: Mapping[str, TunaConfig | str]):
    self._rows = rows

  def __getitem__(self, name: str) -> TunaConfig:
    if name not in self._rows:
      known = ', '.join(sorted(self._rows))
      raise UnknownSize(
        f'unknown size {name!r}: expected one of {known}{nearest(name, self._rows)}'
      )
    row = self._rows[name]
    if not isinstance(row, str):
      return row
    where, _, key = row.partition('/')
    found = pkgutil.resolve_name(where)
    return found[key] if key else found

  def __iter__(self) -> Iterator[str]:
    return iter(self._rows)

  def __len__(self) -> int:
    return len(self._rows)


SIZES = _Sizes(
  {
    'tiny': 'tuna_jax.toy.sizes:TINY',
    **{
      f'tiny-{design}': f'tuna_jax.toy.sizes:DESIGNS/{design}'
      for design in ('late_fusion', 'pixel_encoder', 'pixel', 'decoupled')
    },
    '2b': TUNA_2B,
    '7b': TUNA_7B,
    'showo2-1.5b': SHOWO2_1_5B,
    'showo2-7b': SHOWO2_7B,
    'tuna-r-7b': TUNA_R_7B,
    'tuna-2-7b': TUNA_2_7B,
    'decoupled-2b': DECOUPLED_2B,
  }
)


def size(name: str) -> TunaConfig:
  """The named size. Raises UnknownSize with the known names."""
  return SIZES[name]
