"""Where the time of a run goes, over all its starts."""

import time

import pytest

from tuna_jax import files
from tuna_jax.train.goodput import Goodput


def test_every_second_counts_once(tmp_path):
  began, goodput = time.perf_counter(), Goodput(str(tmp_path))
  for kind, seconds in (('data', 0.02), ('step', 0.05), ('data', 0.02)):
    goodput(kind)
    time.sleep(seconds)
  found = goodput.seconds()
  assert sum(found.values()) == pytest.approx(time.perf_counter() - began, abs=0.01)
  assert found['data'] >= 0.04 and found['step'] >= 0.05 and found['save'] == 0


def test_steps_that_are_taken_again_are_lost(tmp_path):
  known = {'starts': 2, 'step': 50, 'seconds': {'step': 100.0, 'compile': 7.0, 'lost': 1.0}}
  files.write_json(tmp_path / 'goodput.json', known)
  goodput = Goodput(str(tmp_path))
  goodput.restored(40)
  goodput.step = 41
  goodput.write()
  found = files.read_json(tmp_path / 'goodput.json')
  assert (found['starts'], found['step']) == (3, 41)
  assert found['seconds'] | {'start': 0} == {
    'start': 0, 'compile': 7, 'data': 0, 'step': 80, 'save': 0, 'evaluate': 0, 'lost': 21
  }  # fmt: skip
  said = str(goodput)
  assert said.startswith('goodput: 7') and 'in 3 starts; ' in said and 'lost 21.0 s' in said


def test_a_checkpoint_newer_than_the_journal_loses_nothing(tmp_path):
  files.write_json(tmp_path / 'goodput.json', {'starts': 1, 'step': 9, 'seconds': {'step': 9.0}})
  goodput = Goodput(str(tmp_path))
  goodput.restored(12)
  assert goodput.seconds()['lost'] == 0 and goodput.step == 12
