"""What feeds the step: the pipeline of the run's data, with the tokenizer and the frozen VAE."""

from __future__ import annotations

import jax

from tuna_jax import sharding
from tuna_jax.batch import Batch
from tuna_jax.config import UserError
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.train import encoder
from tuna_jax.train.config import TrainConfig


class Feed:
  """Makes batches of a run, placed on the mesh; each process builds the rows that its devices hold.

  tokenizer: of the run.
  """

  def __init__(self, config: TrainConfig, mesh):
    """Raises UserError where the tokenizer or the VAE is missing or does not fit the model."""
    if not config.tokenizer:
      raise UserError('tokenizer: no directory given; --config.tokenizer=DIR')
    self._config, self._placed = config, sharding.batch_sharding(mesh)
    self.tokenizer = Tokenizer.from_dir(config.tokenizer)
    if self.tokenizer.vocab_size > config.model.decoder.vocab_size:
      raise UserError(
        f'{config.tokenizer}: {self.tokenizer.vocab_size} tokens, the model has '
        f'{config.model.decoder.vocab_size} (model.decoder.vocab_size)'
      )
    self._encode = None
    if config.visual and (config.encoder.online or config.model.vae is None):
      self._encode = encoder.of_run(config, list(mesh.local_devices))
    self._rows = local_rows(mesh, config.rows)

  def pipeline(self, data: DataConfig, seed: int) -> Pipeline:
    """The batches of `data`; what the encoder needs for its media begins to compile."""
    config, encode = self._config, self._encode
    pipeline = Pipeline(
      data, self.tokenizer, encode=encode, put=self._put,
      group=encode.group if encode else 1, encoder_name=encode.digest if encode else '',
      strides=config.model.strides, sizes=config.sizes,
      seed=seed, rows=self._rows, steps=config.steps,
    )  # fmt: skip
    if encode:
      encode.compile(encoder.shapes_of(data, {source.task for source in pipeline.sources}))
    elif config.visual:
      encoder.check_latents(config, pipeline.sources)
    return pipeline

  def _put(self, batch: Batch) -> Batch:
    rows, count = self._rows, self._config.rows

    def local(index: slice) -> slice:
      """The rows of one device, a slice of the whole batch, as a slice of those of this process."""
      low, high, _ = index.indices(count)
      return slice(rows.index(low), rows.index(high - 1) + 1)

    def one(array, where):
      part = lambda at: array[local(at[0]), *at[1:]]
      return jax.make_array_from_callback((count, *array.shape[1:]), where, part)

    return Batch(*(one(a, s) for a, s in zip(batch, self._placed)))


def local_rows(mesh, rows: int) -> list[int]:
  """Which rows of a batch of `rows` this process's devices hold. UserError if they do not divide.

  On a pod they need not be consecutive: the mesh follows the links between chips, not the hosts.
  """
  where = sharding.batch_sharding(mesh).segment
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % ways:
    raise UserError(f'rows={rows} does not divide over data x fsdp = {ways}')
  held = where.addressable_devices_indices_map((rows, mesh.shape['context'])).values()
  return sorted({row for index in held for row in range(*index[0].indices(rows))})
