"""The loss on records that are not trained on, always of the same batches, noise and times."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from tuna_jax.data.pipeline import Pipeline
from tuna_jax.sample.generate import Generator
from tuna_jax.train import encoder, metrics, step
from tuna_jax.train.config import TrainConfig

BATCHES = 8


class HeldOut:
  """mixture: of the records. config: of the run whose losses are measured."""

  def __init__(self, config: TrainConfig, mixture: str, generator: Generator):
    encode = encoder.of_run(config) if config.visual else None
    data = dataclasses.replace(config.data, mixture=mixture, prefetch=0, latent_cache_dir='')
    pipeline = Pipeline(
      data, generator.tokenizer, encode=encode, strides=config.model.strides, sizes=config.sizes,
      seed=1, steps=BATCHES, group=encode.group if encode else 1,
    )  # fmt: skip
    self._batches = [next(pipeline) for _ in range(BATCHES)]
    self._config = config
    self._sums = jax.jit(functools.partial(step.loss_sums, config=config))

  def __call__(self, params) -> dict[str, float]:
    """{'held_ntp/vqa': loss, ...}: means per task and over all of them."""
    sums = None
    for n, batch in enumerate(self._batches):
      draws = step.draw(batch, jax.random.key(n), self._config)
      found = jax.device_get(self._sums(params, batch, draws))
      sums = found if sums is None else jax.tree.map(np.add, sums, found)
    values = metrics.scalars({'loss': 0.0, 'grad_norm': 0.0, **sums})
    return {f'held_{name}': value for name, value in values.items() if '/' in name}
