"""One device for many people: work is done one after another, and each follows its own."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

POLL = 0.25  # seconds between two looks at how many are ahead

Event = tuple[str, Any]
Tell = Callable[[str, Any], bool]


class Busy(Exception):
  """As many wait as may; the work was not taken."""


class Ticket:
  """work: what is asked for. events: what it told. left: nobody follows it any more."""

  def __init__(self, work: Callable[[Tell], Any]):
    self.work, self.left = work, False
    self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

  def tell(self, kind: str, value: Any) -> bool:
    """Hands an event to who follows; whether anybody does."""
    self.events.put((kind, value))
    return not self.left


class Desk:
  """Does one piece of work at a time, in the order of asking, in a thread of its own.

  waiting: how many may wait while another is done.
  """

  def __init__(self, waiting: int):
    self._waiting, self._lock = waiting, threading.Lock()
    self._tickets: list[Ticket] = []
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='tuna-device')

  def events(self, work: Callable[[Tell], Any]) -> Iterator[Event]:
    """Does `work(tell)` in its turn -> ('ahead', how many are served before it) whenever that
    changes, what it tells, and at last ('result', what it returns).

    Raises what the work raises, and Busy. Where the iterator is closed, work that has not begun is
    dropped, and `tell` returns False to work that has.
    """
    ticket = Ticket(work)
    with self._lock:
      if len(self._tickets) > self._waiting:
        raise Busy(f'{len(self._tickets)} requests are being served or wait; try again later')
      self._tickets.append(ticket)
    self._pool.submit(self._do, ticket)
    try:
      yield from self._follow(ticket)
    finally:
      ticket.left = True

  def _follow(self, ticket: Ticket) -> Iterator[Event]:
    said = 0
    while True:
      with self._lock:
        ahead = self._tickets.index(ticket) if ticket in self._tickets else 0
      if ahead and ahead != said:
        yield 'ahead', ahead
      said = ahead
      try:
        kind, value = ticket.events.get(timeout=POLL)
      except queue.Empty:
        continue
      if kind == 'error':
        raise value
      yield kind, value
      if kind == 'result':
        return

  def _do(self, ticket: Ticket) -> None:
    try:
      if not ticket.left:
        ticket.tell('result', ticket.work(ticket.tell))
    except Exception as error:  # of the request, whatever it is: it belongs to who asked
      ticket.tell('error', error)
    finally:
      with self._lock:
        self._tickets.remove(ticket)
