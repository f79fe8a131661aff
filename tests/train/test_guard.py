"""Losses that are no numbers change nothing, are told with their records, and end the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tuna_jax.train import feed, guard, loop, replay
from tuna_jax.train.state import TrainState
from tuna_jax.weights import steps

RECORDS = [['a.jsonl:1', 'a.jsonl:2'], ['b.jsonl:7']]


def made(**changes):
  config = shrink.real('stage1')
  return dataclasses.replace(config, guard=dataclasses.replace(config.guard, **changes))


class Steps:
  """A guard, told of one step after another."""

  def __init__(self, workdir, monkeypatch, **changes):
    monkeypatch.setattr(guard, 'write', lambda *args: self.written.append(args[0].name))
    self.guard, self.step, self.written = guard.Guard(made(**changes), str(workdir), 0), 0, []

  def __call__(self, loss, sane=True):
    self.step += 1
    found = {'loss': loss, 'grad_norm': 1.0, 'lr': 1e-4, 'kept': np.isfinite(loss), 'sane': sane}
    self.guard.judge(self.step, found, guard.Drawn(None, lambda: RECORDS))


def test_a_loss_far_above_the_median_is_told_with_its_records(tmp_path, monkeypatch, caplog):
  step = Steps(tmp_path, monkeypatch, spike=3.0)
  for loss in [1.0] * 9 + [9.0] + [1.1, 2.9, 3.1]:
    step(loss)
  said = [r.message for r in caplog.records]
  assert len(said) == 1 and said[0].startswith(
    f'{tmp_path}: step 13 has loss 3.1000, the median of the last 12 is 1.0000'
  )
  assert said[0].endswith('its records: a.jsonl:1, a.jsonl:2, b.jsonl:7')


def test_updates_that_are_not_kept_are_counted_named_and_dumped_and_end_the_run(
  tmp_path, monkeypatch, caplog
):
  step = Steps(tmp_path, monkeypatch, updates=3)
  for loss in (1.0, float('nan'), float('inf'), 1.0, float('nan'), float('nan')):
    step(loss)
  assert step.guard.refused == 4 and step.guard.suspect == 4
  assert step.written == ['2-0.npz', '3-0.npz', '5-0.npz', '6-0.npz']
  assert (
    'the update of step 3 is not kept (loss inf, grad_norm 1, lr 0.0001, 2 in a row); its '
    in (caplog.text)
    and f'a.jsonl:1, a.jsonl:2, b.jsonl:7; `tuna-jax data replay {tmp_path}/bad/3-0.npz`'
    in caplog.text
  )
  with pytest.raises(guard.Diverged, match='guard.updates=3 updates in a row .* is of step 4'):
    step(float('nan'))


def state(value=1.0):
  leaf = jnp.array([1.0, value])
  return TrainState(jnp.int32(7), {'a': {'kernel': leaf}}, {'a/kernel': leaf}, (jnp.int32(7), leaf))


def test_a_state_is_saved_unless_it_is_suspect_or_holds_what_is_no_number(tmp_path, monkeypatch):
  step = Steps(tmp_path, monkeypatch)
  step(1.0)
  step(float('nan'), sane=False)  # the data are to blame
  step.guard.check(state())
  with pytest.raises(guard.Diverged, match='params/a/kernel is not finite after step 7'):
    step.guard.check(state(float('inf')))
  step(float('nan'))
  with pytest.raises(guard.Diverged, match='the last 2 updates of the run were not finite'):
    step.guard.check(state())
  step(1.0)
  step.guard.check(state())


def test_one_batch_of_bad_latents_costs_one_update_and_is_replayed(tmp_path, monkeypatch, caplog):
  config, put, seen = shrink.stage('stage2', steps=2, checkpoint_every=1), feed.Feed._put, []

  def spoil(self, batch):
    seen.append(batch)
    if len(seen) == 2:
      batch.latents[1, 0] = np.nan
    return put(self, batch)

  monkeypatch.setattr(feed.Feed, '_put', spoil)
  loop.train(config, str(tmp_path), one())
  one_step, two_steps = (steps.record(tmp_path, n) for n in (1, 2))
  for item in ('params', 'ema'):
    assert one_step[item] == two_steps[item]
  moments = [
    {k: v for k, v in r['optimizer'].items() if k != 'step'} for r in (one_step, two_steps)
  ]
  assert moments[0] == moments[1]
  assert 'the update of step 2 is not kept (loss nan' in caplog.text
  found = list(replay.replay(tmp_path / 'bad' / '2-0.npz'))
  assert all(f.place in caplog.text for f in found[: guard.NAMED]) and len(found) > 8
  bad = [f for f in found if not f.finite]
  assert len(bad) == 1 and np.isnan(bad[0].loss)
  assert all(np.isfinite(f.loss) for f in found if f.finite)


def one():
  return jax.devices()[:1]


@pytest.mark.slow
def test_a_rate_that_is_no_number_never_ends_well(tmp_path):
  config = shrink.stage('stage1', steps=1)
  optimizer = dataclasses.replace(config.optimizer, lr=float('nan'), warmup=0)
  with pytest.raises(guard.Diverged, match='the last 1 updates of the run were not finite'):
    loop.train(dataclasses.replace(config, optimizer=optimizer), str(tmp_path / 'run'), one())
  assert not [p for p in (tmp_path / 'run' / 'checkpoints').iterdir() if p.name.isdigit()]


def test_a_checkpoint_that_a_bad_rate_spoiled_is_set_aside(tmp_path, monkeypatch):
  config = shrink.stage('stage1', steps=6, checkpoint_every=1)
  config = dataclasses.replace(config, guard=dataclasses.replace(config.guard, updates=2))
  judge = guard.Guard.judge

  def spoil(self, step, metrics, drawn):  # as if a finite step to 1e30 had been taken in step 3
    broken = {'loss': np.float32('nan'), 'kept': False} if step > 3 else {}
    judge(self, step, metrics | broken, drawn)

  monkeypatch.setattr(guard.Guard, 'judge', spoil)
  with pytest.raises(guard.Diverged, match='the last that was kept is of step 3'):
    loop.train(config, str(tmp_path), one())
  left = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
  assert left[-1] == 2 and [p.name[0] for p in (tmp_path / 'damaged').iterdir()] == ['3']
