"""What every stage shares, and how a config file becomes a TrainConfig.

`get_config('tiny')` of a stage returns an ml_collections.ConfigDict of a whole `TrainConfig`, so
that any field can be set on the command line: `--config=configs/stage2.py:7b
--config.optimizer.lr=3e-5`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import ml_collections
from tuna_jax.configs import tiny

from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.flow import train_shift
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.sizes import UnknownSize
from tuna_jax.sizes import size as named_size
from tuna_jax.train.config import EncoderConfig, OptimizerConfig, TrainConfig


class Rows(NamedTuple):
  """B of a pod of 256 chips, L, V and M of a batch, and the frames of a clip."""

  rows: int
  length: int
  visual: int
  images: int
  frames: int


# What the largest example of a stage needs: two pictures of the class 512; a clip of 13 frames of
# 384x672 or four pictures; with `-video`, a clip of 49 frames. L leaves 512 positions (256 in stage
# 1, whose rows hold two examples) for `MAX_TEXT` and what surrounds pictures.
ROWS = {
  'decoder': Rows(2048, 2048, 0, 0, 13),
  'stage1': Rows(2048, 2304, 2048, 16, 13),
  'stage2': Rows(1024, 4608, 4096, 16, 13),
  'stage3': Rows(1024, 4608, 4096, 16, 13),
  'stage2-video': Rows(256, 13_824, 13_312, 16, 49),
  'stage3-video': Rows(256, 13_824, 13_312, 16, 49),
}
MAX_TEXT = 496
VIDEO = '-video'
LORA = '-lora'
# Adapters of every matrix of attention and MLP in the two large towers, for one host of chips.
ADAPTERS = OptimizerConfig(
  lr=1e-4,
  warmup=100,
  groups=(('.*/lora_[ab]', 1.0), ('.*', 0.0)),
  lora=(('(decoder|flow_head)/layers/(attn|mlp)/.*/kernel', 16, 32.0),),
)

# What the authors of a design trained with, where it is not what Tuna's did (docs/showo2.md 7,
# docs/pixel.md 2, 4 and 12). `frozen` is of stage 1: Show-o2's tower is distilled before.
_PIXELS = {'frozen': (), 'time_shift': 1.0, 'ntp_coeff': 1.0, 'context_noise': (0.1, 0.1)}
RELEASED = {
  'late_fusion': {'frozen': ('decoder/.*', 'vision/.*'), 'time_shift': train_shift(730)},
  'pixel_encoder': _PIXELS,
  'pixel': {**_PIXELS, 'masked': (-0.7, 0.3)},
}
SIDES = {'late_fusion': '432'}  # of pictures, where it is not 512
CLIPS = ('t2v', 'video_caption', 'video_vqa')


def base(stage: str, size: str) -> TrainConfig:
  """What the sizes of a stage share. `size` may end in -video, for clips of 49 frames, and then in
  -lora, for adapters beside a frozen model."""
  size = size.removesuffix(LORA)
  name = size.removesuffix(VIDEO)
  variant = stage + size.removeprefix(name)
  own = tiny.model_of(name)
  if variant not in ROWS or (size != name and own):
    raise UserError(f'{stage}:{size}: only 2b and 7b of stages 2 and 3 have rows for {VIDEO}')
  try:
    rows, model = ROWS[variant], named_size(own or name)
  except UnknownSize as error:
    raise UserError(
      f"{error}; 'fast' is the tiny one in fewer steps, and 2b and 7b may end in {VIDEO} and {LORA}"
    ) from None
  released = dict(RELEASED.get(model.design, ()))
  frozen = released.pop('frozen', ('decoder/.*',))
  if own:
    frozen = frozen[:1]  # the tower starts fresh
  groups = OptimizerConfig().groups
  if stage == 'stage1':
    groups = (*((name, 0.0) for name in frozen), *groups)
  elif stage != 'decoder' and model.design == 'late_fusion':
    released['ntp_coeff'] = 1.0
  return TrainConfig(
    model=model,
    stage=stage,
    steps=100_000,
    rows=rows.rows,
    length=rows.length,
    visual=rows.visual,
    images=rows.images,
    data=DataConfig(
      threads=8,
      prefetch=4,
      look_ahead=11,
      tasks=TaskConfig(max_text=MAX_TEXT),
      media=MediaConfig(image_size=SIDES.get(model.design, '512'), frames=rows.frames),
    ),
    optimizer=OptimizerConfig(groups=groups),
    encoder=EncoderConfig(dtype='bfloat16'),
    checkpoint_every=500,
    **released,
  )


def to_config_dict(config: TrainConfig, size: str) -> ml_collections.ConfigDict:
  """The ConfigDict of a stage; the tiny size first takes its own rates, steps and batch
  (`configs/tiny.py`), and adapters take theirs.
  """
  name = size.removesuffix(LORA)
  if tiny.model_of(name):
    config = tiny.shrink(config, name)
  if not tiny.model_of(name) and config.model.vae is None or config.model.pictures_only:
    # Pixels were trained as single frames only.
    phases = tuple(
      (start, tuple((task, weight) for task, weight in weights if task not in CLIPS))
      for start, weights in config.data.phases
    )
    config = replace(config, data=replace(config.data, phases=phases))
  if name != size:
    config = replace(
      config, rows=min(config.rows, 8), steps=2000, optimizer=ADAPTERS, frozen='bfloat16',
      initial='',
    )  # fmt: skip
  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def from_config_dict(config: ml_collections.ConfigDict) -> TrainConfig:
  """The frozen TrainConfig; an unknown field or a wrong type is named by its full path."""
  return from_dict(TrainConfig, config.to_dict())


replace = dataclasses.replace
