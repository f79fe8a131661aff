"""What every stage shares, and how a config file becomes a TrainConfig.

`get_config('tiny')` of a stage returns an ml_collections.ConfigDict of a whole `TrainConfig`, so
that any field can be set on the command line: `--config=configs/stage2.py:7b
--config.optimizer.lr=3e-5`.
"""

from __future__ import annotations

import dataclasses

import ml_collections
from tuna_jax.configs import tiny

from tuna_jax.config import from_dict, to_dict
from tuna_jax.data.mixture import DataConfig
from tuna_jax.sizes import size as named_size
from tuna_jax.train.config import OptimizerConfig, TrainConfig


def base(stage: str, size: str) -> TrainConfig:
  """What all stages of the published sizes share: 8 rows of 2,048 tokens per chip, on 256 chips."""
  return TrainConfig(
    model=named_size('tiny' if size in tiny.STEPS else size),
    stage=stage,
    steps=100_000,
    rows=2048,
    length=2048,
    visual=2048,
    images=16,
    data=DataConfig(threads=8, prefetch=4),
    optimizer=OptimizerConfig(),
    checkpoint_every=500,
  )


def to_config_dict(config: TrainConfig, size: str) -> ml_collections.ConfigDict:
  """The ConfigDict of a stage; the tiny size first takes its own rates, steps and batch
  (`configs/tiny.py`).
  """
  if size in tiny.STEPS:
    config = tiny.shrink(config, size)
  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def from_config_dict(config: ml_collections.ConfigDict) -> TrainConfig:
  """The frozen TrainConfig; an unknown field or a wrong type is named by its full path."""
  return from_dict(TrainConfig, config.to_dict())


replace = dataclasses.replace
