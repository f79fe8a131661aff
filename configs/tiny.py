"""What the tiny size changes in each stage: rows of a few examples, fewer steps, and the learning
rates of a model of two million parameters. What trains in each stage stays.

`tiny-DESIGN` and `fast-DESIGN` are the same in another design, such as `fast-late_fusion`.
"""

from __future__ import annotations

import dataclasses

from tuna_jax.data.media import MediaConfig
from tuna_jax.sample.image import Usual
from tuna_jax.toy import questions
from tuna_jax.train.config import EncoderConfig, MeshConfig, TrainConfig

# size -> stage -> (steps, lr, warm-up); 'fast' takes five minutes.
# fmt: off
STEPS = {
  'tiny': {'decoder': (2500, 1e-3, 80), 'stage1': (1000, 2e-3, 80),
           'stage2': (9800, 1e-3, 80), 'stage3': (1200, 4e-4, 40)},
  'fast': {'decoder': (400, 1e-3, 40), 'stage1': (250, 2e-3, 40),
           'stage2': (1000, 1.2e-3, 40), 'stage3': (60, 4e-4, 10)},
}
# fmt: on


def model_of(size: str) -> str:
  """The model's name of a size of STEPS in any design; '' for other sizes."""
  name, dash, design = size.partition('-')
  return f'tiny{dash}{design}' if name in STEPS else ''


def shrink(config: TrainConfig, size: str) -> TrainConfig:
  """`config` at the size 'tiny', or 'fast' with fewer steps."""
  steps, lr, warmup = STEPS[size.partition('-')[0]][config.stage]
  replace = dataclasses.replace
  asked = dict(questions=(questions.DESCRIBE,), video_questions=(questions.DESCRIBE_CLIP,))
  tasks = replace(config.data.tasks, system=None, max_text=0, **asked)
  media = MediaConfig(image_size='64', video_size='64', frames=9)
  batching = dict(threads=1, prefetch=2, look_ahead=3)
  rates = dict(lr=lr, warmup=warmup, schedule='linear', final_lr=0.1, ema=0.99)
  if config.stage == 'stage2':  # at half the rate, the decoder learns sooner to find named things
    rates['groups'] = (('decoder/.*', 0.5), ('.*', 1.0))
  sizes = dict(rows=4, length=128, visual=80, images=5)
  if config.model.vae is None:
    sizes = dict(rows=2, length=256, visual=160, images=10)  # a clip has 9 x 16 patches
    config = replace(config, context_noise=(0.0, 0.0), masked=(0.0, 0.0))
  if not config.visual:
    sizes |= dict(visual=0, images=0)
  return replace(
    config,
    steps=steps,
    **sizes,
    data=replace(config.data, tasks=tasks, media=media, **batching),
    optimizer=replace(config.optimizer, **rates),
    encoder=EncoderConfig(group_mb=0.03),  # two pictures
    mesh=MeshConfig(data=-1, fsdp=1),
    ntp_coeff=1.0,
    sampling=Usual(guidance=1.5, points=16),
    time_shift=1.0 if config.model.vae is None else 3.0,
    initial='tuna_jax.toy.initial:previous_token_heads',
    checkpoint_every=10**6,
    keep=1,
  )
