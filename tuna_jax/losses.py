"""The two losses as weighted sums with counts, merged before dividing.

Axes:  B rows   L positions   V latent tokens   C latent channels   D width   N tasks
A mean over a pod is the sum of totals / the sum of counts, so neither sharding nor gradient
accumulation changes it; an empty sum is 0, not NaN (docs/architecture.md 13.2, B3 and B21).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

CHUNK = 2048  # tokens per device; their logits over 151,680 ids take 1.2 GB in float32


class Sum(NamedTuple):
  """One entry per task: total float32[N] and count float32[N]."""

  total: jax.Array
  count: jax.Array

  def mean(self):
    """Total over all tasks by count over all tasks; 0 where nothing was counted."""
    return jnp.sum(self.total) / jnp.maximum(jnp.sum(self.count), 1e-6)


def _by_task(values, weights, task, tasks: int) -> Sum:
  one_hot = jax.nn.one_hot(task, tasks, dtype=jnp.float32)
  weights = weights.astype(jnp.float32)
  axes = tuple(range(values.ndim))
  return Sum(
    jnp.tensordot(values * weights, one_hot, (axes, axes)),
    jnp.tensordot(weights, one_hot, (axes, axes)),
  )


def next_token(
  logits_fn: Callable,
  hidden,
  labels,
  weight,
  task,
  tasks: int,
  *,
  devices: int = 1,
  chunk: int | None = None,
) -> Sum:
  """Cross-entropy of the next token, `chunk` positions at a time: [B, L, vocab] never exists.

  By default a chunk holds CHUNK tokens of each of the `devices` that tokens are spread over. A
  smaller one costs more, since every chunk gathers the language head from the other devices.

  Args:
    logits_fn: hidden [B, n, D] -> float32[B, n, vocab].
    labels, weight: [B, L], already shifted: the target *of* position l.
    task: int32[B, L] in [0, tasks).
  """
  rows, length = labels.shape
  if chunk is None:
    chunk = max(CHUNK * devices // rows, 1)
  chunk = min(chunk, length)

  @jax.checkpoint
  def part(carry, piece):
    h, y, w, k = piece
    logits = logits_fn(h).astype(jnp.float32)
    picked = jnp.sum(logits, axis=-1, where=y[..., None] == jnp.arange(logits.shape[-1]))
    nll = jax.nn.logsumexp(logits, axis=-1) - picked
    return jax.tree.map(jnp.add, carry, _by_task(nll, w, k, tasks)), None

  pad = -length % chunk
  pieces = tuple(
    rearrange(
      jnp.pad(a, ((0, 0), (0, pad), *[(0, 0)] * (a.ndim - 2))), 'b (n c) ... -> n b c ...', c=chunk
    )
    for a in (hidden, labels, weight, task)
  )
  zero = jnp.zeros((tasks,), jnp.float32)
  return jax.lax.scan(part, Sum(zero, zero), pieces)[0]


def velocity_error(predicted, velocity, selected, task, tasks: int) -> Sum:
  """Squared error of the velocity, averaged over the channels of each latent token.

  predicted, velocity [B, V, C]; selected bool[B, V], tokens of images that are drawn; task
  int32[B, V].
  """
  error = jnp.mean(
    jnp.square(predicted.astype(jnp.float32) - velocity.astype(jnp.float32)), axis=-1
  )
  return _by_task(error, selected, task, tasks)
