"""How work is stopped: by a signal, with what is done saved, so that the same command continues."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading

AGAIN = 75  # EX_TEMPFAIL, the exit code of what may be run again: launch scripts do so
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Stopped(BaseException):
  """The work was asked to stop; what is done is saved, and the same command continues.

  Like KeyboardInterrupt it is no Exception, so what forgives a bad record or file lets it through.
  """


class Signals:
  """Within its block the signals of SIGNALS raise Stopped, wherever the main thread is.

  After `hold()` they are noted in `asked` instead, for work that saves between its steps, except
  within blocks of `raising()`; when the block ends, a block around it is told. A second Ctrl-C is a
  KeyboardInterrupt. SIGHUP stays ignored if the process was started so, as by nohup.

  together: of a run of several processes. One that stops alone would leave the others waiting, so
  every signal becomes a SIGTERM, and that is left to the handler of jax, which tells all of them.
  """

  _innermost: Signals | None = None

  def __init__(self, together: bool = False):
    self.asked: int | None = None
    self._together, self._holds, self._old = together, together, {}
    self._outer: Signals | None = None

  def __enter__(self) -> Signals:
    # Python takes signals in the main thread only; elsewhere the caller handles them.
    if threading.current_thread() is not threading.main_thread():
      return self
    for number in SIGNALS:
      ignored = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
      if not ignored and not (self._together and number == signal.SIGTERM):
        self._old[number] = signal.signal(number, self._note)
    self._outer, Signals._innermost = Signals._innermost, self
    return self

  def __bool__(self):
    """Whether it handles signals."""
    return bool(self._old)

  def hold(self) -> None:
    """From now on signals are noted. Raises Stopped if one has come before."""
    self._holds = True
    self._check()

  @contextlib.contextmanager
  def raising(self):
    """Within the block signals raise Stopped all the same, as does one that has come before."""
    before, self._holds = self._holds, self._together
    try:
      self._check()
      yield
    finally:
      self._holds = before

  def _check(self):
    if self.asked is not None and not self._together:
      raise Stopped(self._said())

  def _note(self, number, frame):
    del frame
    again, self.asked = self.asked is not None, number
    if self._together:
      os.kill(os.getpid(), signal.SIGTERM)
    elif again and number == signal.SIGINT:
      raise KeyboardInterrupt
    elif not again and not self._holds:
      raise Stopped(self._said())

  def _said(self) -> str:
    return f'stopped by {signal.Signals(self.asked).name}; run the same command again'

  def __exit__(self, kind, error, trace):
    if not self._old:
      return
    Signals._innermost = self._outer
    for number, handler in self._old.items():
      signal.signal(number, handler)
    if self.asked is not None and error is None and self._outer is not None:
      self._outer._note(self.asked, None)


def install() -> None:
  """Signals raise Stopped for the rest of the process's life, or until `ignore`."""
  Signals().__enter__()


def ignore() -> None:
  """From now on nothing interrupts: the work is done, and the process is about to end."""
  for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)


def as_worker() -> None:
  """In a process that works for another one: SIGTERM, or the end of the other, ends it as an exit
  would, which removes files that are half written; other signals are for its parent."""

  def leave(number, frame):
    raise SystemExit(128 + number)

  def follow(parent):
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

  ignore()
  signal.signal(signal.SIGTERM, leave)
  parent = multiprocessing.parent_process()
  threading.Thread(target=follow, args=(parent,), daemon=True).start()
