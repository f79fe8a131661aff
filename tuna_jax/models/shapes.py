"""What a config's parameters are, without making any: trees of jax.ShapeDtypeStruct."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from tuna_jax import batch as batches
from tuna_jax.config import TunaConfig, VaeConfig
from tuna_jax.models.tuna import Tuna
from tuna_jax.models.vae import WanVae


def tuna_shapes(config: TunaConfig):
  """The parameters of `Tuna(config)`: nested dicts of float32 ShapeDtypeStruct."""
  # They depend neither on what layers keep nor on how attention is computed; tracing takes time.
  found = _tuna_shapes(dataclasses.replace(config, remat='block', attention='dense'))
  return jax.tree.map(lambda a: a, found)


@functools.cache
def _tuna_shapes(config: TunaConfig):
  batch = batches.empty(rows=1, length=2, visual=1, images=1, channels=config.token_dim)
  return jax.eval_shape(
    Tuna(config).init, jax.random.key(0), batch, batch.latents, jnp.zeros((1, 1))
  )['params']


def vae_shapes(config: VaeConfig):
  """The parameters of `WanVae(config)`, encoder and decoder."""
  return jax.tree.map(lambda a: a, _vae_shapes(config))


@functools.cache
def _vae_shapes(config: VaeConfig):
  stride = config.spatial_stride
  video = jax.ShapeDtypeStruct((1, 1, stride, stride, 3), jnp.float32)
  return jax.eval_shape(WanVae(config).init, jax.random.key(0), video)['params']
