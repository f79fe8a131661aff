"""What the time of a run goes to, over all its starts; kept in RUN/goodput.json."""

from __future__ import annotations

import dataclasses
import datetime
import threading
import time

import jax

from tuna_jax import files
from tuna_jax.mappings import from_dict
from tuna_jax.ranges import Count, NotNegative, Whole

# start: until the first step can be compiled: data, weights, encoder. data: the host waits for a
# batch and has no step to wait for. lost: steps that a later start had to take again.
KINDS = ('start', 'compile', 'data', 'step', 'save', 'evaluate', 'lost')


@dataclasses.dataclass(frozen=True)
class _Known:
  """What goodput.json holds."""

  starts: Count
  step: Whole
  seconds: dict[str, NotNegative]


class Goodput:
  """Seconds by kind, read off one clock, so that nothing counts twice or is left out.

  `goodput('save')` ends what ran before and begins a save. What was measured before this start of
  the run is read from `workdir`; the time between two starts is not known and not counted.
  """

  def __init__(self, workdir: str):
    self._path, self._lock = files.path(workdir) / 'goodput.json', threading.Lock()
    self.starts, self.step, self._seconds = 1, 0, dict.fromkeys(KINDS, 0.0)
    if self._path.exists():
      known = from_dict(_Known, files.read_object(self._path), str(self._path))
      self.starts, self.step = known.starts + 1, known.step
      self._seconds |= known.seconds
    self._kind, self._since = 'start', time.perf_counter()

  def __call__(self, kind: str) -> None:
    """Time is of this kind from now on."""
    with self._lock:
      now = time.perf_counter()
      self._seconds[self._kind] += now - self._since
      self._kind, self._since = kind, now

  def seconds(self) -> dict[str, float]:
    """Seconds by kind until now."""
    with self._lock:
      found = dict(self._seconds)
      found[self._kind] += time.perf_counter() - self._since
    return found

  def running(self) -> tuple[str, float]:
    """The kind of now, and since when, on the clock of `time.perf_counter`."""
    with self._lock:
      return self._kind, self._since

  def restored(self, step: int) -> None:
    """This start goes on after `step`: later steps of the start before are lost."""
    lost = max(self.step - step, 0)
    if lost:
      seconds = self._seconds['step'] * lost / self.step
      self._seconds['step'] -= seconds
      self._seconds['lost'] += seconds
    self.step = step

  def write(self) -> None:
    """Writes goodput.json, from process 0."""
    if jax.process_index() == 0:
      seconds = {kind: round(s, 3) for kind, s in self.seconds().items()}
      files.write_json(self._path, {'starts': self.starts, 'step': self.step, 'seconds': seconds})

  def __str__(self):
    seconds = self.seconds()
    total = sum(seconds.values())
    shares = ', '.join(f'{kind} {s:.1f} s' for kind, s in seconds.items() if s >= 0.05)
    time_of = datetime.timedelta(seconds=round(total))
    starts = f'{self.starts} start' + 's' * (self.starts > 1)
    return f'goodput: {seconds["step"] / total:.1%} of {time_of} in {starts}; {shares}'
