"""What a run measures and draws while it trains: losses of held-out records, fixed pictures."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import shrink
from tuna_jax import sharding
from tuna_jax.config import UserError
from tuna_jax.evals import curves
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train import loop
from tuna_jax.train.config import ReportConfig
from tuna_jax.train.feed import Feed
from tuna_jax.train.held_out import HeldOut

REPORT = ReportConfig(
  line_s=0, samples_every=2, sample_points=2,
  prompts=('a red circle', 'a blue square'),
)  # fmt: skip


def events(folder):
  """Every event of TensorBoard's files in `folder`, read as TensorBoard does: length, checksum,
  content, checksum."""
  from tensorboardX.proto import event_pb2  # which loads PyTorch

  found = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def config_of(folder):
  """Of three steps, with held-out records of the rendered world."""
  mixture = folder / 'held.json'
  rows = [{'path': 'shapes', 'task': t, 'split': 'test', 'size': 50} for t in ('t2i', 'vqa')]
  mixture.write_text(json.dumps(rows))
  report = dataclasses.replace(REPORT, held_out=str(mixture), held_out_every=2, held_out_batches=2)
  return shrink.stage('stage2', report=report, checkpoint_every=2)


def test_held_out_losses_are_the_same_on_any_mesh_and_at_any_time(tmp_path):
  config, found = config_of(tmp_path), []
  for devices in (1, 8):
    mesh = sharding.make_mesh(-1, 1, 1, 1, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
      params = jax.jit(
        lambda: shrink.randomise(tuna_shapes(config.model), 0),
        out_shardings=sharding.shardings(tuna_shapes(config.model), mesh),
      )()
      held_out = HeldOut(config, Feed(config, mesh), mesh, params)
      found += [held_out(params), held_out(params)]
  assert found[0] == found[1] and found[2] == found[3] == pytest.approx(found[0], rel=1e-5)
  assert {'held_loss', 'held_ntp/vqa', 'held_flow/t2i'} < set(found[0])
  assert not [name for name in found[0] if name.endswith(('edit', 'caption'))]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run on eight devices."""
  folder = tmp_path_factory.mktemp('run')
  loop.train(config_of(folder), str(folder / 'run'))
  return folder / 'run'


@pytest.mark.slow
def test_held_out_losses_are_measured_before_during_and_after(run):
  records = {r['step']: r for r in curves.read(run / 'metrics.jsonl')}
  measured = {n: {k: v for k, v in r.items() if k.startswith('held_')} for n, r in records.items()}
  assert [n for n, values in measured.items() if values] == [0, 2, 3]
  assert set(measured[0]) == set(measured[2]) and measured[2] != measured[0]
  assert records[2]['loss'] and 'loss' not in records[0]
  said = f'eval metrics after step: 2, loss={measured[2]["held_loss"]:.4f}, held_ntp/all: '
  assert said in (run / 'log.txt').read_text()


@pytest.mark.slow
def test_pictures_of_fixed_prompts_are_shown(run):
  found = {}
  for event in events(run / 'tensorboard'):
    for value in event.summary.value:
      if value.HasField('image'):
        found.setdefault(value.tag, []).append((event.step, value.image.height, value.image.width))
  assert len(found) == 2
  assert all(shown == [(0, 64, 64), (2, 64, 64), (3, 64, 64)] for shown in found.values())


@pytest.mark.slow
def test_time_of_evaluations_is_told_apart(run):
  seconds = json.loads((run / 'goodput.json').read_text())['seconds']
  assert seconds['evaluate'] > 0 and np.isclose(
    seconds['step'] + seconds['data'],
    sum(r['seconds'] for r in curves.read(run / 'metrics.jsonl') if 'seconds' in r),
    rtol=0.05,
    atol=0.1,
  )


def test_a_run_that_cannot_draw_or_measure_is_told_so():
  with pytest.raises(UserError, match='the run trains nothing that draws'):
    dataclasses.replace(shrink.shrink(shrink.real('stage2')), report=REPORT, flow_coeff=0.0)
  with pytest.raises(UserError, match='expected a mixture and a number of steps, or neither'):
    ReportConfig(held_out_every=5)
