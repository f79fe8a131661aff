"""The records of a batch whose update was not kept, each alone, with the weights of the run now.

Axes:  B rows   L positions   V latent tokens   M images per row   C channels
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import batch as batch_lib
from tuna_jax import files
from tuna_jax.batch import Batch
from tuna_jax.config import UserError
from tuna_jax.data.limits import reason
from tuna_jax.mappings import from_dict
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.ranges import Whole, Width
from tuna_jax.train import checkpoint, state, step
from tuna_jax.train.config import TrainConfig
from tuna_jax.weights import steps, store


class Replayed(NamedTuple):
  """A record and its loss alone. finite: whether its latents are finite numbers."""

  place: str
  loss: float
  finite: bool


@dataclasses.dataclass(frozen=True)
class About:
  """Of which batch a dump holds rows: the seed, the number of rows of the whole, which ones are
  here, the places of their records, and the step."""

  seed: Whole
  rows: Width
  numbers: tuple[Whole, ...]
  places: tuple[tuple[str, ...], ...]
  step: Whole


def replay(dump, run: str = '') -> Iterator[Replayed]:
  """The records of `dump` in their order, with the noise and the times that they had.

  run: whose newest weights are used, by default that of the dump. Raises UserError if the file is
  no dump or of a batch of another shape.
  """
  run = run or str(files.path(dump).parent.parent)
  about, rows = read_dump(dump)
  config = dataclasses.replace(checkpoint.read_config(run), seed=about.seed, rows=about.rows)
  if rows.sizes[1:] != config.sizes[1:]:
    raise UserError(f'{dump}: rows of L, V, M, C = {rows.sizes[1:]}, {run} has {config.sizes[1:]}')
  params, whole = _params(run, config), batch_lib.empty(*config.sizes)
  for all_rows, own in zip(whole, rows):
    all_rows[list(about.numbers)] = own
  key = jax.random.fold_in(jax.random.key(config.seed), about.step - 1)
  draws = step.draw(whole, key, config)  # of a whole batch at once, whatever the rows of a host are
  loss = jax.jit(functools.partial(_loss, config=config))
  for number, places in zip(about.numbers, about.places):
    row = Batch(*(a[number] for a in whole))
    drawn = jax.tree.map(lambda a, number=number: a[number : number + 1], draws)
    for segment, place in enumerate(places, 1):
      one = alone(row, segment)
      value = float(loss(params, one, drawn))
      yield Replayed(place, value, bool(np.isfinite(one.latents).all()))


def read_dump(dump) -> tuple[About, Batch]:
  """What a dump says of itself, and its rows. Raises UserError if the file is no dump."""
  try:
    with files.path(dump).open('rb') as opened, np.load(opened) as found:
      about = from_dict(About, json.loads(str(found['about'])))
      rows = batch_lib.check(Batch(*(found[name] for name in Batch._fields)))
  except FileNotFoundError:
    raise
  except Exception as error:  # numpy and zlib raise anything for damaged files
    raise UserError(f'{dump}: not a dump of a batch ({reason(error)})') from None
  if not len(about.numbers) == len(about.places) == len(rows.tokens):
    raise UserError(f'{dump}: {len(rows.tokens)} rows, {len(about.numbers)} numbers of rows')
  if any(number >= about.rows for number in about.numbers):
    raise UserError(f'{dump}: numbers of rows {about.numbers} in a batch of {about.rows}')
  return about, rows


def alone(row: Batch, segment: int) -> Batch:
  """A Batch of one row that holds one of the examples of `row`, where it stood."""
  kept = row.segment == segment
  cells = (row.image > 0) & kept[row.place]
  images = np.isin(np.arange(1, len(row.grid) + 1), row.image[cells])
  masks = Batch(*[kept] * 8, *[cells] * 3, images, cells, images)
  empty = batch_lib.empty(1, len(kept), *row.latents.shape[:1], len(images), row.latents.shape[1])
  pick = lambda mask, a, e: np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, e[0])[None]
  return Batch(*map(pick, masks, row, empty))


def _loss(params, batch: Batch, draws: step.Draws, *, config: TrainConfig):
  sums = step.loss_sums(params, batch, draws, config=config)
  counts = {name: jnp.sum(sums[name].count) for name in ('ntp', 'flow') if name in sums}
  return step.total_loss(sums, counts, config)


def _params(run: str, config: TrainConfig):
  if steps.committed(run):
    return store.load_weights(run, tuna_shapes(config.model), ema=False)
  return state.first_params(config)
