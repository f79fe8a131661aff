"""Calls in processes of their own, so that a crash of a native codec costs one record.

A process reads pickled (function, arguments) from its standard input and writes pickled answers to
its standard output. It ends when its input does, also while a call hangs: it never outlives the
run.
"""

from __future__ import annotations

import functools
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from tuna_jax.config import UserError
from tuna_jax.data.limits import reason


class Process:
  """A process that answers one call at a time, started when needed and again after it died."""

  _process: subprocess.Popen | None = None

  def call(self, wait: float, function: Callable, *args):
    """`function(*args)`, by the process. Raises UserError with the words of what it raises, or if
    the process dies or takes more than `wait` seconds.
    """
    if self._process is None:
      command = [sys.executable, '-m', 'tuna_jax.data.isolation']
      pipe = subprocess.PIPE  # in a session of its own: Ctrl-C is for the run to handle
      self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
    late = threading.Event()
    timer = threading.Timer(wait, lambda process: (late.set(), process.kill()), [self._process])
    timer.start()
    try:
      pickle.dump((function, args), self._process.stdin, pickle.HIGHEST_PROTOCOL)
      self._process.stdin.flush()
      good, answer = pickle.load(self._process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
      code, self._process = self._process.wait(), None
      name = signal.Signals(-code).name if code < 0 else f'exit code {code}'
      why = f'took more than limits.wait={wait:g} s' if late.is_set() else f'ended with {name}'
      raise UserError(f'the process that decoded it {why}') from None
    finally:
      timer.cancel()
    if not good:
      raise UserError(answer)
    return answer


class Pool:
  """Several processes for as many threads; further threads wait for a free one."""

  def __init__(self, count: int):
    self._free: queue.LifoQueue[Process] = queue.LifoQueue()
    for _ in range(count):
      self._free.put(Process())

  def call(self, wait: float, function: Callable, *args):
    """`Process.call` by the next free one."""
    process = self._free.get()
    try:
      return process.call(wait, function, *args)
    finally:
      self._free.put(process)


@functools.cache
def pool(count: int) -> Pool:
  """The `count` processes of this run, for all its sources together."""
  return Pool(count)


def _follow():
  """Ends the process when nobody writes to its input any more, also while a call hangs."""
  end = select.poll()
  end.register(0, 0)  # a hang-up is told whatever else is asked for
  end.poll()
  os._exit(1)


def main():
  threading.Thread(target=_follow, daemon=True).start()
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what a codec prints is no answer
  while True:
    try:
      function, args = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    try:
      answer = True, function(*args)
    except Exception as e:
      answer = False, str(e) if isinstance(e, UserError) else reason(e)
    pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
    answers.flush()


if __name__ == '__main__':
  main()
