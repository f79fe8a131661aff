"""What the tiny size changes in each stage: rows of a few examples, higher rates, minutes instead of days.

The order of the stages and what trains in each stays. Rates are those of a model of two million parameters.
"""

from __future__ import annotations

import dataclasses

from tuna_jax.data import speech
from tuna_jax.data.media import MediaConfig
from tuna_jax.train.config import TrainConfig

# stage: (steps, lr, warm-up)
STEPS = {
    'decoder': (300, 3e-3, 20),
    'stage1': (500, 3e-3, 30),
    'stage2': (900, 2e-3, 30),
    'stage3': (200, 5e-4, 10),
}


def shrink(config: TrainConfig) -> TrainConfig:
  """`config` at the tiny size."""
  steps, lr, warmup = STEPS[config.stage]
  rows, length = 8, 256
  visual, images = (144, 10) if config.visual else (0, 0)
  data = dataclasses.replace(
      config.data, media=MediaConfig(image_size='64', video_size='64', frames=9), threads=1, prefetch=2, encode_batch=32,
      tasks=dataclasses.replace(config.data.tasks, system=None, questions=(speech.DESCRIBE,),
                                video_questions=(speech.DESCRIBE_CLIP,)))
  optimizer = dataclasses.replace(
      config.optimizer, lr=lr, warmup=warmup, schedule='linear', final_lr=0.1, ema=0.99)
  return dataclasses.replace(
      config, steps=steps, rows=rows, length=length, visual=visual, images=images, data=data, optimizer=optimizer,
      ntp_coeff=1.0, checkpoint_every=10**6, keep=1)


