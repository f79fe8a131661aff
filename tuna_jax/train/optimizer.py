"""AdamW by name: learning-rate groups, decay mask, schedule. Frozen leaves never reach it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax

from tuna_jax import tree
from tuna_jax.train.config import OptimizerConfig


def trainable(params, config: OptimizerConfig) -> dict[str, float]:
  """{leaf name: multiple of the learning rate} of the leaves that train, in the tree's order.

  Raises ValueError where a leaf has no group or a group selects nothing.
  """
  multiples = tree.flatten(tree.match_tree(params, config.groups, 'optimizer.groups row'))
  found = {name: m for name, m in multiples.items() if m}
  if not found:
    raise ValueError(f'optimizer.groups={config.groups}: every leaf is frozen')
  return found


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up from 0, then `config.schedule`."""
  rest = max(steps - config.warmup, 1)
  after = {'constant': lambda: optax.constant_schedule(config.lr),
           'cosine': lambda: optax.cosine_decay_schedule(config.lr, rest, config.final_lr),
           'linear': lambda: optax.linear_schedule(config.lr, config.lr * config.final_lr, rest)}[config.schedule]()
  if not config.warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, config.lr, config.warmup), after], [config.warmup])


def make(config: OptimizerConfig, steps: int, multiples: dict[str, float]) -> optax.GradientTransformation:
  """The transformation of a {leaf name: array} of the trainable leaves."""
  decays = {name: any(re.fullmatch(p, name) for p in config.decay) for name in multiples}

  def scale(updates, params=None):
    del params
    return {name: u * multiples[name] for name, u in updates.items()}

  return optax.chain(
      optax.clip_by_global_norm(config.clip),
      optax.scale_by_adam(config.b1, config.b2, config.eps),
      optax.add_decayed_weights(config.weight_decay, decays),
      optax.stateless(scale),
      optax.scale_by_learning_rate(schedule(config, steps)))


def update_ema(ema, params, step, decay: float):
  """The average after update number `step` (from 1), with the official warm-up; the first update copies."""
  n = step.astype(jnp.float32)
  d = jnp.where(step <= 1, 0.0, jnp.minimum(decay, (1 + n) / (10 + n)))
  return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
