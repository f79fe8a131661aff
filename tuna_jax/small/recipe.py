"""The configs of a small run: sizes measured on its data, steps that fit its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from tuna_jax.config import TunaConfig, VaeConfig
from tuna_jax.data import examples
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig, open_sources
from tuna_jax.data.records import BadRecord
from tuna_jax.data.tasks import Context, TaskConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.sample.image import Usual
from tuna_jax.toy.sizes import TINY
from tuna_jax.toy.train_vae import VaeTrainConfig
from tuna_jax.train.config import EncoderConfig, MeshConfig, OptimizerConfig, TrainConfig

# What a task counts in the mixture, times the weight of its row: questions are learned slowest.
TASKS = dict(
  t2i=0.5, caption=0.15, vqa=0.5, edit=0.2, t2v=0.15, video_caption=0.05, video_vqa=0.1, text=0.05
)
DRAWN = ('t2i', 'edit', 't2v')
# The share of the time of the parts whose steps are not measured on the part before.
SHARES = {'vae': 0.2, 'decoder': 0.03, 'report': 0.08}
# Of each stage: learning rate, and what is left of it at the end.
RATES = {
  'decoder': (1e-3, 0.1),
  'stage1': (1e-3, 1.0),
  'stage2': (1e-3, 0.4),
  'stage3': (4e-4, 0.02),
}
SAMPLING = Usual(guidance=1.5, points=16)
RANK = 16  # of adapters; their alpha is twice that
FIRST = 200  # steps of stage 1 at most; they measure how long a step takes
COSTLIER = 5  # a step of stage 1 took 3 to 6 times one of the decoder, which bounds its steps
MEASURED = 200  # records per source that rows are sized for
VOCABULARY = 4096  # at most
LONGEST = 512  # tokens of a text; records with longer ones are passed over


def model(tokenizer: Tokenizer, vae_config: VaeConfig) -> TunaConfig:
  """The tiny model, for these words and these latents."""
  decoder = dataclasses.replace(TINY.decoder, vocab_size=tokenizer.vocab_size)
  return dataclasses.replace(TINY, vae=vae_config, decoder=decoder, remat='none')


def data_config(mixture: str, media: MediaConfig, tasks: Sequence[str], latents: str) -> DataConfig:
  """What is read, and the share of each task. latents: the folder of latents of all stages."""
  return DataConfig(
    mixture=mixture,
    phases=((0.0, tuple((task, TASKS[task]) for task in dict.fromkeys(tasks))),),
    tasks=TaskConfig(system=None, max_text=LONGEST),
    media=media,
    max_skip_share=0.5,
    latent_cache_dir=latents,
  )


def vae(data: DataConfig, seed: int) -> VaeTrainConfig:
  """The VAE's training; its steps are for the budget to set. Pictures that are only looked at keep
  three times the channels: nothing has to draw them."""
  draws = any(task in DRAWN for task, _ in data.phases[0][1])
  channels = TINY.vae.latent_channels * (1 if draws else 3)
  return VaeTrainConfig(
    model=dataclasses.replace(TINY.vae, latent_channels=channels), data=data, seed=seed
  )


@dataclasses.dataclass(frozen=True)
class Rows:
  """L, V and M of a row that holds a few examples of the data."""

  length: int
  visual: int
  images: int


ROWS = 8  # of a batch: of 4, half of a step's time on a CPU is the optimizer's
HELD = 4  # examples of mean size that a row holds


def rows(data: DataConfig, tokenizer: Tokenizer, strides: tuple[int, int]) -> Rows:
  """Sizes of a row, from records of each source: the first ones, and some from all over it."""
  needs, rng = [], np.random.default_rng(0)
  asked = {task for _, weights in data.phases for task, _ in weights}
  for source in (source for source in open_sources(data) if source.task in asked):
    spread = np.linspace(0, len(source) - 1, min(MEASURED, len(source))).astype(int)
    for i in {*spread.tolist(), *range(min(MEASURED, len(source)))}:
      try:
        laid = examples.example(source, i, Context(tokenizer, data.tasks), rng, strides)
      except BadRecord:  # named and counted when the data are trained on
        continue
      needs.append((laid.length, laid.cells, laid.images))
  most, mean = np.max(needs, 0), np.mean(needs, 0)
  length = max(most[0], HELD * mean[0])
  share = length / mean[0]  # examples per row
  round_up = lambda n, k: int(-(-n // k) * k)
  visual, images = (max(m, share * n * 1.2) if m else 0 for m, n in zip(most[1:], mean[1:]))
  return Rows(round_up(length, 16), round_up(visual, 16), round_up(images, 1))


def stage(
  name: str, data: DataConfig, sizes: Rows, steps: int, model: TunaConfig, **changes
) -> TrainConfig:
  """A stage in which everything trains that the data can teach: the decoder at half the rate, so
  that it finds named things sooner, and the flow head where there is something to draw."""
  tasks = dict(data.phases[0][1])
  draws = sizes.visual > 0 and any(task in tasks for task in DRAWN)
  seen = (('.*', 1.0),) if sizes.visual else (('.*', 0.0),)
  still = () if draws or not sizes.visual else (('flow_head/.*', 0.0),)
  decoder = 0.5 if sizes.visual else 1.0
  groups = (('decoder/.*', decoder), *still, *seen)
  flow, (lr, final) = (1.0 if draws else 0.0), RATES[name]
  devices = jax.device_count()
  rows = -(-ROWS // devices) * devices
  return TrainConfig(
    model=model, stage=name, steps=steps, rows=rows, **dataclasses.asdict(sizes), data=data,
    optimizer=OptimizerConfig(
      kind='muon', lr=lr, warmup=min(40, steps), schedule='linear', final_lr=final,
      ema=0.99, groups=groups,
    ),
    mesh=MeshConfig(data=-1, fsdp=1), encoder=EncoderConfig(group_mb=0.05), ntp_coeff=1.0,
    flow_coeff=flow, time_shift=3.0, sampling=SAMPLING,
    initial='tuna_jax.toy.initial:previous_token_heads', keep=2, **changes,
  )  # fmt: skip


def adapters(
  data: DataConfig, sizes: Rows, steps: int, model: TunaConfig, time_shift: float, **changes
) -> TrainConfig:
  """Adapters of the decoder and, where there is something to draw, of the flow head, beside a model
  that stays. The learning rate is 1e-4 at a width of 2,000, and higher for a narrower one."""
  draws = sizes.visual > 0 and any(task in DRAWN for task, _ in data.phases[0][1])
  towers = '(decoder|flow_head)' if draws else 'decoder'
  devices = jax.device_count()
  return TrainConfig(
    model=model, stage='lora', steps=steps, rows=-(-ROWS // devices) * devices,
    **dataclasses.asdict(sizes), data=data, frozen='bfloat16',
    optimizer=OptimizerConfig(
      lr=min(2e-3, 0.2 / model.decoder.dim), warmup=40, schedule='linear', final_lr=0.1, ema=0.99,
      groups=(('.*/lora_[ab]', 1.0), ('.*', 0.0)),
      lora=((f'{towers}/layers/(attn|mlp)/.*/kernel', RANK, 2.0 * RANK),),
    ),
    encoder=EncoderConfig(dtype=model.dtype), ntp_coeff=1.0, flow_coeff=1.0 if draws else 0.0,
    time_shift=time_shift, keep=2, **changes,
  )  # fmt: skip
