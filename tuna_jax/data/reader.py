"""Examples of the mixed streams; what cannot be used is named, counted and bounded. numpy only."""

from __future__ import annotations

import collections
import logging
import threading

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data import examples, fit
from tuna_jax.data.mixture import DataConfig, open_sources, phases_of
from tuna_jax.data.records import BadRecord
from tuna_jax.data.segments import Example
from tuna_jax.data.tasks import Context
from tuna_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
NAMED = 10  # skipped records named in logs and counts
_EARLY = 20  # after this many skipped records, ten times the allowed rate stops the run
_LARGE_SHARE = 0.5  # of the records read; more that are too large stop the run


class Records:
  """Lays out the records that the phases of a config draw. Several threads may ask at once.

  strides: (temporal, spatial) of the VAE. room: (L, V, M) of a row. Raises UserError where such
  rows do not hold the first records (`fit.check_rows`).
  """

  def __init__(
    self,
    config: DataConfig,
    tokenizer: Tokenizer,
    strides: tuple[int, int],
    room: examples.Room,
    seed: int,
    steps: int | None,
  ):
    self._config, self._strides, self._room, self._seed = config, strides, room, seed
    self._context = Context(tokenizer, config.tasks)
    self.sources = open_sources(config)
    self.phases = phases_of(config, self.sources, seed, steps)
    fit.check_rows(self.phases, self.sources, self._context, strides, room)
    self._bad: dict[int, set[int]] = collections.defaultdict(set)  # source -> unusable records
    self._large: dict[int, set[int]] = collections.defaultdict(set)  # source -> too large records
    self._read: collections.Counter[int] = collections.Counter()  # source -> records read
    self._lock = threading.Lock()  # of these three

  def example(self, phase: int, index: int, skipped: list) -> Example | None:
    """The example at `index` of the stream of a phase. None, and (source, reason, whether it is
    only too large) in `skipped`, if its record cannot be used.
    """
    number, record = self.phases[phase].locate(index)
    source = self.sources[number]
    with self._lock:
      self._read[number] += 1
    try:
      rng = np.random.default_rng((self._seed, phase, index))
      return examples.example(source, record, self._context, rng, self._strides, self._room)
    except BadRecord as e:
      large = isinstance(e, examples.TooLarge)
      found = (self._large if large else self._bad)[number]
      with self._lock:
        if record not in found:
          skipped.append((source.name, str(e), large))
          found.add(record)
          if len(found) <= NAMED:
            _log.warning('skipped record %d of %s: %s', len(found), source.name, e)
          self._check_budget(number, str(e))
      return None

  def place(self, phase: int, index: int) -> str:
    """Where the record at `index` of the stream of a phase stands."""
    number, record = self.phases[phase].locate(index)
    return self.sources[number].where(record)

  def _check_budget(self, number: int, why: str):
    source, bad, read = self.sources[number], len(self._bad[number]), self._read[number]
    share, total, large = self._config.max_skip_share, len(source), len(self._large[number])
    if bad > share * total or bad == total or (bad > _EARLY and bad > 10 * share * read):
      raise UserError(
        f'{source.name}: {bad} of its {total} records are unusable ({read} read so far), more than '
        f'max_skip_share={share:g} allows; the last: {why}'
      )
    if bad + large == total or (large > _EARLY and large > _LARGE_SHARE * read):
      raise UserError(
        f'{source.name}: {large} of its {total} records are too large for a row ({read} read so '
        f'far); raise length, visual or images, or data.tasks.max_text; the last: {why}'
      )
