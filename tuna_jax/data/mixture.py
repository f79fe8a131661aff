"""What is read: the sources of a mixture, and the endless streams that its phases mix from them."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import grain
import numpy as np

from tuna_jax.config import UserError, nearest
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import noted, texts_of, usable
from tuna_jax.data.sources import (
  MADE,
  WORLD,
  Source,
  SourceConfig,
  open_source,
  opener,
  read_mixture,
)
from tuna_jax.data.tasks import TaskConfig, check_task
from tuna_jax.data.views import Texts
from tuna_jax.ranges import Count, Few, NotNegative, Range, Share, Whole

Phases = tuple[tuple[NotNegative, tuple[tuple[str, NotNegative], ...]], ...]

_log = logging.getLogger(__name__)
SAMPLED = 32  # records of a source that its fingerprint reads


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read and how it is batched.

  mixture: a mixture file (`sources.py`), or one source for every task of `phases`: 'shapes', the
  rendered world, or 'synthetic', blank media of real sizes. phases: ((start, ((task, weight),
  ...)), ...); a start below 1 is a share of the run's steps, otherwise a step. A source's weight is
  its own times its task's. Empty: every source of the mixture, by its own weight. split, size,
  seed: of the two mixtures that are made: which records, how many per task, which world.
  max_skip_share: share of a source's records that may be unusable before the run stops. look_ahead:
  examples from which a row chooses those that fill it best, beside the oldest, which comes first.
  pool_mb: memory for the pictures of examples that wait; those beyond it are read again when used.
  prefetch: batches built ahead. threads: rows read at once (more than 1 helps where reading waits
  for files). latent_cache_mb: latents remembered in memory. latent_cache_dir: also kept there, by
  the encoder's parameters and the picture's content.
  """

  mixture: str = WORLD
  phases: Phases = ()
  split: str = 'train'
  size: Count = 1_000_000
  seed: Whole = 0
  tasks: TaskConfig = dataclasses.field(default_factory=TaskConfig)
  media: MediaConfig = dataclasses.field(default_factory=MediaConfig)
  max_skip_share: Share = 0.01
  look_ahead: Annotated[int, Range(0, 61)] = 3
  pool_mb: Whole = 2048
  prefetch: Annotated[int, Range(0, 1000)] = 2
  threads: Few = 1
  latent_cache_mb: Whole = 256
  latent_cache_dir: str = ''

  def __post_init__(self):
    for start, weights in self.phases:
      for task, weight in weights:
        check_task(task)
        if weight < 0:
          raise UserError(f'phase at {start}: weight of {task} is {weight}')
    starts = [start for start, _ in self.phases]
    if starts and (starts[0] != 0 or starts != sorted(set(starts), key=lambda s: (s >= 1, s))):
      wanted = '0 first, then rising shares of the run, then rising steps'
      raise UserError(f'phases start at {starts}: expected {wanted}')


def open_sources(config: DataConfig) -> list[Source]:
  """The sources of `config.mixture`, in order; each has its `weight`. Where the phases ask for
  `text` and no source has any of their tasks, the texts of all sources are read.
  """
  if config.mixture in MADE:
    tasks = dict.fromkeys(task for _, weights in config.phases for task, _ in weights)
    rows = [
      SourceConfig(config.mixture, task, split=config.split, size=config.size, seed=config.seed)
      for task in tasks or opener(config.mixture).tasks
    ]
  else:
    rows = read_mixture(config.mixture)
  sources = []
  for row in rows:
    with noted(lambda row=row: row.path):
      sources.append(open_source(row, config.media))
  asked = {task for _, weights in config.phases for task, weight in weights if weight}
  if 'text' in asked and not asked & {source.task for source in sources}:
    _log.info('%s has no source for %s: its texts alone are read', config.mixture, ', '.join(asked))
    sources = [Texts(source, config.tasks.questions[0]) for source in sources]
  for source, row in zip(sources, rows):
    source.weight = row.weight
  return sources


def fingerprint(source: Source) -> dict[str, Any]:
  """What tells a source from another one of the same name: its task and length, and a digest of
  SAMPLED of its records as they are stored."""
  count = len(source)
  found = hashlib.blake2b(digest_size=16)
  for index in sorted({count * k // SAMPLED for k in range(SAMPLED)} | {count - 1}):
    try:
      found.update(_bytes(source.raw(index)))
    except UserError:  # a bad record, whose message has paths in it
      found.update(b'bad')
  return {'task': source.task, 'records': count, 'digest': found.hexdigest()}


def _bytes(value) -> bytes:
  """A value of a record, nested as it may be."""
  if isinstance(value, Mapping):
    return b'{%s}' % b','.join(_bytes(k) + _bytes(v) for k, v in value.items())
  if isinstance(value, (list, tuple)):
    return b'[%s]' % b','.join(map(_bytes, value))
  if isinstance(value, np.ndarray):
    return f'{value.dtype}{value.shape}'.encode() + value.tobytes()
  return value if isinstance(value, bytes) else repr(value).encode()


def texts(config: DataConfig, limit: int = 2000) -> list[str]:
  """Every text of the first `limit` records of each source, and those the layouts add: what a
  tokenizer learns from. Media are not read; the pipeline reports lines that are not records.
  """
  tasks = config.tasks
  out = ['user\n', 'assistant\n', '\n', *tasks.questions, *tasks.video_questions]
  out += ['system\n', tasks.system] if tasks.system else []
  for source in open_sources(config):
    for record in usable(source, limit):
      out += texts_of(record, source.task)
  return out


class Phase:
  """One mixed, endless stream: stream index -> (source number, record index)."""

  def __init__(self, start: int, weights: Mapping[int, float], sources: Sequence[Source], seed):
    """weights: by source number. seed: a tuple of ints."""
    self.start, self.numbers = start, sorted(weights)
    self._offsets = [0, *itertools.accumulate(len(sources[n]) for n in self.numbers)]
    sets = []
    for n, low, high in zip(self.numbers, self._offsets, self._offsets[1:]):
      own = int(np.random.SeedSequence((*seed, n)).generate_state(1)[0] >> 1)
      sets.append(grain.MapDataset.range(low, high).seed(own).shuffle().repeat(None))
    mixed = [weights[n] for n in self.numbers]
    self._mixed = grain.MapDataset.mix(sets, mixed) if len(sets) > 1 else sets[0]

  def locate(self, index: int) -> tuple[int, int]:
    """(source number, record index) of one stream index."""
    at = int(self._mixed[index])
    k = bisect.bisect_right(self._offsets, at) - 1
    return self.numbers[k], at - self._offsets[k]


def phases_of(
  config: DataConfig, sources: Sequence[Source], seed: int, steps: int | None
) -> list[Phase]:
  """The streams of `config.phases` by rising first step. Of phases that start at the same step of a
  short run, the one that is listed last is taken.

  Raises UserError where a phase finds no source, or a share no `steps`.
  """
  known = dict.fromkeys(s.task for s in sources)
  phases = config.phases or ((0, tuple((task, 1.0) for task in known)),)
  out = {}
  for number, (start, by_task) in enumerate(phases):
    by_task = dict(by_task)
    if 0 < start < 1:
      if steps is None:
        raise UserError(f'a phase starts at {start} of the run: the number of steps is needed')
      start = round(start * steps)
    weights = {n: s.weight * by_task.get(s.task, 0.0) for n, s in enumerate(sources)}
    weights = {n: w for n, w in weights.items() if w > 0}
    if not weights:
      near = nearest(next(iter(by_task), ''), known)
      raise UserError(
        f'{config.mixture}: no source for any task of the phase at {start} '
        f'({", ".join(by_task)}); it has {", ".join(known)}{near}'
      )
    if absent := ', '.join(t for t, w in by_task.items() if w > 0 and t not in known):
      message = '%s has no source for %s (phase at step %d): left out'
      _log.warning(message, config.mixture, absent, start)
    start = int(start)
    if start in out:
      _log.warning('two phases start at step %d: the one listed last is taken', start)
    out[start] = Phase(start, weights, sources, (seed, number))
  drawn = {n for phase in out.values() for n in phase.numbers}
  if unused := dict.fromkeys(
    s.task for n, s in enumerate(sources) if s.weight > 0 and n not in drawn
  ):
    _log.warning(
      '%s: no phase draws %s: its records are not used', config.mixture, ', '.join(unused)
    )
  return [out[start] for start in sorted(out)]
