"""AdamW or Muon: learning-rate groups, decay mask, schedule. Frozen leaves have no state here."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from tuna_jax import tree
from tuna_jax.config import UserError
from tuna_jax.train.config import OptimizerConfig

_MUON_RMS = 0.2  # of Muon's update: the usual size of Adam's, in learning rates (arXiv 2502.16982)


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
    scale_by(config.kind, config.b1, config.b2, config.eps, config.mu_dtype),
    optax.add_decayed_weights(config.weight_decay, decays),
    optax.stateless(scale),
    optax.scale_by_learning_rate(schedule(config, steps)),
  )


def scale_by(
  kind: str, b1: float, b2: float, eps: float = 1e-8, mu_dtype: str = 'float32'
) -> optax.GradientTransformation:
  """Adam; Muon for the kernels and Adam for the rest; or Adafactor. One learning rate suits all.

  Muon (Jordan 2024, arXiv 2502.16982) replaces the momentum of a matrix by the nearest
  semi-orthogonal one; its update has the root mean square of Adam's. The first axis of a kernel
  with 3 or 5 axes (scanned layers, temporal taps of a convolution) counts matrices; of the others
  all but the last are inputs. Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) holds the mean
  squares of the rows and of the columns of a matrix with at least 128 of each instead of those of
  all numbers, and clips an update by its root mean square; the first moment is that of Adam.
  """
  adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
  if kind == 'adamw':
    return adam
  if kind == 'adafactor':
    return optax.chain(
      optax.scale_by_factored_rms(epsilon=eps**2),  # beside squares, where Adam's is beside roots
      optax.clip_by_block_rms(1.0),
      optax.ema(b1, accumulator_dtype=mu_dtype),
    )
  matrices = lambda leaves: jax.tree.map(_matrix, leaves)
  muon = optax.chain(
    contrib.scale_by_muon(mu_dtype=mu_dtype, weight_dimension_numbers=matrices),
    optax.stateless(lambda updates, _: jax.tree.map(_like_adam, updates)),
  )
  kernels = lambda leaves: jax.tree_util.tree_map_with_path(
    lambda path, a: 'muon' if a.ndim > 1 and tree.name_of(path).endswith('kernel') else 'adam',
    leaves,
  )
  return optax.partition({'muon': muon, 'adam': adam}, kernels)


def _matrix(kernel) -> contrib.MuonDimensionNumbers:
  return contrib.MuonDimensionNumbers(tuple(range(kernel.ndim % 2, kernel.ndim - 1)), -1)


def _like_adam(update):
  """A semi-orthogonal [inputs, outputs] has root mean square 1 / sqrt(the larger of the two)."""
  inputs, outputs = math.prod(update.shape[update.ndim % 2 : -1]), update.shape[-1]
  return _MUON_RMS * math.sqrt(max(inputs, outputs)) * update


def update_ema(ema, params, step, config: OptimizerConfig, key=None):
  """The average after update number `step` (from 1), with the official warm-up; the first update
  copies. Between two of `ema_every` steps it stays. key: of the stochastic rounding to bfloat16.
  """
  every, n = config.ema_every, step.astype(jnp.float32)
  d = jnp.minimum(config.ema, (1 + n) / (10 + n)) ** every
  d = jnp.where(step <= every, 0.0, d)

  def update(ema):
    new = {name: d * e.astype(jnp.float32) + (1 - d) * params[name] for name, e in ema.items()}
    if config.ema_dtype == 'float32':
      return new
    keys = jax.random.split(jax.random.fold_in(key, step), len(new))
    return {name: rounded(a, k) for (name, a), k in zip(new.items(), keys)}

  if every == 1:
    return update(ema)
  return jax.lax.cond(step % every == 0, update, lambda ema: ema, ema)


def rounded(x, key):
  """float32 -> bfloat16, up or down by chance such that the mean is x: the small steps of an
  average would be lost by rounding to the nearest."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
