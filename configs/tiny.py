"""What the tiny size changes in each stage: rows of a few examples, higher rates, minutes instead
of days.

The order of the stages and what trains in each stays. Rates are those of a model of two million
parameters.
"""

from __future__ import annotations

import dataclasses

from tuna_jax.data.media import MediaConfig
from tuna_jax.toy import questions
from tuna_jax.train.config import MeshConfig, TrainConfig

# stage: (steps, lr, warm-up); 'fast' is the five-minute version of the same.
STEPS = {
  'tiny': {
    'decoder': (2500, 1e-3, 80),
    'stage1': (1000, 2e-3, 80),
    'stage2': (9800, 1e-3, 80),
    'stage3': (1200, 4e-4, 40),
  },
  'fast': {
    'decoder': (400, 1e-3, 40),
    'stage1': (250, 2e-3, 40),
    'stage2': (1000, 1.2e-3, 40),
    'stage3': (60, 4e-4, 10),
  },
}


def shrink(config: TrainConfig, size: str) -> TrainConfig:
  """`config` at the size 'tiny', or 'fast' with fewer steps."""
  steps, lr, warmup = STEPS[size][config.stage]
  rows, length = 4, 128
  visual, images = (80, 5) if config.visual else (0, 0)
  data = dataclasses.replace(
    config.data,
    media=MediaConfig(image_size='64', video_size='64', frames=9),
    threads=1,
    prefetch=2,
    encode_batch=2,
    tasks=dataclasses.replace(
      config.data.tasks,
      system=None,
      questions=(questions.DESCRIBE,),
      video_questions=(questions.DESCRIBE_CLIP,),
    ),
  )
  # The decoder finds things by their names sooner at half the rate of what draws.
  groups = (
    (('decoder/.*', 0.5), ('.*', 1.0)) if config.stage == 'stage2' else config.optimizer.groups
  )
  optimizer = dataclasses.replace(
    config.optimizer, lr=lr, warmup=warmup, schedule='linear', final_lr=0.1, ema=0.99, groups=groups
  )
  return dataclasses.replace(
    config,
    steps=steps,
    rows=rows,
    length=length,
    visual=visual,
    images=images,
    data=data,
    optimizer=optimizer,
    mesh=MeshConfig(data=-1, fsdp=1),
    ntp_coeff=1.0,
    time_shift=3.0,
    initial='tuna_jax.toy.initial:previous_token_heads',
    checkpoint_every=10**6,
    keep=1,
  )
