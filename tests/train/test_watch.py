"""A run in which nothing goes on tells where it stands, saves what it can, and ends."""

import logging
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from tuna_jax.data import records
from tuna_jax.stopping import Signals, Stopped
from tuna_jax.train import watch


class Clock:
  """Tells what is done, and since when."""

  def __init__(self, kind):
    self.turn(kind)

  def turn(self, kind):
    self._now = kind, time.perf_counter()

  def running(self):
    return self._now


def watched(tmp_path, clock, wait=1.0, stops=True):
  return watch.Watch(tmp_path, wait, clock, stops)


def test_a_run_that_waits_for_data_is_stopped_where_it_waits_and_says_for_what(tmp_path, caplog):
  clock = Clock('data')
  with pytest.raises(Stopped, match='SIGUSR1'), Signals() as stop:
    stop.hold()
    watching = watched(tmp_path, clock)
    try:
      with stop.raising(), records.noted(lambda: 'a.jsonl:7'), records.noted(lambda: 'b.jsonl:8'):
        threading.Event().wait(30)
    finally:
      clock.turn('save')
      watching.close()
  said = (tmp_path / 'stacks-0.txt').read_text()
  assert said.startswith(
    f'{tmp_path}: guard.wait=1: data takes longer; reading a.jsonl:7 for 1 s, b.jsonl:8 for 1 s;'
  )
  assert 'test_watch.py' in said and 'Thread' in said and said in caplog.text


def test_a_run_that_goes_on_is_left_alone(tmp_path, caplog):
  clock = Clock('start')
  with Signals():
    watching = watched(tmp_path, clock)
    for kind in ('compile', 'data', 'step', 'save') * 2:
      time.sleep(0.3)
      clock.turn(kind)
    watching.close()
  assert not caplog.text and not (tmp_path / 'stacks-0.txt').exists()


def test_a_slow_batch_is_named_once_before_that(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(watch, 'SLOW_S', 0.1)
  watching = watched(tmp_path, Clock('data'), wait=2.0)
  with records.noted(lambda: 'a.jsonl:7'):
    time.sleep(1)
  watching.close()
  assert [r.levelno for r in caplog.records] == [logging.WARNING]
  assert 'no batch for 0 s; reading a.jsonl:7' in caplog.text


HANGS = """
import sys, time
from tests.train.test_watch import Clock
from tuna_jax.data import records
from tuna_jax.stopping import Signals
from tuna_jax.train import watch
watch.GRACE_S = 1.0
with Signals() as stop:
  stop.hold()
  watch.Watch(sys.argv[1], 1.0, Clock(sys.argv[2]))
  time.sleep(60)  # whatever signals come
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['step', 'save'])
def test_a_process_that_hangs_in_a_step_or_a_save_is_ended(tmp_path, kind):
  root = str(pathlib.Path(__file__).parents[2])
  done = subprocess.run(
    [sys.executable, '-c', HANGS, str(tmp_path), kind], cwd=root, capture_output=True, text=True,
    check=False, timeout=60, env=os.environ | {'PYTHONPATH': root},
  )  # fmt: skip
  assert done.returncode == 75, done.stderr
  assert f'{kind} takes longer' in (tmp_path / 'stacks-0.txt').read_text()
