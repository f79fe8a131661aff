"""The train step: one function for every stage, size and mesh.

Axes:  B rows   V latent tokens   C channels   M images per row   k micro-batches
All that is random is drawn for the whole batch before it is cut, and sums are divided by counts of
the whole batch, so neither accumulation nor sharding changes the step.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tuna_jax import flow, losses
from tuna_jax.batch import Batch
from tuna_jax.data.tasks import TASKS
from tuna_jax.models.tuna import Tuna
from tuna_jax.sharding import active_mesh, back, near
from tuna_jax.train import optimizer as optimizer_lib
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.state import TrainState

TIME_BINS = 10  # equal parts of [0, 1], by which the flow loss is told


class Draws(NamedTuple):
  """What is random in a step."""

  noise: jax.Array  # float32[B, V, C] of the numbers that are drawn
  t: jax.Array  # float32[B, M]; 1 for an image that is clean
  masked: jax.Array | None  # bool[B, V], patches that the mask token stands for; None: never


def draw(batch: Batch, key, config: TrainConfig) -> Draws:
  """The draws of a batch. Images that are not drawn are clean, or nearly so by
  `config.context_noise`."""
  noise_key, time_key = jax.random.split(key)
  path = config.model.path
  t = flow.sample_t(time_key, batch.target.shape, config.time_shift, path)
  drawn = (*batch.latents.shape[:2], config.model.drawn_dim)
  noise = jax.random.normal(noise_key, drawn, jnp.float32)
  noise = noise if path.noise == 1 else path.noise * noise
  clean, masked = 1.0, None
  if config.context_noise[0]:
    clean = _context_times(batch, jax.random.fold_in(key, 2), *config.context_noise)
  if config.masked[1] > 0:
    masked = _masked(batch, jax.random.fold_in(key, 3), *config.masked)
  return Draws(noise, jnp.where(batch.target, t, clean), masked)


def _context_times(batch: Batch, key, share: float, level: float):
  """float32[B, M]: 1 - U(0, level) for a `share` of the images of examples that draw nothing, else
  1: the sources of an edit stay clean."""
  count = jnp.prod(batch.grid, axis=-1)
  first = jnp.minimum(jnp.cumsum(count, axis=1) - count, batch.place.shape[1] - 1)
  first = jnp.take_along_axis(batch.place, first, axis=1)
  example = jnp.take_along_axis(batch.segment, first, axis=1)
  together = example[:, :, None] == example[:, None, :]
  draws = jnp.any(together & (batch.target & (count > 0))[:, None, :], axis=-1)
  chosen, depth = jax.random.uniform(key, (2, *batch.target.shape))
  return jnp.where((chosen < share) & ~draws, 1 - level * depth, 1.0)


def _masked(batch: Batch, key, low: float, high: float):
  """bool[B, V]: of the N tokens of each image, N U(low, high) random ones, rounded down; none where
  that is below 1."""
  order_key, share_key = jax.random.split(key)
  count = jnp.prod(batch.grid, axis=-1)
  share = jax.random.uniform(share_key, count.shape, minval=low, maxval=high)
  # Sorted by image, and at random within it, padding first.
  order = jnp.argsort(batch.image + jax.random.uniform(order_key, batch.image.shape), axis=1)
  rank = jnp.argsort(order, axis=1) - batch.image.shape[1] + jnp.sum(count, axis=1, keepdims=True)
  end = jnp.cumsum(count, axis=1) - count + (count * share).astype(jnp.int32)
  owner = jnp.maximum(batch.image - 1, 0)
  return (batch.image > 0) & (rank < jnp.take_along_axis(end, owner, axis=1))


def loss_sums(params, batch: Batch, draws: Draws, *, config: TrainConfig) -> dict[str, losses.Sum]:
  """{'ntp': Sum, 'flow': Sum} by task and 'flow_t', the flow's by TIME_BINS parts of t, of one
  forward pass; 'ntp' alone if flow_coeff is 0."""
  model, (noise, t, masked) = Tuna(config.model), draws
  owner = jnp.maximum(batch.image - 1, 0)
  x_t, velocity = batch.latents, None
  drawn = config.flow_coeff > 0 and batch.latents.shape[1] > 0
  if drawn:
    per_token = jnp.take_along_axis(t, owner, axis=1)
    pixels, clean = None, batch.latents
    if config.model.seen_dim:
      pixels, clean = jnp.split(clean, [config.model.seen_dim], axis=-1)
    x_t, velocity = flow.interpolate(clean, noise, per_token)
    if config.model.path.predicts == 'clean':
      velocity = flow.velocity_to(clean, x_t, per_token)
    if pixels is not None:
      x_t = jnp.concatenate([pixels, x_t], axis=-1)
  out = model.apply({'params': params}, batch, x_t, t, flow=drawn, masked=masked)
  logits = functools.partial(model.apply, {'params': params}, method='logits')
  mesh = active_mesh()
  with jax.named_scope('next_token'):
    ntp = losses.next_token(
      logits, out.hidden, batch.labels, batch.label_weight, batch.task, len(TASKS),
      devices=1 if mesh is None else mesh.size // mesh.shape['tensor'],
    )  # fmt: skip
  sums = {'ntp': ntp}
  if drawn:
    selected = (batch.image > 0) & jnp.take_along_axis(batch.target, owner, axis=1)
    task = jnp.take_along_axis(batch.task, batch.place, axis=1)
    part = jnp.minimum(per_token * TIME_BINS, TIME_BINS - 1).astype(jnp.int32)
    for name, entry, entries in (('flow', task, len(TASKS)), ('flow_t', part, TIME_BINS)):
      with jax.named_scope('velocity_error'):
        sums[name] = losses.velocity_error(out.velocity, velocity, selected, entry, entries)
  return sums


def total_loss(sums: dict[str, losses.Sum], counts: dict[str, jax.Array], config: TrainConfig):
  """flow_coeff x mean flow loss + ntp_coeff x mean next-token loss, over the given counts."""
  coeff = {'ntp': config.ntp_coeff, 'flow': config.flow_coeff}
  return sum(
    coeff[name] * jnp.sum(sums[name].total) / jnp.maximum(count, 1e-6)
    for name, count in counts.items()
    if name in sums
  )


def _counts(batch: Batch) -> dict[str, jax.Array]:
  owner = jnp.maximum(batch.image - 1, 0)
  selected = (batch.image > 0) & jnp.take_along_axis(batch.target, owner, axis=1)
  return {'ntp': jnp.sum(batch.label_weight), 'flow': jnp.sum(selected.astype(jnp.float32))}


def loss_fn(leaves, params, batch: Batch, draws: Draws, counts, *, config: TrainConfig):
  """(loss, sums) as a function of the trainable `leaves`; the rest of `params` is constant."""
  sums = loss_sums(state_lib.merge(params, leaves), batch, draws, config=config)
  return total_loss(sums, counts, config), sums


def jit_step(config: TrainConfig, placed: TrainState):
  """`train_step`, jitted: the old state is donated, the new one has the shardings `placed`."""
  return jax.jit(
    functools.partial(train_step, config=config), donate_argnums=0, out_shardings=(placed, None)
  )


def train_step(state: TrainState, batch: Batch, key, *, config: TrainConfig):
  """One optimizer step -> (state, metrics).

  key: of the run; the step folds its own number in. metrics: 'loss', 'grad_norm', 'lr', 'filled'
  (share of the positions that hold an example), 'kept', 'sane', and the sums of `loss_sums`.

  Where loss, gradient or rate are no finite numbers the state stays as it was, except for its step,
  and 'kept' is false. 'sane' tells whether the latents of the batch are finite. The new parameters
  are not read once more, which would cost the memory of another copy of them: `state.not_finite`
  looks at them before they are saved.
  """
  transformation, multiples = state_lib.make_optimizer(config)
  draws = draw(batch, jax.random.fold_in(key, state.step), config)
  counts = _counts(batch)
  leaves = state_lib.select(state.params, multiples)
  grad_fn = jax.value_and_grad(functools.partial(loss_fn, config=config), has_aux=True)
  micro = config.optimizer.accumulate
  if micro == 1:
    (loss, sums), grads = grad_fn(leaves, state.params, batch, draws, counts)
  else:
    # Row b goes to micro-batch b mod k, so each device keeps its own rows.
    rows = batch.tokens.shape[0] // micro
    pieces = jax.tree.map(
      lambda a: jnp.swapaxes(a.reshape(rows, micro, *a.shape[1:]), 0, 1), (batch, draws)
    )

    def add(carry, piece):
      return jax.tree.map(jnp.add, carry, grad_fn(leaves, state.params, *piece, counts)), None

    zeros = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype),
      jax.eval_shape(grad_fn, leaves, state.params, *jax.tree.map(lambda a: a[0], pieces), counts),
    )
    ((loss, sums), grads), _ = jax.lax.scan(add, zeros, pieces)
  step = state.step + 1
  found = {
    'loss': loss,
    'grad_norm': optax.tree.norm(grads),
    'lr': jnp.asarray(optimizer_lib.schedule(config.optimizer, config.steps)(state.step)),
  }
  kept = jnp.all(jnp.isfinite(jnp.stack([*found.values()])))

  def update(old, ema, opt_state):
    # What lies in host memory comes here, once activations are gone, and goes back from here.
    with jax.named_scope('optimizer'):
      updates, moments = transformation.update(grads, near(opt_state), old)
      new = optax.apply_updates(old, updates)
    with jax.named_scope('average'):
      average = optimizer_lib.update_ema(near(ema), new, step, config.optimizer, key)
    return new, back(average, ema), back(moments, opt_state)

  # A choice between old and new numbers would hold both: the new parameters need all new moments.
  new, ema, opt_state = jax.lax.cond(
    kept, update, lambda *old: old, leaves, state.ema, state.opt_state
  )
  metrics = found | {
    'filled': jnp.mean((batch.segment > 0).astype(jnp.float32)),
    'kept': kept,
    'sane': jnp.all(jnp.isfinite(batch.latents)),
    **sums,
  }
  return TrainState(step, state_lib.merge(state.params, new), ema, opt_state), metrics
