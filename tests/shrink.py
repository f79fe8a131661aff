"""The one way a real stage config becomes small enough to test.

`stage('stage2', '2b')` keeps all that makes the stage what it is (what trains, mixture and phases,
losses, schedule, decay, clipping) and shrinks widths, depths, rows, lengths, pictures and steps.
"""

import atexit
import dataclasses
import functools
import importlib
import os
import pathlib
import shutil
import tempfile

import jax
import numpy as np
from tuna_jax.configs import common

from tuna_jax import sharding
from tuna_jax.config import DecoderConfig, TunaConfig, VaeConfig
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig, texts
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.mappings import to_dict
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.train.config import EncoderConfig, ReportConfig, TrainConfig
from tuna_jax.tree import name_of
from tuna_jax.weights import store

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES = ('stage1', 'stage2', 'stage3')


def real(name: str, size: str = 'tiny') -> TrainConfig:
  """The frozen config of configs/NAME.py:SIZE."""
  return common.from_config_dict(
    importlib.import_module(f'tuna_jax.configs.{name}').get_config(size)
  )


def stage(name: str, size: str = 'tiny', **changes) -> TrainConfig:
  """The shrunk config of a stage, frozen parts in place; `changes` are fields of TrainConfig."""
  config = shrink(real(name, size))
  folder = assets()
  config = dataclasses.replace(
    config, tokenizer=f'{folder}/tokenizer', vae=f'{folder}/vae' if config.visual else ''
  )
  return dataclasses.replace(config, **changes)


def shrink(config: TrainConfig) -> TrainConfig:
  """`config` with a model of some ten thousand parameters and rows of one or two examples."""
  data = dataclasses.replace(
    config.data,
    media=MediaConfig(image_size='64', video_size='64', frames=5),
    size=200,
    threads=1,
    prefetch=1,
    tasks=dataclasses.replace(config.data.tasks, system=None),
  )
  optimizer = dataclasses.replace(config.optimizer, warmup=1)
  visual, images = (64, 4) if config.visual else (0, 0)
  return dataclasses.replace(
    config,
    model=model(config.model),
    data=data,
    optimizer=optimizer,
    encoder=EncoderConfig(group_mb=0.05),  # four pictures
    report=ReportConfig(line_s=0),  # every step
    steps=3,
    rows=8,
    length=160,
    visual=visual,
    images=images,
    checkpoint_every=2,
    keep=3,
  )


def model(config: TunaConfig) -> TunaConfig:
  """`config` at width 32 and two layers, in float32; grouping of heads and the tied head stay."""

  def tower(t, **other):
    return dataclasses.replace(
      t,
      num_layers=2,
      dim=32,
      num_heads=4,
      num_kv_heads=4 if t.num_kv_heads == t.num_heads else 2,
      head_dim=16,
      mlp_dim=48,
      **other,
    )

  decoder: DecoderConfig = tower(config.decoder, vocab_size=384)
  return dataclasses.replace(
    config,
    vision=config.vision and tower(config.vision, grid=4),
    decoder=decoder,
    flow_head=tower(config.flow_head),
    vae=config.vae and vae(config.vae),
    time_frequencies=16,
    dtype='float32',
  )


def vae(config: VaeConfig) -> VaeConfig:
  """`config` four channels wide; its strides stay."""
  return dataclasses.replace(
    config,
    latent_channels=8,
    encoder_dim=4,
    decoder_dim=4,
    dim_mult=(1,) * len(config.dim_mult),
    encoder_blocks=1,
    decoder_blocks=1,
    latent_mean=(),
    latent_std=(),
  )


@functools.cache
def assets() -> str:
  """A directory with the frozen parts of a shrunk run: `tokenizer`, and a random `vae`."""
  folder = tempfile.mkdtemp(prefix='tuna_jax_assets_')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  Tokenizer.train(texts(DataConfig(tasks=real('stage2').data.tasks), limit=30), 384).save(
    f'{folder}/tokenizer'
  )
  small = vae(VaeConfig())
  store.save(f'{folder}/vae', small, randomise(vae_shapes(small), 0))
  return folder


def randomise(abstract, seed: int, scale: float = 0.1):
  """Random numbers in the shape of a tree, scales around 1; what starts at 0 would hide faults."""
  rng = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(
    lambda path, a: (scale * rng.normal(size=a.shape) + name_of(path).endswith('scale')).astype(
      a.dtype
    ),
    abstract,
  )


def gpus(sizes=(1, 1, 1, 1)) -> jax.sharding.AbstractMesh:
  """A mesh of GPUs that are not here, to lower for."""
  device = jax.sharding.AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu')
  kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
  return jax.sharding.AbstractMesh(sizes, sharding.AXES, kinds, abstract_device=device)


def flags(devices: int) -> str:
  """XLA_FLAGS of a process that is to see so many devices; the last of two equal flags counts."""
  return f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'


def overrides(config: TrainConfig, base: TrainConfig) -> list[str]:
  """The command-line flags that turn `base`, a config file's own, into `config`."""
  flat = [_flatten(to_dict(c)) for c in (config, base)]
  return [f'--config.{name}={value}' for name, value in flat[0].items() if value != flat[1][name]]


def _flatten(mapping, prefix=''):
  out = {}
  for key, value in mapping.items():
    out |= (
      _flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    )
  return out
