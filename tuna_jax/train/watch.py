"""A watch over a run: where nothing goes on for too long, all stacks are told and the run ends.

RUN/stacks-PROCESS.txt    what every thread of a process waited for when that happened last
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import tempfile
import threading
import time

import jax

from tuna_jax import files, stopping
from tuna_jax.data import records
from tuna_jax.train.goodput import Goodput

_log = logging.getLogger(__name__)
GRACE_S = 60.0  # for a stop that was asked for to begin
SLOW_S = 30.0  # after which the run says what it waits for
LONGER = {'start': 4, 'compile': 4, 'evaluate': 4}  # how much longer these may take


class Watch:
  """Watches `clock` from a thread of its own: it must turn to something else within `wait` seconds.

  Otherwise every process writes the stacks of all its threads to its log and to `workdir`, and asks
  itself to stop as a signal would (`stopping.Signals`): a run that waits for data saves. If the
  clock stands still after that for GRACE_S, because a step or a save hangs, the process is ended
  with code 75. stops: whether signals are handled; otherwise the stacks are all that happens.
  """

  def __init__(self, workdir, wait: float, clock: Goodput, stops: bool = True):
    self._path = files.path(workdir) / f'stacks-{jax.process_index()}.txt'
    self._wait, self._clock, self._stops = wait, clock, stops
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._run, name='tuna-watch', daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends the watch."""
    self._ended.set()
    self._thread.join()

  def _run(self):
    told = None
    while not self._ended.wait(min(self._wait / 10, 5.0)):
      kind, since = self._clock.running()
      silent = time.perf_counter() - since
      if silent > self._wait * LONGER.get(kind, 1):
        self._stop(kind, since)
        return
      if kind == 'data' and silent > SLOW_S and told != since:
        told = since
        _log.warning('%s: no batch for %.0f s; %s', self._path.parent, silent, records.reading())

  def _stop(self, kind: str, since: float):
    said = f'{self._path.parent}: guard.wait={self._wait:g}: {kind} takes longer'
    said += f'; {records.reading()}' if kind in ('start', 'data') else ''
    text = f'{said}; the stacks of all threads of process {jax.process_index()}:\n{_stacks()}'
    _log.error('%s', text)
    storing = threading.Thread(target=files.write_text, args=(self._path, text), daemon=True)
    storing.start()
    storing.join(GRACE_S / 4)  # storage may be what hangs
    if not self._stops:
      return
    os.kill(os.getpid(), signal.SIGUSR1)
    until = time.perf_counter() + GRACE_S
    while not self._ended.wait(0.2):
      now, (_, begun) = time.perf_counter(), self._clock.running()
      if begun != since:  # it saves
        since, until = begun, now + max(self._wait, GRACE_S)
      if now > until:
        _log.error('%s; it does not stop, so the process is ended', said)
        os._exit(stopping.AGAIN)


def _stacks() -> str:
  """What every thread does now."""
  with tempfile.TemporaryFile() as file:
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    return file.read().decode(errors='replace')
