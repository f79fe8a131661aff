"""The queue of one device."""

import contextlib
import threading

import pytest

from tuna_jax.serve.desk import Busy, Desk


def test_work_is_done_one_after_another_in_the_order_of_asking():
  desk, go, order, running = Desk(8), threading.Event(), [], []

  def work(n):
    def do(tell):
      running.append(n)
      assert len(running) == 1
      go.wait(10)
      order.append(n)
      running.remove(n)
      return n

    return do

  first = desk.events(lambda tell: tell('begun', None) and work(0)(tell))
  assert next(first) == ('begun', None)
  others = [desk.events(work(n)) for n in (1, 2)]
  assert [next(events) for events in others] == [('ahead', 1), ('ahead', 2)]
  go.set()
  assert [list(events)[-1] for events in (*others, first)] == [('result', n) for n in (1, 2, 0)]
  assert order == [0, 1, 2]


def test_work_that_nobody_follows_is_not_begun_and_the_rest_goes_on():
  desk, go, done = Desk(8), threading.Event(), []
  first = desk.events(lambda tell: tell('begun', None) and go.wait(10))
  assert next(first) == ('begun', None)
  left = desk.events(lambda tell: done.append('left'))
  assert next(left) == ('ahead', 1)
  left.close()
  go.set()
  assert [*desk.events(lambda tell: done.append('last'))][-1] == ('result', None)
  assert done == ['last']


def test_whoever_leaves_is_known_to_the_work():
  desk, still = Desk(1), []
  gone = threading.Event()

  def work(tell):
    still.append(tell('piece', 0))
    gone.wait(10)
    still.append(tell('piece', 1))

  with contextlib.closing(desk.events(work)) as events:
    assert next(events) == ('piece', 0)
  gone.set()
  list(desk.events(lambda tell: None))
  assert still == [True, False]


def test_too_many_are_refused_and_an_error_is_that_of_who_asked():
  desk, go = Desk(1), threading.Event()
  first = desk.events(lambda tell: tell('begun', None) and go.wait(10))
  next(first)
  second = desk.events(lambda tell: 1 / 0)
  assert next(second) == ('ahead', 1)
  with pytest.raises(Busy, match='2 requests'):
    next(desk.events(print))
  go.set()
  with pytest.raises(ZeroDivisionError):
    list(second)
  assert list(first)[-1][0] == 'result'
