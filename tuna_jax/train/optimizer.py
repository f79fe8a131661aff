"""AdamW or Muon by name: learning-rate groups, decay mask, schedule. Frozen leaves never reach it."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import optax

from tuna_jax import tree
from tuna_jax.config import UserError
from tuna_jax.train.config import OptimizerConfig

_MOMENTUM = 0.95
_NEWTON_SCHULZ, _ITERATIONS = (
  (3.4445, -4.7750, 2.0315),
  5,
)  # Jordan's quintic: singular values end near 1
_ADAM_RMS = 0.2  # the usual size of Adam's update, in learning rates (arXiv 2502.16982)


def trainable(params, config: OptimizerConfig) -> dict[str, float]:
  """{leaf name: multiple of the learning rate} of the leaves that train, in the tree's order.

  Raises ValueError where a leaf has no group or a group selects nothing.
  """
  multiples = tree.flatten(tree.match_tree(params, config.groups, 'optimizer.groups row'))
  found = {name: m for name, m in multiples.items() if m}
  if not found:
    raise UserError(f'optimizer.groups={config.groups}: every leaf is frozen')
  return found


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up from 0, then `config.schedule`."""
  rest = max(steps - config.warmup, 1)
  after = {
    'constant': lambda: optax.constant_schedule(config.lr),
    'cosine': lambda: optax.cosine_decay_schedule(config.lr, rest, config.final_lr),
    'linear': lambda: optax.linear_schedule(config.lr, config.lr * config.final_lr, rest),
  }[config.schedule]()
  if not config.warmup:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, config.lr, config.warmup), after], [config.warmup]
  )


def make(
  config: OptimizerConfig, steps: int, multiples: dict[str, float]
) -> optax.GradientTransformation:
  """The transformation of a {leaf name: array} of the trainable leaves."""
  decays = {name: any(re.fullmatch(p, name) for p in config.decay) for name in multiples}

  def scale(updates, params=None):
    del params
    return {name: u * multiples[name] for name, u in updates.items()}

  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    scale_by(config.kind, config.b1, config.b2, config.eps),
    optax.add_decayed_weights(config.weight_decay, decays),
    optax.stateless(scale),
    optax.scale_by_learning_rate(schedule(config, steps)),
  )


def scale_by(kind: str, b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
  """Adam, or Muon for the kernels and Adam for the rest; one learning rate suits both.

  Muon (Jordan 2024, arXiv 2502.16982) replaces the momentum of a matrix by the nearest
  semi-orthogonal one; its update is scaled to the root mean square of Adam's. The first axis of a
  kernel with 3 or 5 axes (scanned layers, temporal taps of a convolution) counts matrices; of the
  others all but the last are inputs.
  """
  adam = optax.scale_by_adam(b1, b2, eps)
  if kind == 'adamw':
    return adam

  def like_adam(updates, params=None):
    del params
    return jax.tree.map(_orthogonal, updates)

  muon = optax.chain(optax.trace(_MOMENTUM, nesterov=True), optax.stateless(like_adam))
  kernels = functools.partial(
    jax.tree_util.tree_map_with_path,
    lambda path, leaf: (
      'muon' if leaf.ndim > 1 and tree.name_of(path).endswith('kernel') else 'adam'
    ),
  )
  return optax.partition({'muon': muon, 'adam': adam}, kernels)


def _orthogonal(update):
  """The semi-orthogonal matrix nearest to each matrix of `update`, at the root mean square of an
  update of Adam.
  """
  shape, stacked = update.shape, update.ndim % 2
  x = update.reshape(*shape[:stacked], -1, shape[-1])
  wide = x.shape[-2] <= x.shape[-1]
  x = x if wide else jnp.swapaxes(x, -1, -2)
  x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8
  a, b, c = _NEWTON_SCHULZ
  for _ in range(_ITERATIONS):
    square = x @ jnp.swapaxes(x, -1, -2)
    x = a * x + (b * square + c * (square @ square)) @ x
  x = x if wide else jnp.swapaxes(x, -1, -2)
  return (_ADAM_RMS * max(x.shape[-2:]) ** 0.5 * x).reshape(shape)


def update_ema(ema, params, step, decay: float):
  """The average after update number `step` (from 1), with the official warm-up; the first update
  copies.
  """
  n = step.astype(jnp.float32)
  d = jnp.where(step <= 1, 0.0, jnp.minimum(decay, (1 + n) / (10 + n)))
  return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
