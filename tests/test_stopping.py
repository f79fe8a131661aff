"""Signals end work where nothing is lost, and no process that does so is waited for in vain."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tuna_jax import stopping
from tuna_jax.stopping import SIGNALS, Signals, Stopped


def send(number):
  os.kill(os.getpid(), number)


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_stops_what_waits_and_is_named(number):
  before = signal.getsignal(number)
  with pytest.raises(Stopped, match=f'stopped by {signal.Signals(number).name}; run the same'):
    with Signals():
      send(number)
  assert signal.getsignal(number) == before


def test_work_that_saves_between_its_steps_is_told_and_stopped_where_it_waits():
  with pytest.raises(Stopped), Signals() as stop:
    stop.hold()
    send(signal.SIGHUP)
    assert stop.asked
    send(signal.SIGTERM)  # again and again, without harm
    with stop.raising():
      raise AssertionError('the signal of before is not forgotten')


def test_what_forgives_a_record_does_not_forgive_a_signal():
  with pytest.raises(Stopped), Signals():
    try:
      send(signal.SIGTERM)
    except Exception:
      raise AssertionError from None


def test_a_signal_in_the_last_step_of_a_part_stops_the_whole():
  with pytest.raises(Stopped, match='SIGUSR1'), Signals():
    with Signals() as inner:
      inner.hold()
      send(signal.SIGUSR1)
    raise AssertionError('the next part')


def test_the_second_ctrl_c_ends():
  before = signal.getsignal(signal.SIGINT)
  with Signals() as stop:
    stop.hold()
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)
    send(signal.SIGTERM)
  assert signal.getsignal(signal.SIGINT) == before


def test_of_several_processes_none_stops_alone():
  told, before = [], signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
  with Signals(together=True) as stop:
    send(signal.SIGINT)
    with stop.raising():
      pass
  assert told == [signal.SIGTERM]
  signal.signal(signal.SIGTERM, before)


def test_a_thread_leaves_signals_to_its_caller():
  seen, before = [], signal.getsignal(signal.SIGTERM)

  def run():
    with Signals() as stop:
      seen.append((stop.asked, signal.getsignal(signal.SIGTERM)))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert seen == [(None, before)]


VERB = """
import signal, sys, threading, time
from tuna_jax.cli import app

def main(argv):
  threading.Thread(target=time.sleep, args=(60,)).start()  # reads from what never answers
  print('ready', flush=True)
  time.sleep(60)

app.run(main)
"""


@pytest.mark.parametrize('number', SIGNALS)
def test_a_verb_that_is_stopped_exits_with_75_at_once(tmp_path, number):
  (tmp_path / 'wait.py').write_text(VERB)
  command = [sys.executable, str(tmp_path / 'wait.py')]
  path = str(pathlib.Path(stopping.__file__).parents[1])
  environment = os.environ | {'PYTHONPATH': path}
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
  )
  assert process.stdout.readline() == 'ready\n'
  began = time.monotonic()
  process.send_signal(number)
  _, said = process.communicate(timeout=30)
  name = signal.Signals(number).name
  assert (process.returncode, said) == (
    75,
    f'tuna-jax wait: stopped by {name}; run the same command again\n',
  )
  assert time.monotonic() - began < 10
