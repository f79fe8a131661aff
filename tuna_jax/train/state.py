"""`TrainState`, and how it starts.

The VAE is not in it. Frozen leaves stand in `params` only: no gradient, no moments, no average.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tuna_jax import sharding, tree
from tuna_jax.config import TunaConfig, UserError
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train import optimizer
from tuna_jax.train.config import TrainConfig
from tuna_jax.weights import fresh, lora, storage, store
from tuna_jax.weights.convert import place
from tuna_jax.weights.tensors import Lazy

_log = logging.getLogger(__name__)


class TrainState(NamedTuple):
  """step int32; params: the whole tree; ema and the moments in opt_state: {leaf name: array} of
  trainable leaves.
  """

  step: jax.Array
  params: Any
  ema: dict[str, jax.Array]
  opt_state: Any


COMPUTED = ('dtype', 'remat', 'attention', 'compat')  # of TunaConfig: how, and not what


def sized(config: TrainConfig, workdir) -> TrainConfig:
  """`config` with the model that the run in `workdir` has, or else `init_from`; what differs is
  logged.

  How it is computed stays as asked. Raises UserError where the designs differ.
  """
  source = workdir if store.is_stored(workdir) else config.init_from
  if not source:
    return config
  about = store.read_config(source)
  found = about['config'] if about['kind'] == 'tuna' else about['config'].get('model')
  if found is None:
    return config  # a VAE alone, which loading will name
  model = from_dict(TunaConfig, found)
  if model.design != config.model.design:
    raise UserError(
      f'{source}: holds a model of design {model.design!r}; the config is of '
      f'{config.model.design!r}'
    )
  model = dataclasses.replace(model, **{name: getattr(config.model, name) for name in COMPUTED})
  theirs, ours = _flat(to_dict(model)), _flat(to_dict(config.model))
  differ = [f'{k} {v!r} (config: {ours.get(k)!r})' for k, v in theirs.items() if v != ours.get(k)]
  if differ:
    more = f' and {len(differ) - 4} more' if len(differ) > 4 else ''
    _log.warning('the model is that of %s: %s%s', source, ', '.join(differ[:4]), more)
  return dataclasses.replace(config, model=model)


def _flat(value, name: str = '') -> dict:
  if not isinstance(value, dict):
    return {name: value}
  return {
    k: v for key, item in value.items() for k, v in _flat(item, f'{name}.{key}'.lstrip('.')).items()
  }


def shapes(config: TrainConfig):
  """The parameters of a run: the model's, with adapters, and frozen ones as they are held."""
  found = lora.extend(tuna_shapes(config.model), config.optimizer.lora)
  trained = optimizer.trainable(found, config.optimizer)
  adapters = {leaf for leaf in tree.names(found) if lora.is_adapter(leaf)}
  return storage.held(found, config.frozen, trained.keys() | adapters)


def first_params(config: TrainConfig, abstract=None):
  """The parameters at step 0, placed as `abstract` says: around those of `init_from`, or fresh,
  drawn from the run's seed, as `config.initial` changes them."""
  abstract = shapes(config) if abstract is None else abstract
  if config.init_from:
    change = functools.partial(as_held, config=config)
    return store.load_weights(config.init_from, abstract, change=change)
  own = tree.flatten(tuna_shapes(config.model))
  leaves = {leaf: fresh.fresh(leaf, aval, config.seed) for leaf, aval in own.items()}
  if config.initial:
    leaves = pkgutil.resolve_name(config.initial)(leaves, config=config.model)
  return place(as_held(leaves, config), abstract)


def with_base(state: TrainState, config: TrainConfig, abstract) -> TrainState:
  """The state of a checkpoint with all parameters: `own` ones, and the others of `init_from`."""
  if not config.apart:
    return state
  return state._replace(params=merge(first_params(config, abstract), tree.flatten(state.params)))


def as_held(leaves: Mapping[str, Lazy], config: TrainConfig) -> dict[str, Lazy]:
  """The model's own leaves as `shapes` has them; adapters that are not there are new."""
  wanted = tree.flatten(shapes(config))
  leaves = lora.added(leaves, wanted, config.optimizer.lora, config.seed)
  return storage.fitted(leaves, wanted)


def make_optimizer(config: TrainConfig):
  """(transformation, {trainable leaf: multiple}) of the run."""
  multiples = optimizer.trainable(shapes(config), config.optimizer)
  return optimizer.make(config.optimizer, config.steps, multiples), multiples


def from_params(params, config: TrainConfig) -> TrainState:
  """The state at step 0 around `params`."""
  transformation, multiples = make_optimizer(config)
  leaves = select(params, multiples)
  ema = {name: jnp.array(a, config.optimizer.ema_dtype) for name, a in leaves.items()}
  return TrainState(jnp.zeros((), jnp.int32), params, ema, transformation.init(leaves))


def abstract_state(config: TrainConfig) -> TrainState:
  """Shapes and types of the state, computing nothing."""
  make = functools.partial(from_params, config=config)
  return jax.eval_shape(make, shapes(config))


def shardings(state: TrainState, mesh, config: TrainConfig) -> TrainState:
  """Where the state lies: by `sharding.RULES`, and in host memory what `optimizer.host` names."""
  placed = sharding.shardings(state, mesh)
  for name, part in (('moments', 'opt_state'), ('ema', 'ema')):
    if name in config.optimizer.host:
      # A number or two stay: a scalar in host memory is not worth a transfer.
      far = jax.tree.map(
        lambda a, s: s.with_memory_kind('pinned_host') if a.ndim else s,
        getattr(state, part),
        getattr(placed, part),
      )
      placed = placed._replace(**{part: far})
  return placed


def own(params, config: TrainConfig):
  """What a checkpoint holds of `params`: all, or what trains and its adapters where the rest is in
  `init_from`."""
  if not config.apart:
    return params
  trained = make_optimizer(config)[1]
  found = tree.flatten(params)
  return tree.unflatten(
    {leaf: a for leaf, a in found.items() if leaf in trained or lora.is_adapter(leaf)}
  )


def select(params, names) -> dict:
  """{name: leaf} of the named leaves."""
  flat = tree.flatten(params)
  return {name: flat[name] for name in names}


def merge(params, leaves: dict):
  """`params` with the named leaves replaced."""
  return jax.tree_util.tree_map_with_path(
    lambda path, old: leaves.get(tree.name_of(path), old), params
  )


def not_finite(state: TrainState) -> list[str]:
  """The names of the leaves that hold a number that is not finite, in order."""
  found = jax.device_get(_finite(state))
  return [name for name, fine in tree.flatten(found).items() if not fine]


@jax.jit
def _finite(state: TrainState):
  return jax.tree.map(lambda a: jnp.all(jnp.isfinite(a)), sharding.near(state))


def weights(state: TrainState):
  """What one evaluates: averaged where averaged, frozen elsewhere."""
  averages = {name: a.astype(jnp.float32) for name, a in sharding.near(state.ema).items()}
  return merge(state.params, averages)
