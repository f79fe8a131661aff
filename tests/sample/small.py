"""A model of a few thousand parameters, all of them random: what starts at zero would hide faults."""

import functools

import jax
import numpy as np

from tuna_jax import batch as batch_lib
from tuna_jax.config import (
  DecoderConfig,
  FlowHeadConfig,
  TunaConfig,
  VaeConfig,
  VisionConfig,
)
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.tuna import Tuna
from tuna_jax.models.vae import WanVae

VAE = VaeConfig(latent_channels=8, encoder_dim=4, decoder_dim=4, dim_mult=(1, 1, 1, 1), encoder_blocks=1,
                decoder_blocks=1, latent_mean=(), latent_std=())
CONFIG = TunaConfig(
    vision=VisionConfig(num_layers=2, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24, grid=3),
    decoder=DecoderConfig(num_layers=2, dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48, vocab_size=300,
                          rope_theta=1e4),
    flow_head=FlowHeadConfig(num_layers=2, dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48),
    vae=VAE, time_frequencies=16, dtype='float32', remat='none')


def randomise(params, seed, scale=0.2):
  """Every leaf moved away from what it starts as."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(tree, [np.asarray(x) + scale * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


@functools.cache
def params():
  batch = batch_lib.empty(1, 16, 4, 1, CONFIG.vae.latent_channels)
  shapes = jax.eval_shape(Tuna(CONFIG).init, jax.random.key(0), batch, batch.latents, np.ones((1, 1), np.float32))
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes['params'])
  return randomise(zeros, 0)


@functools.cache
def vae_params():
  shapes = jax.eval_shape(WanVae(VAE).init, jax.random.key(0), np.zeros((1, 5, 16, 16, 3), np.float32))
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes['params'])
  return randomise(zeros, 1)


@functools.cache
def tokenizer():
  return Tokenizer.train(['a red ball', 'make it blue', 'what is this'], 300)
