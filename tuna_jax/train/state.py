"""`TrainState`, and how it starts.

The VAE is not in it. Frozen leaves stand in `params` only: no gradient, no moments, no average.
"""

from __future__ import annotations

import functools
import pkgutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tuna_jax import tree
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train import optimizer
from tuna_jax.train.config import TrainConfig
from tuna_jax.weights import fresh


class TrainState(NamedTuple):
  """step int32; params: the whole tree; ema and the moments in opt_state: {leaf name: array} of
  trainable leaves.
  """

  step: jax.Array
  params: Any
  ema: dict[str, jax.Array]
  opt_state: Any


def init_params(config: TrainConfig, shardings=None):
  """Fresh parameters of the run's model, drawn from its seed, as `config.initial` changes them."""
  change = None
  if config.initial:
    change = functools.partial(pkgutil.resolve_name(config.initial), config=config.model)
  return fresh.init(tuna_shapes(config.model), config.seed, shardings, change)


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
  make = functools.partial(from_params, config=config)
  return jax.eval_shape(make, tuna_shapes(config.model))


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
