"""The rows of the paper's comparison of designs, encoders and data (docs/comparison.md).

`configs/compare.py:12` is stage 2 of row 12 at the size of the paper's comparison, `12-tiny` at the
tiny size, and `12-stage1` and `12-tiny-stage1` are the stage before. All rows have one recipe; only
the model and the tasks differ.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from tuna_jax.configs import common

from tuna_jax.config import FlowHeadConfig, TunaConfig, UserError, VaeConfig, VisionConfig, nearest
from tuna_jax.sizes import TUNA_2B, WAN21_VAE
from tuna_jax.toy.sizes import DESIGNS, TINY
from tuna_jax.train.config import TrainConfig

replace = dataclasses.replace
METRICS = ('MME-p', 'MMMU', 'SEED', 'GQA', 'GenEval', 'DPG')


class Row(NamedTuple):
  """A row of the table. data: of DATA. paper: its published scores by METRICS, None where the row
  has none (arXiv 2512.02014v1, table 7)."""

  title: str
  design: str
  vae: str
  encoder: str
  data: str
  paper: tuple[float | None, ...]


_ = None
# fmt: off
ROWS = {
  '1': Row('Show-o2', 'late_fusion', '2.1', 'siglip', 'und', (1351, 36.1, 62.1, 56.8, _, _)),
  '2': Row('decoupled', 'decoupled', '2.2', 'siglip2', 'und', (1392, 38.2, 62.9, 58.1, _, _)),
  '3': Row('Tuna', 'cascade', '2.2', 'siglip2', 'und', (1386, 37.6, 62.9, 57.4, _, _)),
  '4': Row('Show-o2', 'late_fusion', '2.1', 'siglip', 'gen', (_, _, _, _, 76.2, 82.56)),
  '5': Row('decoupled', 'decoupled', '2.2', 'siglip2', 'gen', (_, _, _, _, 77.3, 82.87)),
  '6': Row('Tuna', 'cascade', '2.2', 'siglip2', 'gen', (_, _, _, _, 77.8, 83.33)),
  '7': Row('Show-o2', 'late_fusion', '2.1', 'siglip', 'both',
           (1339, 35.4, 61.7, 55.9, 75.9, 82.32)),
  '8': Row('decoupled', 'decoupled', '2.2', 'siglip2', 'both',
           (1346, 37.2, 61.4, 56.5, 78.3, 83.50)),
  '9': Row('Tuna', 'cascade', '2.1', 'siglip', 'both', (1358, 35.9, 64.2, 57.2, 77.2, 83.29)),
  '10': Row('Tuna', 'cascade', '2.2', 'siglip', 'both', (1349, 36.3, 64.6, 57.4, 76.9, 83.10)),
  '11': Row('Tuna', 'cascade', '2.1', 'siglip2', 'both', (1379, 37.7, 65.9, 58.4, 79.1, 83.98)),
  '12': Row('Tuna', 'cascade', '2.2', 'siglip2', 'both', (1361, 38.1, 66.5, 58.2, 79.4, 84.20)),
  '13': Row('Tuna', 'cascade', '2.2', 'dinov3', 'both', (1396, 37.3, 65.6, 58.6, 78.9, 84.08)),
  # Not of the paper: between rows 10 and 12 in what its encoder was taught, at the tiny size.
  '12m': Row('Tuna', 'cascade', '2.2', 'siglip2-medium', 'both', (_, _, _, _, _, _)),
}
DATA = {
  'und': (('caption', 0.35), ('vqa', 0.65)),
  'gen': (('t2i', 1.0),),
  'both': (('caption', 0.175), ('vqa', 0.325), ('t2i', 0.5)),
}
# fmt: on


class Size(NamedTuple):
  """What a size of the table is made of. base: another size of the stages, whose rows and rates are
  taken. vaes: kind -> (VAE, cells of a token's side). encoders: by name. mlp: the width of the flow
  head's MLP in a design that differs from that of `model`, so that rows have as many parameters.
  turns: of a step, so that it fits the smallest topology that the size is planned for."""

  base: str
  model: TunaConfig
  vaes: dict[str, tuple[VaeConfig, int]]
  encoders: dict[str, VisionConfig]
  mlp: dict[str, int] = {}
  turns: int = 1


SIZES = {
  '1.5b': Size(
    '2b',
    replace(TUNA_2B, flow_head=replace(TUNA_2B.flow_head, num_layers=10)),
    {'2.1': (WAN21_VAE, 2), '2.2': (TUNA_2B.vae, 1)},
    {
      'siglip': replace(TUNA_2B.vision, grid=27),
      'siglip2': TUNA_2B.vision,
      'dinov3': VisionConfig(32, 1280, 20, 20, 64, 5120, 1e-5, encoder='dinov3', final_norm=True),
    },
    turns=16,
  ),
  'tiny': Size(
    'tiny',
    TINY,
    {'2.1': (DESIGNS['late_fusion'].vae, 2), '2.2': (TINY.vae, 1)},
    {
      'siglip': TINY.vision,
      'siglip2': TINY.vision,
      'siglip2-medium': TINY.vision,
      'dinov3': replace(TINY.vision, mlp_dim=176, norm_eps=1e-5, encoder='dinov3', final_norm=True),
    },
    {'decoupled': 224},
  ),
}
STAGES = ('stage1', 'stage2')


def row(name: str) -> Row:
  """The row; UserError with the known ones."""
  if name not in ROWS:
    raise UserError(f'row {name!r}: expected one of {", ".join(ROWS)}{nearest(name, ROWS)}')
  return ROWS[name]


def model(name: str, size: str) -> TunaConfig:
  """The model of a row."""
  found, parts = row(name), SIZES[size]
  if found.encoder not in parts.encoders:
    raise UserError(f'row {name!r}: the size {size} has no encoder {found.encoder!r}')
  vae, patch = parts.vaes[found.vae]
  head: FlowHeadConfig = parts.model.flow_head
  head = replace(head, mlp_dim=parts.mlp.get(found.design, head.mlp_dim))
  vision = parts.encoders[found.encoder]
  return replace(
    parts.model, design=found.design, vae=vae, patch=patch, vision=vision, flow_head=head
  )


def config(name: str, size: str, stage: str) -> TrainConfig:
  """The recipe of a row's stage. What understands alone has no loss of the flow."""
  found, parts = row(name), SIZES[size]
  base = common.base(stage, parts.base)
  base = replace(
    base,
    model=model(name, size),
    data=replace(base.data, phases=((0.0, DATA[found.data]),)),
    flow_coeff=0.0 if found.data == 'und' else 1.0,
    optimizer=replace(base.optimizer, accumulate=parts.turns),
  )
  return common.from_config_dict(common.to_config_dict(base, parts.base))


def get_config(which: str = '12-tiny'):
  """which: ROW, ROW-tiny, and either with -stage1."""
  name, *rest = which.split('-')
  size = 'tiny' if 'tiny' in rest else '1.5b'
  stage = 'stage1' if 'stage1' in rest else 'stage2'
  if rest not in ([], ['tiny'], ['stage1'], ['tiny', 'stage1']):
    raise UserError(f'configs/compare.py:{which}: expected ROW, ROW-tiny, or either with -stage1')
  return common.to_config_dict(config(name, size, stage), '')
