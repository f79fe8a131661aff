"""`TrainState`, and how it starts.

The VAE is not in it. Frozen leaves stand in `params` only: no gradient, no moments, no average.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tuna_jax import batch as batch_lib
from tuna_jax import tree
from tuna_jax.config import TunaConfig
from tuna_jax.models import decoder
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.models.tuna import Tuna
from tuna_jax.train import optimizer
from tuna_jax.train.config import TrainConfig


class TrainState(NamedTuple):
  """step int32; params: the whole tree; ema and the moments in opt_state: {leaf name: array} of
  trainable leaves.
  """

  step: jax.Array
  params: Any
  ema: dict[str, jax.Array]
  opt_state: Any


def init_params(config: TunaConfig, key):
  """Fresh parameters of the whole model; shapes do not depend on any batch."""
  batch = batch_lib.empty(1, 4, 1, 1, config.token_dim)
  params = Tuna(config).init(key, batch, batch.latents, jnp.ones((1, 1)))['params']
  return {**params, 'decoder': decoder.looking_back(params['decoder'], config.decoder)}


def make_optimizer(config: TrainConfig):
  """(transformation, {trainable leaf: multiple}) of the run."""
  multiples = optimizer.trainable(tuna_shapes(config.model), config.optimizer)
  return optimizer.make(config.optimizer, config.steps, multiples), multiples


def from_params(params, config: TrainConfig) -> TrainState:
  """The state at step 0 around `params`."""
  transformation, multiples = make_optimizer(config)
  leaves = select(params, multiples)
  return TrainState(
    jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, leaves), transformation.init(leaves)
  )


def abstract_state(config: TrainConfig) -> TrainState:
  """Shapes and types of the state, computing nothing."""
  return jax.eval_shape(lambda: from_params(init_params(config.model, jax.random.key(0)), config))


def select(params, names) -> dict:
  """{name: leaf} of the named leaves."""
  flat = tree.flatten(params)
  return {name: flat[name] for name in names}


def merge(params, leaves: dict):
  """`params` with the named leaves replaced."""
  return jax.tree_util.tree_map_with_path(
    lambda path, old: leaves.get(tree.name_of(path), old), params
  )


def weights(state: TrainState):
  """What one evaluates: averaged where averaged, frozen elsewhere."""
  return merge(state.params, state.ema)
