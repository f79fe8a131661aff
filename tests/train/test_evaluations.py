"""What a run measures and draws while it trains: losses of held-out records, fixed pictures."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from tests import shrink
from tuna_jax.config import UserError
from tuna_jax.evals import curves
from tuna_jax.train import loop
from tuna_jax.train.config import ReportConfig

REPORT = ReportConfig(
  line_s=0, samples_every=2, sample_points=2,
  prompts=('a red circle', 'a blue square'),
)  # fmt: skip


def events(folder):
  """Every event of TensorBoard's files in `folder`, read as TensorBoard does: length, checksum,
  content, checksum."""
  found = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(config, folder) of three steps on eight devices, with held-out records."""
  folder = tmp_path_factory.mktemp('run')
  mixture = folder / 'held.json'
  rows = [{'path': 'shapes', 'task': t, 'split': 'test', 'size': 50} for t in ('t2i', 'vqa')]
  mixture.write_text(json.dumps(rows))
  report = dataclasses.replace(REPORT, held_out=str(mixture), held_out_every=2, held_out_batches=2)
  config = shrink.stage('stage2', report=report, checkpoint_every=2)
  loop.train(config, str(folder / 'run'))
  return config, folder / 'run'


def test_held_out_losses_are_measured_before_during_and_after_and_say_the_same_again(run, tmp_path):
  config, folder = run
  records = {r['step']: r for r in curves.read(folder / 'metrics.jsonl')}
  measured = {n: {k: v for k, v in r.items() if k.startswith('held_')} for n, r in records.items()}
  assert [n for n, values in measured.items() if values] == [0, 2, 3]
  assert {'held_loss', 'held_ntp/vqa', 'held_flow/t2i'} <= set(measured[2]) == set(measured[3])
  assert records[2]['loss'] and measured[2] != measured[0]
  lines = (folder / 'log.txt').read_text()
  assert f'eval metrics after step: 2, loss={measured[2]["held_loss"]:.4f}, held_ntp/all: ' in lines
  # One device and fewer steps: the same records, noise and times.
  alone = dataclasses.replace(
    config, steps=1, report=dataclasses.replace(config.report, samples_every=0)
  )
  loop.train(alone, str(tmp_path), jax.devices()[:1])
  again = curves.read(tmp_path / 'metrics.jsonl')[0]
  for name, value in measured[0].items():
    assert again[name] == pytest.approx(value, rel=1e-5)


def test_pictures_of_fixed_prompts_are_shown(run):
  found = {}
  for event in events(run[1] / 'tensorboard'):
    for value in event.summary.value:
      if value.HasField('image'):
        found.setdefault(value.tag, []).append((event.step, value.image.height, value.image.width))
  assert len(found) == 2
  assert all(shown == [(0, 64, 64), (2, 64, 64), (3, 64, 64)] for shown in found.values())


def test_time_of_evaluations_is_told_apart(run):
  seconds = json.loads((run[1] / 'goodput.json').read_text())['seconds']
  assert seconds['evaluate'] > 0 and np.isclose(
    seconds['step'] + seconds['data'],
    sum(r['seconds'] for r in curves.read(run[1] / 'metrics.jsonl') if 'seconds' in r),
    rtol=0.05,
    atol=0.1,
  )


def test_a_run_that_cannot_draw_is_told_so_before_the_first_step(tmp_path):
  config = shrink.stage('stage2', report=REPORT, flow_coeff=0.0)
  config = dataclasses.replace(config, report=ReportConfig(samples_every=1))
  with pytest.raises(UserError, match='the run trains nothing that draws'):
    loop.train(config, str(tmp_path))
  with pytest.raises(UserError, match='expected a mixture and a number of steps, or neither'):
    ReportConfig(held_out_every=5)
