"""Losses that mean nothing: they are told with their records, kept for replay, and end the run.

RUN/bad/STEP-PROCESS.npz    the rows of a batch whose update was not kept, and their records
"""

from __future__ import annotations

import collections
import io
import json
import logging
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from tuna_jax import files
from tuna_jax.batch import Batch
from tuna_jax.config import UserError
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.state import TrainState, not_finite

_log = logging.getLogger(__name__)
NAMED = 8  # records of a batch in a message
DUMPS = 20  # of one start, at most


class Diverged(UserError):
  """The numbers of a run mean nothing any more; its newest checkpoint is from before that."""


class Drawn(NamedTuple):
  """A batch on the devices, and what gives the places of its records by row of this host."""

  batch: Batch
  places: Callable[[], list[list[str]]]


class Guard:
  """Judges the steps of a run. step: that it starts from.

  refused: how many updates were not kept. suspect: the step of a state with which the loss of sound
  data was not finite, until an update is kept again; such a state is not saved.
  """

  def __init__(self, config: TrainConfig, workdir: str, step: int):
    self._config, self._workdir = config, files.path(workdir)
    self._losses = collections.deque(maxlen=config.guard.window)
    self._kept, self._streak, self.refused = step, 0, 0
    self.suspect: int | None = None

  def judge(self, step: int, metrics, drawn: Drawn) -> None:
    """Takes note of a finished step. Raises Diverged after too many that were not kept."""
    if not metrics['kept']:
      self._refuse(step, metrics, drawn)
      return
    loss = float(metrics['loss'])
    self._streak, self._kept, self.suspect = 0, step, None
    usual = statistics.median(self._losses) if len(self._losses) >= 10 else loss
    if loss > self._config.guard.spike * usual:
      said = '%s: step %d has loss %.4f, the median of the last %d is %.4f; its records: %s'
      count, records = len(self._losses), _named(drawn.places())
      _log.warning(said, self._workdir, step, loss, count, usual, records)
    self._losses.append(loss)

  def check(self, state: TrainState) -> None:
    """Raises Diverged if `state` is suspect or holds a number that is not finite."""
    if self.suspect is not None:
      raise self._diverged(f'the last {self._streak} updates of the run were not finite')
    if bad := not_finite(state):
      raise self._diverged(f'{bad[0]} is not finite after step {int(state.step)}')

  def _refuse(self, step: int, metrics, drawn: Drawn):
    self._streak, self.refused, places = self._streak + 1, self.refused + 1, drawn.places()
    if metrics['sane']:  # otherwise the data are to blame
      self.suspect = self._kept
    numbers = ', '.join(f'{name} {float(metrics[name]):g}' for name in ('loss', 'grad_norm', 'lr'))
    kept = ''
    if self.refused <= DUMPS:
      kept = self._workdir / 'bad' / f'{step}-{jax.process_index()}.npz'
      write(kept, drawn.batch, places, step, self._config)
      kept = f'; `tuna-jax data replay {kept}` shows the loss of each'
    said = '%s: the update of step %d is not kept (%s, %d in a row); its records: %s%s'
    _log.warning(said, self._workdir, step, numbers, self._streak, _named(places), kept)
    if self._streak >= self._config.guard.updates:
      raise self._diverged(f'guard.updates={self._streak} updates in a row were not finite')

  def _diverged(self, what: str) -> Diverged:
    return Diverged(
      f'{self._workdir}: {what}; the last that was kept is of step {self._kept}. Nothing was saved '
      'since then: lower the rate or mend the records that the log names, and run again'
    )


def write(path, batch: Batch, places, step: int, config: TrainConfig) -> None:
  """Writes this host's rows of a batch, and what `replay` needs to know of them."""
  numbers, rows = _rows(batch)
  about = {'step': step, 'seed': config.seed, 'rows': config.rows}
  about |= {'numbers': numbers, 'places': places}
  file = io.BytesIO()
  np.savez_compressed(file, about=json.dumps(about), **rows._asdict())
  if not files.is_remote(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  files.write_bytes(path, file.getvalue())


def _rows(batch: Batch) -> tuple[list[int], Batch]:
  """The numbers of the rows that this process's devices hold, rising, and the rows themselves."""
  numbers = set()

  def held(array):
    out = np.zeros(array.shape, array.dtype)
    for shard in array.addressable_shards:
      out[shard.index] = shard.data
      numbers.update(range(*shard.index[0].indices(len(out))))
    return out[sorted(numbers)]

  rows = Batch(*map(held, batch))
  return sorted(numbers), rows


def _named(places: list[list[str]]) -> str:
  every = [place for row in places for place in row]
  more = f' and {len(every) - NAMED} more' if len(every) > NAMED else ''
  return ', '.join(every[:NAMED]) + more
