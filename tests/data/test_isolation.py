"""A decoder that crashes or hangs in a process of its own costs one record."""

import concurrent.futures
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data.isolation import Pool, Process
from tuna_jax.data.jsonl import JsonlSource
from tuna_jax.data.limits import Limits
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.records import BadRecord, load, named
from tuna_jax.data.sources import SourceConfig
from tuna_jax.data.tokenizer import Tokenizer


class Crash:
  """Runs a function in the process that unpickles it, as a damaged file does to a native codec."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


class Source:
  """One picture, given as a record holds it."""

  task = 'caption'

  def __init__(self, picture, **more):
    self.picture, self.config = picture, MediaConfig('16', processes=1, **more)

  @named
  def __getitem__(self, index):
    return load({'image': self.picture, 'caption': 'x'}, self.task, '/', self.config)

  def where(self, index):
    return f'here:{index}'


HANGS = """
from tuna_jax.data.isolation import Process
Process().call(600, exec, 'import time; print("begun", flush=True); time.sleep(600)')
"""


def test_a_call_that_hangs_does_not_outlive_the_run():
  run = subprocess.Popen([sys.executable, '-c', HANGS], stderr=subprocess.PIPE, text=True)
  assert run.stderr.readline() == 'begun\n'
  run.kill()
  run.communicate(timeout=30)  # ends when nobody has its standard error any more


GOOD = np.full((16, 16, 3), 7, np.uint8)


def test_a_crash_costs_one_record_and_names_it():
  for function, args, words in (
    (os.abort, (), 'SIGABRT'),
    (os._exit, (3,), 'exit code 3'),
    (os.kill, (0, 9), 'SIGKILL'),
  ):
    with pytest.raises(BadRecord, match=f'^here:0: the process that decoded it ended with {words}'):
      Source(Crash(function, *args))[0]
    np.testing.assert_array_equal(Source(GOOD)[0]['image'], GOOD)


def test_a_decoder_that_does_not_answer_costs_one_record():
  began = time.monotonic()
  with pytest.raises(BadRecord, match='here:0: .*limits.wait=0.5 s'):
    Source(Crash(time.sleep, 100), limits=Limits(wait=0.5))[0]
  assert time.monotonic() - began < 20
  np.testing.assert_array_equal(Source(GOOD)[0]['image'], GOOD)


def test_records_are_the_same_and_errors_too(tmp_path):
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(
    tmp_path / 'a.png'
  )
  lines = [
    {'image': 'a.png', 'caption': 'x'},
    {'image': 'gone.png', 'caption': 'x'},
    {'image': 'a.png'},
  ]
  (tmp_path / 'x.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  here, apart = (
    JsonlSource(SourceConfig(str(tmp_path / 'x.jsonl'), 'caption'), MediaConfig('32', processes=n))
    for n in (0, 2)
  )
  np.testing.assert_array_equal(here[0]['image'], apart[0]['image'])
  for index, words in (
    (1, 'x.jsonl:2: .*gone.png: No such file'),
    (2, "x.jsonl:3: no field 'caption'"),
  ):
    for source in (here, apart):
      with pytest.raises(BadRecord, match=words):
        source[index]


def test_what_a_process_prints_is_no_answer():
  assert Process().call(30, print, 'hello') is None


def test_threads_share_the_processes():
  pool = Pool(2)
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    found = list(threads.map(lambda n: pool.call(30, pow, n, 2), range(40)))
  assert found == [n**2 for n in range(40)]


def test_a_process_ends_with_the_one_that_started_it():
  command = [sys.executable, '-m', 'tuna_jax.data.isolation']
  assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60).returncode == 0


def test_what_is_raised_comes_back_in_words():
  with pytest.raises(UserError, match='KeyError: 3'):
    Process().call(30, {}.__getitem__, 3)


def test_batches_are_the_same_with_and_without_processes(tmp_path):
  pictures = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
  for i, pixels in enumerate(pictures):
    Image.fromarray(pixels).save(tmp_path / f'{i}.png')
  lines = [json.dumps({'image': f'{i}.png', 'caption': str(i)}) for i in range(20)]
  (tmp_path / 'x.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'x.jsonl', 'task': 'caption'}]))
  batches = []
  for processes in (0, 2):
    media = MediaConfig('16', processes=processes)
    data = Pipeline(
      DataConfig(mixture=str(tmp_path / 'm.json'), media=media),
      Tokenizer.train(['0'], 384),
      encode=lambda x: x[:, ::4, ::16, ::16].astype(np.float32),
      strides=(4, 16),
      sizes=(4, 160, 8, 4, 3),
      seed=0,
    )
    batches.append([next(data) for _ in range(3)])
    data.close()
  for here, apart in zip(*batches, strict=True):
    for a, b in zip(here, apart, strict=True):
      np.testing.assert_array_equal(a, b)
