"""How fast records of a mixture are read, beside what a planned pod needs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data.records import BadRecord, media_of
from tuna_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Rate:
  """Of one source: records that were read, their pictures (each frame of a clip counts), and the
  seconds of a processor core and of the clock that this took. weight: of the source.
  """

  name: str
  task: str
  weight: float
  records: int
  pictures: int
  core: float
  clock: float


def measure(source: Source, weight: float, seconds: float, seed: int = 0) -> Rate:
  """Reads random records in one thread for so many seconds. Raises UserError if none is usable."""
  rng, records, pictures, tried = np.random.default_rng(seed), 0, 0, 0
  began, core = time.perf_counter(), time.process_time()
  while time.perf_counter() - began < seconds or not records:
    tried += 1
    try:
      media = media_of(source[int(rng.integers(len(source)))], source.task)
    except BadRecord as e:
      if tried > 100 and not records:
        raise UserError(f'{source.name}: {tried} unusable records; the last: {e}') from e
      continue
    records += 1
    pictures += sum(len(m) if m.ndim == 4 else 1 for m in media)
  core, clock = time.process_time() - core, time.perf_counter() - began
  return Rate(source.name, source.task, weight, records, pictures, core, clock)


def together(rates: Sequence[Rate]) -> float:
  """Pictures per second of a core that reads the sources as their weights mix them."""
  pictures = sum(r.weight * r.pictures / r.records for r in rates)
  return pictures / max(sum(r.weight * r.core / r.records for r in rates), 1e-9)


def table(rates: Sequence[Rate], plan: Mapping | None = None) -> str:
  """What `data bench` prints. plan: the JSON of `tuna-jax plan --json`; UserError for another."""
  if plan is not None and not isinstance(plan, Mapping):
    raise UserError('this is no plan; `tuna-jax plan --json=FILE` writes one')
  if plan is not None and (absent := {'topology', 'hosts', 'pictures', 'roofline'} - plan.keys()):
    raise UserError(f'the plan has no {", ".join(sorted(absent))}; write it with plan --json=FILE')
  lines = [
    f'{r.name}: {r.task}, {r.pictures / max(r.core, 1e-9):.1f} pictures/s per core, '
    f'{r.pictures / r.clock:.1f}/s in one thread, {r.records} records read'
    for r in rates
  ]
  mean = together(rates)
  lines.append(f'the mixture: {mean:.1f} pictures/s per core (each frame of a clip is one)')
  if plan is not None:
    needed = plan['pictures'] / plan['roofline']['estimate']
    host = needed / plan['hosts']
    lines.append(
      f'{plan["topology"]} needs {needed:.1f} pictures/s at the estimated step: {host:.1f} on each '
      f'of its {plan["hosts"]} hosts, {host / max(mean, 1e-9):.1f} cores of each'
    )
  return '\n'.join(lines)
