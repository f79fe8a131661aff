"""Seconds of a step by a model that is fitted to measured steps of the devices at hand.

    seconds = max(floor, slopes . work + start)

work: of one device, the operations of `flops.train_flops`, bytes that layers keep, operations of
softmax, and turns (micro-batches). A turn may save time, where few rows stay in a processor's
caches. floor: below it the device is not full. With one kind of work this is the hinge of PAPAYA
(arXiv 2303.14633), max(a, k b) + d.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from scipy.optimize import lsq_linear

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.tools import step_cost
from tuna_jax.train import flops
from tuna_jax.train.config import TrainConfig

TURNS = 3  # where `work_of` has them
# Multiples of the rows of a configuration, remat and turns that a sweep measures.
SWEEP = (
  (1, 'block', 1), (2, 'block', 1), (4, 'block', 1), (4, 'block', 4), (4, 'dots', 1),
  (2, 'none', 2), (4, 'none', 1),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Hinge:
  """The model; slopes: seconds for one of each kind of work."""

  floor: float
  slopes: tuple[float, ...]
  start: float

  def seconds(self, work: Sequence[float]) -> float:
    """Of a step with so much work."""
    return max(self.floor, float(np.dot(self.slopes, work)) + self.start)


def fit(
  work: Sequence[Sequence[float]], seconds: Sequence[float], free: Sequence[int] = ()
) -> Hinge:
  """The hinge with the least squares of relative errors; none of its numbers is below 0, but the
  slopes of the `free` kinds of work may be.

  work: [n, kinds]; seconds: [n]. The steps with the least work may lie on the floor.
  """
  work, seconds = np.asarray(work, float), np.asarray(seconds, float)
  scale = np.maximum(work.max(axis=0), 1e-30)
  order = np.argsort((work / scale).sum(axis=1))
  columns = np.hstack([work / scale, np.ones((len(work), 1))]) / seconds[:, None]
  low_ends = np.zeros(columns.shape[1])
  low_ends[list(free)] = -np.inf
  best, least = None, np.inf
  for flat in range(max(len(work) - 2, 1)):
    low, high = order[:flat], order[flat:]
    found = lsq_linear(columns[high], np.ones(len(high)), (low_ends, np.inf)).x
    floor = float(1 / np.mean(1 / seconds[low])) if flat else 0.0
    hinge = Hinge(floor, tuple((found[:-1] / scale).tolist()), float(found[-1]))
    error = sum((hinge.seconds(w) / s - 1) ** 2 for w, s in zip(work, seconds))
    if error < least * (1 - 1e-6):
      best, least = hinge, error
  return best


def work_of(config: TrainConfig, devices: int) -> tuple[float, ...]:
  """The work of one step of one of so many devices: operations, bytes that layers keep, operations
  of softmax, turns."""
  each = (
    flops.train_flops(config).executed,
    step_cost.kept(config, lanes=1) * config.rows,
    flops.softmax_operations(config),
  )
  return (*(n / devices for n in each), float(config.optimizer.accumulate))


def changed(config: TrainConfig, rows: int, remat: str, turns: int) -> TrainConfig:
  """`config` with so many rows, taken in so many turns."""
  return dataclasses.replace(
    config,
    rows=rows,
    model=dataclasses.replace(config.model, remat=remat),
    optimizer=dataclasses.replace(config.optimizer, accumulate=turns),
  )


def sweep(config: TrainConfig, bench: Callable, steps: int = 5, cells=SWEEP, say=print) -> dict:
  """Measures `cells` around `config` by `bench` (`bench_train.bench`), fits them and stores the fit
  for devices of this kind.

  A cell that does not fit in memory is left out, and said. Raises UserError if fewer than three
  could be measured.
  """
  work, seconds, measured = [], [], []
  for times, remat, turns in cells:
    cell = changed(config, config.rows * times, remat, turns)
    try:
      found = bench(cell, steps)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      say(f'{cell.rows:6} rows, remat {remat:6} in {turns}: does not fit')
      continue
    say(f'{cell.rows:6} rows, remat {remat:6} in {turns}: {found["seconds"]:.4f} s')
    work.append(work_of(cell, found['devices']))
    seconds.append(found['seconds'])
    measured.append({'rows': cell.rows, 'remat': remat, 'turns': turns, **found})
  if len(work) < 3:
    raise UserError(f'bench train --sweep: {len(work)} steps could be measured; 3 are needed')
  hinge = fit(work, seconds, free=(TURNS,))
  errors = [abs(hinge.seconds(w) / s - 1) for w, s in zip(work, seconds)]
  kind = jax.devices()[0].device_kind
  stored = {
    **dataclasses.asdict(hinge),
    'worst': max(errors),
    'steps': len(work),
    'stage': config.stage,
    'date': time.strftime('%Y-%m-%d', time.gmtime()),
  }
  known = {kind: stored}
  if store().exists():
    known = {**files.read_object(store()), **known}
  if jax.process_index() == 0:
    store().parent.mkdir(parents=True, exist_ok=True)
    files.write_json(store(), known)
  say(f'fitted to {len(work)} steps of {kind}, off by {max(errors):.1%} at most: {store()}')
  return {'device_kind': kind, 'fit': stored, 'measured': measured}


def store():
  """Where fits are kept, by kind of device."""
  return files.cache() / 'speed.json'


def stored(kind: str) -> tuple[Hinge, dict] | None:
  """The fit for devices of this kind, and when and on what it was measured."""
  found = files.read_object(store()).get(kind) if store().exists() else None
  if not found:
    return None
  return Hinge(found['floor'], tuple(found['slopes']), found['start']), found
