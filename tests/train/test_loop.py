"""Each stage's real config, shrunk, trains, saves, resumes, hands over and samples.

A run may be stopped anywhere and loses nothing.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import threading
import time
import types

import jax
import numpy as np
import pytest

from tests import shrink
from tests.train.test_metrics import metrics, opened
from tuna_jax import stopping, tree
from tuna_jax.config import UserError
from tuna_jax.data import pipeline
from tuna_jax.sample.open import open_generator
from tuna_jax.train import checkpoint, guard, loop, state, watch
from tuna_jax.train.goodput import Goodput
from tuna_jax.weights import steps, store


def train(config, workdir):
  return loop.train(config, str(workdir), jax.devices()[:1])


def records(workdir):
  """The logged losses: [(step, {name: value})], timings left out."""
  rows = [
    json.loads(line) for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  ]
  return [(r['step'], {k: v for k, v in r.items() if k == 'loss' or '/' in k}) for r in rows]


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


class Chain:
  """The three stages one after another, each trained when first asked for."""

  def __init__(self, folder, size):
    self._folder, self._size = folder, size
    self.run = functools.cache(self._run)

  def config(self, stage):
    before = {'stage1': '', 'stage2': 'stage1', 'stage3': 'stage2'}[stage]
    return shrink.stage(stage, self._size, init_from=str(self.run(before)[0]) if before else '')

  def _run(self, stage):
    workdir = self._folder / stage
    return workdir, train(self.config(stage), workdir)


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
  return Chain(tmp_path_factory.mktemp('chain'), 'tiny')


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  return Chain(tmp_path_factory.mktemp('published'), '2b')


def resumes(chain, stage, tmp_path):
  workdir, final = chain.run(stage)
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '3')  # as if it had died in step 3
  again = train(chain.config(stage), tmp_path / 'run')
  assert [step for step, _ in records(tmp_path / 'run')] == [1, 2, 3, 3]
  first, second = records(tmp_path / 'run')[-2:]
  assert first == second and np.isfinite(first[1]['loss'])
  equal(again, final)
  positions = [
    json.loads(next((w / 'checkpoints' / '3' / 'data').glob('metadata*')).read_text())
    for w in (workdir, tmp_path / 'run')
  ]
  assert positions[0] == positions[1]


@pytest.mark.parametrize('stage', shrink.STAGES)
def test_a_stage_resumes_with_the_identical_batch_and_loss(chain, stage, tmp_path):
  resumes(chain, stage, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('stage', shrink.STAGES)
def test_a_stage_of_a_published_size_resumes_likewise(published, stage, tmp_path):
  resumes(published, stage, tmp_path)


def test_stage_one_leaves_the_decoder_as_it_was(chain):
  _, final = chain.run('stage1')
  fresh = state.first_params(chain.config('stage1'))
  jax.tree.map(np.testing.assert_array_equal, final.params['decoder'], fresh['decoder'])
  moved = [
    n
    for n, leaf in tree.flatten(final.params).items()
    if not n.startswith('decoder/') and not np.allclose(leaf, tree.flatten(fresh)[n], atol=1e-5)
  ]
  assert 'connector/fc1/kernel' in moved and 'flow_head/final/linear/kernel' in moved


def test_a_stage_starts_from_the_averages_of_the_one_before(chain, tmp_path):
  _, before = chain.run('stage1')
  config = dataclasses.replace(chain.config('stage2'), steps=0)
  equal(train(config, tmp_path).params, state.weights(before))


def test_a_missing_leaf_stops_the_hand_over_and_is_named(chain, tmp_path):
  _, before = chain.run('stage1')
  flat = tree.flatten(before.params)
  del flat['connector/fc1/bias']
  config = chain.config('stage2')
  store.save(str(tmp_path / 'holed'), config.model, tree.unflatten(flat))
  with pytest.raises(ValueError, match='connector/fc1/bias: missing in the checkpoint'):
    train(dataclasses.replace(config, init_from=str(tmp_path / 'holed')), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()  # nothing claims to be a run


@pytest.mark.parametrize(
  'stage', [pytest.param(s, marks=[pytest.mark.slow] * (s != 'stage3')) for s in shrink.STAGES]
)
def test_what_a_stage_leaves_draws_and_writes(chain, stage):
  generator = open_generator(chain.run(stage)[0], batch_size=1)
  drawn = np.asarray(generator.image('a red circle', points=2))
  assert drawn.shape == (64, 64, 3) and drawn.dtype == np.uint8 and drawn.std() > 0
  assert isinstance(generator.text('what is this?', images=[drawn], max_new_tokens=3), str)


def test_a_finished_run_is_not_trained_again(chain):
  workdir, final = chain.run('stage1')
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  equal(train(chain.config('stage1'), workdir), final)
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before


def test_the_config_of_another_model_does_not_overwrite_the_runs(chain, tmp_path):
  workdir, _ = chain.run('stage1')
  shutil.copytree(workdir, tmp_path / 'run')
  config = chain.config('stage1')
  wider = dataclasses.replace(
    config.model, vision=dataclasses.replace(config.model.vision, mlp_dim=64)
  )
  train(dataclasses.replace(config, model=wider), tmp_path / 'run')
  assert checkpoint.read_config(str(tmp_path / 'run')) == config


@pytest.mark.parametrize(
  'change, message',
  [
    ({'tokenizer': ''}, 'tokenizer: no directory given'),
    ({'vae': ''}, 'vae: no directory given, and the run has pictures'),
    ({'init_from': '/nowhere'}, '/nowhere: no config.json there'),
  ],
)
def test_a_part_that_is_not_there_is_named(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    train(shrink.stage('stage2', **change), tmp_path / 'run')
  assert not list(tmp_path.iterdir())


def test_a_vae_of_other_channels_is_refused(tmp_path):
  config = shrink.stage('stage2')
  wide = dataclasses.replace(
    config.model, vae=dataclasses.replace(config.model.vae, latent_channels=16)
  )
  with pytest.raises(ValueError, match=r'8 latent channels, the model has 16 \(model.vae\)'):
    train(dataclasses.replace(config, model=wide), tmp_path)


def test_rows_that_do_not_hold_a_task_of_a_later_phase_are_refused_before_the_first_step(tmp_path):
  needs = r'the example of edit needs L=\d+, V=32, M=2; a row has L=160, V=20, M=4'
  with pytest.raises(UserError, match=needs + '.*read from step 50 on.*--config.visual=128'):
    train(shrink.stage('stage2', steps=1000, visual=20), tmp_path)
  assert not list(tmp_path.rglob('metrics.jsonl'))


def test_metrics_of_a_step_are_read_while_the_next_one_runs(tmp_path):
  log = opened(tmp_path, steps=9)
  run = types.SimpleNamespace(
    workdir='RUN', log=log, goodput=Goodput(str(tmp_path)),
    guard=types.SimpleNamespace(judge=lambda step, *_: judged.append(step), refused=0),
  )  # fmt: skip
  arrivals, judged = loop._Arrivals(run), []
  arrivals.put(1, {**metrics(), 'kept': True}, None)
  assert not records(tmp_path)
  arrivals.put(2, {**metrics(loss=float('nan')), 'kept': False}, None)
  assert [step for step, _ in records(tmp_path)] == judged == [1]
  arrivals.fetch()
  assert judged == [1, 2]
  log.close()


def test_weights_that_are_no_numbers_are_named_before_the_first_step(chain, tmp_path):
  _, before = chain.run('stage1')
  params = jax.tree.map(np.asarray, before.params)
  params['connector']['fc2']['bias'] = params['connector']['fc2']['bias'] * np.float32('nan')
  config = chain.config('stage2')
  store.save(str(tmp_path / 'bad'), config.model, params)
  with pytest.raises(guard.Diverged, match='params/connector/fc2/bias is not finite after step 0'):
    train(dataclasses.replace(config, init_from=str(tmp_path / 'bad')), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_step_that_the_config_names_is_profiled(chain, tmp_path):
  train(dataclasses.replace(chain.config('stage1'), steps=1, profile_steps=(0,)), tmp_path)
  (profile,) = (tmp_path / 'profile').rglob('*.xplane.pb')
  assert b'train' in profile.read_bytes()  # the mark of the step


# ---- stopping


class Sender:
  """Sends this process signals from a thread, each as soon as its condition holds."""

  def __init__(self, *plan):
    self._thread = threading.Thread(target=self._send, args=(plan,), daemon=True)
    self._thread.start()

  def _send(self, plan):
    for number, ready in plan:
      deadline = time.monotonic() + 120
      while not ready() and time.monotonic() < deadline:
        time.sleep(0.001)
      os.kill(os.getpid(), number)

  def join(self):
    self._thread.join()


def lines(workdir):
  path = workdir / 'log.txt'
  return lambda: path.exists() and path.stat().st_size > 0


def stoppable(chain, **changes):
  return dataclasses.replace(
    chain.config('stage1'), steps=40, **{'checkpoint_every': 10**6, **changes}
  )


def test_a_signal_before_the_first_step_saves_nothing_and_says_so(chain, tmp_path):
  config, before = stoppable(chain), signal.getsignal(signal.SIGTERM)
  sender = Sender(
    (signal.SIGTERM, (tmp_path / 'config.json').exists)
  )  # written just before the compile
  with pytest.raises(stopping.Stopped, match='^(?!.*step [1-9]).*the same command'):
    train(config, tmp_path)
  sender.join()
  written = tmp_path / 'metrics.jsonl'
  assert not written.exists() or not written.read_text()
  assert not [p for p in tmp_path.glob('checkpoints/*') if p.name.isdigit()]
  assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_in_a_save_or_between_steps_leaves_a_run_that_continues(chain, tmp_path, number):
  config = stoppable(chain, checkpoint_every=1)

  def saving():
    return any('tmp' in p.name for p in (tmp_path / 'checkpoints').glob('*'))

  (tmp_path / 'checkpoints').mkdir()
  sender = Sender((number, saving))
  with pytest.raises(stopping.Stopped, match='the same command continues'):
    train(config, tmp_path)
  sender.join()
  step = records(tmp_path)[-1][0]
  assert (
    max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()) == step < 40
  )


@pytest.mark.parametrize('how', ['signal', pytest.param('watch', marks=pytest.mark.slow)])
def test_a_run_whose_data_never_answer_saves_its_last_whole_step(chain, tmp_path, monkeypatch, how):
  config, build, until = stoppable(chain), pipeline.Pipeline._build, threading.Event()
  if how == 'watch':
    config = dataclasses.replace(config, guard=dataclasses.replace(config.guard, wait=5.0))
    monkeypatch.setattr(watch, 'LONGER', {'start': 99, 'compile': 99})

  def hang(self):
    if self._head[0] == 3:
      until.wait(300)
    return build(self)

  monkeypatch.setattr(pipeline.Pipeline, '_build', hang)
  monkeypatch.setattr(pipeline, 'PATIENCE_S', 0.1)
  two_steps = lambda: len(records(tmp_path)) == 2 if lines(tmp_path)() else False
  sender = Sender((signal.SIGTERM, two_steps)) if how == 'signal' else None
  with pytest.raises(stopping.Stopped, match='stopped at step 3 of 40; the same command continues'):
    train(config, tmp_path)
  until.set()
  assert steps.committed(tmp_path) == [3]
  assert (tmp_path / 'stacks-0.txt').exists() == (how == 'watch')
  if sender:
    sender.join()
