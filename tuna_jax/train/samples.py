"""Pictures of fixed prompts and seeds, drawn while a run trains."""

from __future__ import annotations

import jax
import numpy as np

from tuna_jax.config import UserError
from tuna_jax.sample.generate import Generator
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.feed import Feed
from tuna_jax.weights import store


class Samples:
  """Draws `config.report.prompts` in the first bucket of the run's media, prompt i with seed i.

  All processes of a run draw together on its mesh. The decoder of the VAE waits in host memory.
  """

  def __init__(self, config: TrainConfig, feed: Feed, mesh):
    """Raises UserError where there is no VAE to decode with."""
    self._config, self._tokenizer, self._mesh = config, feed.tokenizer, mesh
    self._vae = None, None
    if config.model.vae is not None:
      if not config.vae:
        raise UserError('report.samples_every: no VAE to decode with; --config.vae=DIR')
      self._vae = store.load_vae(config.vae)

  def __call__(self, params) -> dict[str, np.ndarray]:
    """{prompt: uint8[H, W, 3]}."""
    report, everywhere = self._config.report, jax.NamedSharding(self._mesh, jax.P())
    config, vae = self._vae
    # Not device_put, which compares the values of all processes.
    put = lambda a: jax.make_array_from_callback(a.shape, everywhere, lambda index: a[index])
    generator = Generator(
      self._config.model, params, jax.tree.map(put, vae), self._tokenizer, vae_config=config,
      tasks=self._config.data.tasks, media=self._config.data.media, usual=self._config.sampling,
    )  # fmt: skip
    seeds = list(range(len(report.prompts)))
    drawn = generator.image(list(report.prompts), seed=seeds, points=report.sample_points)
    return {prompt: np.asarray(picture) for prompt, picture in zip(report.prompts, drawn)}
