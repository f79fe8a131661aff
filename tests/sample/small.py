"""A model of a few thousand parameters, all of them random: zeros would hide faults."""

import contextlib
import functools

import jax
import numpy as np

from tuna_jax import batch as batch_lib
from tuna_jax.config import DecoderConfig, FlowHeadConfig, TunaConfig, VaeConfig, VisionConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.tuna import Tuna
from tuna_jax.models.vae import WanVae

VAE = VaeConfig(
  latent_channels=8,
  encoder_dim=4,
  decoder_dim=4,
  dim_mult=(1, 1, 1, 1),
  encoder_blocks=1,
  decoder_blocks=1,
  latent_mean=(),
  latent_std=(),
)
CONFIG = TunaConfig(
  vision=VisionConfig(
    num_layers=2, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24, grid=3
  ),
  decoder=DecoderConfig(
    num_layers=2,
    dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    vocab_size=300,
    rope_theta=1e4,
  ),
  flow_head=FlowHeadConfig(
    num_layers=2, dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48
  ),
  vae=VAE,
  time_frequencies=16,
  dtype='float32',
  remat='none',
  attention='dense',
)  # dense compiles soonest


def randomise(shapes, seed):
  """Random values for every leaf of a tree of shapes, of a size at which every layer matters."""
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    values = rng.normal(size=shape.shape).astype(np.float32)
    if path[-1].key == 'kernel':
      return (
        values
        * (shape.size / shape.shape[-1] / (shape.shape[0] if 'layers' in str(path) else 1)) ** -0.5
      )
    return 0.2 * values + (path[-1].key == 'scale')

  return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def params():
  batch = batch_lib.empty(1, 16, 4, 1, CONFIG.vae.latent_channels)
  shapes = jax.eval_shape(
    Tuna(CONFIG).init, jax.random.key(0), batch, batch.latents, np.ones((1, 1), np.float32)
  )
  return randomise(shapes['params'], 0)


@functools.cache
def vae_params():
  shapes = jax.eval_shape(
    WanVae(VAE).init, jax.random.key(0), np.zeros((1, 5, 16, 16, 3), np.float32)
  )
  return randomise(shapes['params'], 1)


@functools.cache
def tokenizer():
  return Tokenizer.train(['a red ball', 'make it blue', 'what is this'], 300)


@contextlib.contextmanager
def compiled():
  """A list that holds an entry for each program compiled within the block."""
  found: list[dict] = []
  event = 'backend_compile_duration'
  listen = lambda name, _, **more: found.append(more) if name.endswith(event) else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
