"""`Pipeline`: an endless, exactly resumable iterator of packed batches.

    mixture -> one endless stream of examples per phase: grain shuffles, repeats and mixes sources
    stream  -> B row streams: item k of row r is example B*k + (r + hash(seed, k)) % B
    row     -> one row of each batch: the oldest of `look_ahead` + 1 waiting examples, then those
               that fill the row best (L, V, M), until none that waits fits

The state is a few integers per row: the next item, and the items that wait, none for more than
`look_ahead` batches. The batch at step n is a pure function of (config, seed, n); a host builds
only its own rows, so the number of hosts changes nothing. A background thread reads, packs and
encodes ahead. Pictures beyond `pool_mb` are read again when used. numpy only.
"""

from __future__ import annotations

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax import batch as batch_lib
from tuna_jax.config import UserError
from tuna_jax.data import latents as latents_lib
from tuna_jax.data import segments
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.reader import NAMED, Records
from tuna_jax.data.tasks import TASKS
from tuna_jax.data.tokenizer import Tokenizer

PATIENCE_S = 5.0
_made = lambda make: dataclasses.field(default_factory=make)


@dataclasses.dataclass
class _Report:
  """What one batch took: merged into `counts()` when the batch is handed out."""

  examples: collections.Counter = _made(collections.Counter)
  skipped: collections.Counter = _made(collections.Counter)
  too_large: collections.Counter = _made(collections.Counter)
  first: list[str] = _made(list)  # of the reasons of both
  used: np.ndarray = _made(lambda: np.zeros(3, np.int64))  # L, V, M
  phase: int = 0
  items: list[list[int]] = _made(list)  # of the stream, by row


class Pipeline:
  """Iterates over batches whose leaves are this host's rows; see the module.

  encode: uint8[n, F, H, W, 3] -> float32[n, T, h, w, C]; runs in the background thread, so it must
  use only local devices. None is allowed where no task has pictures. strides: (temporal, spatial)
  of the VAE. sizes: (B, L, V, M, C), B over all hosts. rows: the rising numbers of this host's
  rows, by default all; they need not be consecutive. steps: length of the run, needed where a phase
  starts at a share of it. put: called on each numpy Batch in the background thread, for placement
  on devices. group: how many media of a shape `encode` takes at once. encoder_name: the digest of
  the encoder, where latents are kept in `latent_cache_dir`.

  Raises UserError where rows of `sizes` do not hold the first records (`fit.check_rows`).
  """

  def __init__(
    self,
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    encode: latents_lib.Encode | None,
    strides: tuple[int, int],
    sizes: tuple[int, int, int, int, int],
    seed: int,
    rows: Sequence[int] | None = None,
    steps: int | None = None,
    put: Callable[[batch_lib.Batch], Any] | None = None,
    group: latents_lib.Group = 8,
    encoder_name: str = '',
  ):
    self._config, self._encode, self._group = config, encode, group
    self._sizes, self._seed, self._put = tuple(sizes), seed, put
    self._rows = list(range(sizes[0]) if rows is None else rows)
    if not self._rows or self._rows != sorted(set(self._rows) & set(range(sizes[0]))):
      raise UserError(f'rows={self._rows}: expected rising numbers within 0..{sizes[0] - 1}')
    kept = config.latent_cache_dir if encode else ''
    self._cache = latents_lib.LatentCache(config.latent_cache_mb << 20, kept, encoder_name)
    self._records = Records(config, tokenizer, strides, self._sizes[1:4], seed, steps)
    self.sources, self._phases = self._records.sources, self._records.phases
    self._lock = threading.Lock()  # of the memory that is kept, which several threads count
    # (phase, row, item) of an example that waits -> its needs; and those that stay in memory.
    self._needs: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    self._kept: dict[tuple[int, int, int], segments.Example] = {}
    self._kept_bytes = 0
    pool = concurrent.futures.ThreadPoolExecutor
    threads = max(config.threads, config.media.processes)
    self._threads = pool(threads) if threads > 1 else None
    # With prefetch, one thread reads and packs, and another encodes what is packed.
    ahead = ('tuna-data', 'tuna-encode') if config.prefetch else ()
    self._workers = [pool(1, thread_name_prefix=name) for name in ahead]
    self._packed: collections.deque[concurrent.futures.Future] = collections.deque()
    self._queue: collections.deque[concurrent.futures.Future] = collections.deque()
    self._step, self._next = 0, self._fresh()
    self._head = (self._step, self._next)
    self._totals, self._batches, self._last = _Report(), 0, _Report()

  # ---- iteration

  def __iter__(self):
    return self

  def __next__(self) -> batch_lib.Batch:
    """The next batch, as `put` returns it. Raises UserError if too many records are unusable."""
    if not self._workers:
      result = self._encoded(self._build())
    else:
      while len(self._queue) < self._config.prefetch:
        self._submit()
      result = self._queue.popleft().result()
      self._submit()
    batch, (self._step, self._next), self._last = result
    report = self._last
    self._totals.examples.update(report.examples)
    self._totals.used += report.used
    self._totals.skipped.update(report.skipped)
    self._totals.too_large.update(report.too_large)
    self._totals.first = (self._totals.first + report.first)[:NAMED]
    self._batches += 1
    return batch

  def state(self) -> dict[str, Any]:
    """Where the iterator stands after the last batch handed out: plain integers, JSON-able.
    `restore` takes it back.
    """
    place = {'step': self._step, 'seed': self._seed, 'batch': self._sizes[0]}
    return place | {'rows': self._rows, 'next': self._next.tolist()}

  def restore(self, state: Mapping[str, Any], moved: bool = False) -> None:
    """Continues after `state` with the identical next batch.

    The state may be of this host's rows or of more (`merge_states`). moved: it may belong to
    another seed, batch size or look-ahead; then as many examples are passed over as it has drawn.
    Raises UserError where it does so otherwise.
    """
    if moved:
      drawn = state['batch'] * max(row[0] for row in state['next'])
      self._drain()
      self._step, self._next = state['step'], self._fresh()
      self._next[:, 0] = -(-drawn // self._sizes[0])
      self._head = (self._step, self._next)
      self._forget()
      return
    for name, have in (('seed', self._seed), ('batch', self._sizes[0])):
      if state[name] != have:
        raise UserError(f'data state: saved with {name}={state[name]}, this run has {have}')
    at = {row: i for i, row in enumerate(state['rows'])}
    if absent := [row for row in self._rows if row not in at]:
      raise UserError(f'data state: it has none for row {absent[0]}, which this host reads')
    rows = np.array(state['next'], np.int64)
    ahead = self._config.look_ahead
    if rows.shape != (len(at), 2 + ahead):
      found = rows.shape[-1] - 2
      raise UserError(f'data state: saved with look_ahead={found}, this run has {ahead}')
    self._drain()
    self._step, self._next = state['step'], rows[[at[row] for row in self._rows]]
    self._head = (self._step, self._next)
    self._forget()

  def drawn(self) -> Callable[[], list[list[str]]]:
    """What gives the places (file:line) of the records of the last batch, by row of this host."""
    return functools.partial(self._places, self._last.phase, self._last.items)

  def _places(self, phase: int, items: list[list[int]]) -> list[list[str]]:
    return [[self._records.place(phase, index) for index in row] for row in items]

  def counts(self) -> dict[str, Any]:
    """What was read since the start of this process: batches, examples by task, skipped and too
    large records by source with the first names, and the filled share of L, V and M.
    """
    room = np.array(self._sizes[1:4]) * len(self._rows) * self._batches
    fill = {axis: float(u / r) for axis, u, r in zip('LVM', self._totals.used, room) if r}
    return {
      'batches': self._batches,
      'examples': dict(self._totals.examples),
      'skipped': dict(self._totals.skipped),
      'too_large': dict(self._totals.too_large),
      'skipped_first': self._totals.first,
      'fill': fill,
      'latents': {k: getattr(self._cache, k) for k in ('hits', 'misses', 'damaged')},
    }

  def close(self) -> None:
    """Stops the background threads; one that still reads after PATIENCE_S is left behind."""
    self._drain(PATIENCE_S)
    for pool in (*self._workers, *([self._threads] if self._threads else ())):
      pool.shutdown(wait=False, cancel_futures=True)

  def _submit(self):
    reader, encoder = self._workers
    self._packed.append(reader.submit(self._build))
    self._queue.append(encoder.submit(self._encode_next))

  def _drain(self, timeout: float | None = None):
    for futures in (self._queue, self._packed):
      concurrent.futures.wait([f for f in futures.copy() if not f.cancel()], timeout)
      futures.clear()

  # ---- one batch, in the background threads

  def _fresh(self) -> np.ndarray:
    """Row states at the start of a phase: next item 0, nothing waits (-1)."""
    state = np.full((len(self._rows), 2 + self._config.look_ahead), -1, np.int64)
    state[:, 0] = 0
    return state

  def _forget(self):
    self._needs.clear()
    self._kept.clear()
    self._kept_bytes = 0

  def _phase(self, step: int) -> int:
    return bisect.bisect_right([p.start for p in self._phases], step) - 1

  def _build(self):
    step, state = self._head
    phase = self._phase(step)
    if step and self._phase(step - 1) != phase:
      state = self._fresh()
      self._forget()
    fill = functools.partial(self._fill_row, phase)
    rows = list((self._threads.map if self._threads else map)(fill, self._rows, state))
    report, names = _Report(phase=phase), tuple(TASKS)
    for chosen, _, skipped, items in rows:
      report.items.append(items)
      report.examples.update(names[e.task] for e in chosen)
      report.used += sum((np.array(e.needs) for e in chosen), np.zeros(3, np.int64))
      for name, why, large in skipped:
        (report.too_large if large else report.skipped)[name] += 1
        report.first.append(why)
    packed = segments.pack([r[0] for r in rows], (len(self._rows), *self._sizes[1:]))
    self._head = (step + 1, np.stack([r[1] for r in rows]))
    return packed, self._head, report

  def _encode_next(self):
    packed = self._packed.popleft().result()
    done = [f for f in self._packed.copy() if f.done() and not f.cancelled()]
    return self._encoded(packed, [f.result()[0] for f in done if f.exception() is None])

  def _encoded(self, built, later: Sequence[segments.Packed] = ()):
    """What `_build` gave, with latents and placed. `later`: batches whose media may fill groups."""
    packed, head, report = built
    ahead = (placed.media for other in later for placed in other.media)
    batch = latents_lib.fill_latents(packed, self._encode, self._cache, self._group, ahead)
    if head[0] == 1:
      batch_lib.check(batch)
    return (self._put(batch) if self._put else batch), head, report

  def _fill_row(self, phase: int, row: int, state: np.ndarray):
    """The examples of one row, its next state, (source, reason, whether it is only too large) of
    the records it skipped, and the stream index of each example.
    """
    chosen, skipped, items, room = [], [], [], np.array(self._sizes[1:4])
    following, waiting = int(state[0]), [int(k) for k in state[1:] if k >= 0]
    waiting = [k for k in waiting if self._measure(phase, row, k, skipped)]
    while True:
      while len(waiting) <= self._config.look_ahead:
        if self._measure(phase, row, following, skipped):
          waiting.append(following)
        following += 1
      needs = [self._needs[phase, row, k] for k in waiting]
      if chosen:
        taken = segments.fullest(needs, room)
      else:  # the oldest, whatever it leaves
        taken = [0, *(1 + i for i in segments.fullest(needs[1:], room - needs[0]))]
      if not taken:
        break
      for i in taken:
        example = self._take(phase, row, waiting[i], skipped)
        if example is not None:
          room = room - needs[i]
          chosen.append(example)
          items.append(self._item(row, waiting[i]))
      waiting = [k for i, k in enumerate(waiting) if i not in taken]
    new = np.full_like(state, -1)
    new[0] = following
    new[1 : 1 + len(waiting)] = waiting
    return chosen, new, skipped, items

  def _item(self, row: int, k: int) -> int:
    """The stream index of item k of a row."""
    batch = self._sizes[0]
    return batch * k + (row + _mix64(self._seed, k)) % batch

  def _example(self, phase: int, row: int, k: int, skipped) -> segments.Example | None:
    """Item k of a row, or None if its record cannot be used."""
    return self._records.example(phase, self._item(row, k), skipped)

  def _measure(self, phase: int, row: int, k: int, skipped) -> bool:
    """Whether item k of a row can be used; then its needs are known, and it is kept if it may."""
    key = phase, row, k
    if key not in self._needs:
      example = self._example(phase, row, k, skipped)
      if example is None:
        return False
      self._needs[key] = example.needs
      with self._lock:
        if self._kept_bytes + example.nbytes <= self._config.pool_mb << 20:
          self._kept[key] = example
          self._kept_bytes += example.nbytes
    return True

  def _take(self, phase: int, row: int, k: int, skipped) -> segments.Example | None:
    """Item k of a row, which was measured, as it was kept or read again."""
    del self._needs[phase, row, k]
    example = self._kept.pop((phase, row, k), None)
    if example is None:
      return self._example(phase, row, k, skipped)
    with self._lock:
      self._kept_bytes -= example.nbytes
    return example


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """One state of all rows from the states of all hosts. Raises UserError if they differ in step or
  leave a gap.
  """
  first, by_row = states[0], {}
  for state in states:
    if any(state[k] != first[k] for k in ('step', 'seed', 'batch')):
      steps = f'one is of step {first["step"]}, one of {state["step"]}'
      raise UserError(f'data states do not join: {steps}')
    by_row.update(zip(state['rows'], state['next'], strict=True))
  if absent := set(range(first['batch'])) - set(by_row):
    raise UserError(f'data states do not join: none holds row {min(absent)}')
  rows = sorted(by_row)
  return {**first, 'rows': rows, 'next': [by_row[row] for row in rows]}


def _mix64(seed: int, k: int) -> int:
  """A well mixed 64-bit number of (seed, k) (the finaliser of split_mix64)."""
  x = (seed * 0x9E3779B97F4A7C15 + (k + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
  return x ^ (x >> 31)
