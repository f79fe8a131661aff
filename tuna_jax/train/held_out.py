"""The loss on records that are not trained on, always of the same batches, noise and times."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from tuna_jax.train import metrics, step
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.feed import Feed


class HeldOut:
  """Batches of `config.report.held_out`, of the run's sizes and on its mesh. They are read and the
  program is compiled here, so that a run does not meet a fault of theirs in its middle."""

  def __init__(self, config: TrainConfig, feed: Feed, mesh, params):
    """params: of the run, or their shapes."""
    self._key, self._config = jax.random.key(config.seed), config
    data = dataclasses.replace(
      config.data, mixture=config.report.held_out, phases=(), prefetch=0, latent_cache_dir=''
    )
    pipeline = feed.pipeline(data, config.seed)
    self._batches = [next(pipeline) for _ in range(config.report.held_out_batches)]
    pipeline.close()

    def run(params, batch, key):
      return step.loss_sums(params, batch, step.draw(batch, key, config), config=config)

    jitted = jax.jit(run, out_shardings=jax.NamedSharding(mesh, jax.P()))
    self._run = jitted.lower(params, self._batches[0], self._key).compile()

  def __call__(self, params) -> dict[str, float]:
    """{'held_loss': the total loss, 'held_ntp/vqa': mean loss of a task, ...}."""
    sums = None
    for n, batch in enumerate(self._batches):
      found = jax.device_get(self._run(params, batch, jax.random.fold_in(self._key, n)))
      sums = found if sums is None else jax.tree.map(np.add, sums, found)
    counts = {name: np.sum(sums[name].count) for name in ('ntp', 'flow') if name in sums}
    means = {'loss': float(step.total_loss(sums, counts, self._config)), **metrics.means(sums)}
    return {f'held_{name}': value for name, value in means.items()}
