"""Chips by name, their published figures, and abstract devices of pods.

The `libtpu` wheel knows the layout of every slice; `devices_of` asks it for abstract devices, which
`sharding.make_mesh` takes like real ones.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from tuna_jax.config import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip.

  hbm: GiB per device that libtpu 0.0.42 gives a program.
  ring: bytes/s that a device sends along one axis of the torus.
  vector: operations/s of the vector units, 4 x 8 x 128 per cycle and core, at the clock that the
  peak of the matrix units implies.
  """

  kind: str  # `jax.Device.device_kind`
  bf16_flops: float
  hbm: float
  hbm_bandwidth: float
  ring: float
  vector: float
  devices: int = 1  # that jax sees


# cloud.google.com/tpu/docs (peak, memory); jax-ml.github.io/scaling-book (links, both directions).
CHIPS = {
  'v4': Chip('TPU v4', 275e12, 30.75, 1.228e12, 9.0e10, 8.6e12),
  'v5e': Chip('TPU v5 lite', 197e12, 15.75, 8.2e11, 9.0e10, 6.1e12),
  'v5p': Chip('TPU v5', 459e12, 95.74, 2.765e12, 1.8e11, 1.43e13),
  'v6e': Chip('TPU v6 lite', 918e12, 31.25, 1.64e12, 1.8e11, 7.2e12),
  'tpu7x': Chip('TPU7x', 2307e12, 94.75, 7.38e12, 1.8e11, 1.8e13, devices=2),
}
# US dollars per chip-hour on demand in a US region, as remembered on 2026-11-28 of
# cloud.google.com/tpu/pricing and not read there: put in what you pay before you go by them.
PRICES = {'v4': 3.22, 'v5e': 1.20, 'v5p': 4.20, 'v6e': 2.70, 'tpu7x': 12.00}
HOST_LINK = 1.5e10  # bytes/s between a chip and its host, by the scaling book
DCN = 6.25e9  # bytes/s per chip between slices: 200 Gbit/s per host of four chips
# Dense bf16 of the data sheets (SXM), by a word of `device_kind`.
GPUS = {
  'A100': 312e12,
  'H100': 989e12,
  'H200': 989e12,
  'GH200': 989e12,
  'B200': 2250e12,
  'L4': 121e12,
}

_FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
_SOLID = {
  4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8',
  512: '8x8x8',
}  # fmt: skip


def peak_flops(device: jax.Device) -> float | None:
  """The published bf16 peak of one jax device in FLOP/s; None for a device not listed here."""
  for chip in CHIPS.values():
    if device.device_kind == chip.kind:
      return chip.bf16_flops / chip.devices
  words = device.device_kind.replace('-', ' ').split()  # 'NVIDIA H100 80GB HBM3'
  return next((peak for name, peak in GPUS.items() if name in words), None)


def topology_name(name: str) -> str:
  """`v6e:16x16` as libtpu expects it, also from `v6e-256`, `v5litepod-16` or `v5p-128` (cores).

  Raises UserError naming the known chips or sizes.
  """
  if ':' in name:
    chip = name.partition(':')[0]
    if chip not in CHIPS:
      raise UserError(
        f'topology {name!r}: no chip {chip!r}{nearest(chip, CHIPS)}; known: {list(CHIPS)}'
      )
    return name
  chip, _, size = name.replace('v5litepod', 'v5e').partition('-')
  if chip not in CHIPS or not size.isdigit():
    raise UserError(
      f'topology {name!r}: expected CHIP:DIMS, such as v6e:16x16, or CHIP-COUNT, such as v6e-256'
    )
  flat = chip in ('v5e', 'v6e')
  table, chips = (_FLAT, int(size)) if flat else (_SOLID, int(size) // 2)
  if chips not in table:
    known = [f'{chip}-{n if flat else 2 * n}' for n in table]
    raise UserError(
      f'topology {name!r}: expected one of {known}, or the dimensions, such as {chip}:{table[16]}'
    )
  return f'{chip}:{table[chips]}'


def topologies_of(chip: str) -> list[str]:
  """The slices of a chip that have a name, CHIP:DIMS, the smallest first."""
  table = _FLAT if chip in ('v5e', 'v6e') else _SOLID
  return [f'{chip}:{dims}' for dims in table.values()]


def count_of(topology: str) -> int:
  """How many devices jax sees in a slice, CHIP:DIMS; UserError where DIMS are no sizes."""
  chip, _, dims = topology.partition(':')
  if not re.fullmatch(r'\d+(x\d+)+', dims):
    raise UserError(
      f'topology {topology!r}: expected CHIP:DIMS, such as {chip}:{_FLAT[16]}; '
      f'known: {", ".join(topologies_of(chip))}'
    )
  return math.prod(int(n) for n in dims.split('x')) * CHIPS[chip].devices


NO_COMPILER = (
  "the TPU compiler is not installed: pip install 'tuna_jax[tpu]', "
  "in a clone pip install -e '.[tpu]'"
)


def devices_of(topology: str, slices: int = 1) -> list:
  """Abstract devices of a topology. UserError if libtpu is missing or does not know it."""
  chip = topology.partition(':')[0]
  options = {'chip_config_name': 'megacore'} if chip == 'v4' else {}
  if topology.endswith(':1x1'):
    options['chips_per_host_bounds'] = (1, 1, 1)
  if slices > 1:
    options['num_slices'] = slices
  if not (importlib.util.find_spec('libtpu') or os.environ.get('TPU_LIBRARY_PATH')):
    raise UserError(NO_COMPILER)
  try:
    return topologies.get_topology_desc(topology, 'tpu', **options).devices
  except ImportError as error:
    raise UserError(NO_COMPILER) from error
  except RuntimeError as error:  # jax.errors.JaxRuntimeError is one
    said = str(error).partition('\n')[0]
    if 'topology' in said.lower():
      raise UserError(f'topology {topology!r}: the TPU compiler refuses it: {said}') from error
    raise UserError(
      f"the TPU compiler did not load ({said}): pip install 'tuna_jax[tpu]'"
    ) from error
