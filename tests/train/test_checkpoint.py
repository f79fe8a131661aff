"""Checkpoints restore anywhere, strictly by name, and a fault names the leaf."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from tests import shrink
from tuna_jax import sharding, tree
from tuna_jax.config import TunaConfig, VaeConfig
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train import checkpoint, state
from tuna_jax.train.checkpoint import Checkpoints
from tuna_jax.weights import store

CONFIG = shrink.shrink(shrink.real('stage1'))
DATA = {'step': 5, 'seed': 0, 'rows': list(range(8)), 'batch': 8, 'next': [[3, -1]] * 8}
MESHES = {'8': {'fsdp': 8}, '4x2': {'fsdp': 4, 'tensor': 2}, '1': {'fsdp': 1}}


def placed(config, mesh):
  """The abstract state with its shardings on a mesh of MESHES."""
  sizes = MESHES[mesh]
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  made = sharding.make_mesh(**sizes, devices=devices)
  abstract = state.abstract_state(config)
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    abstract,
    sharding.shardings(abstract, made),
  )


def make(mesh='8', step=5, seed=0):
  abstract = placed(CONFIG, mesh)
  values = shrink.randomise(abstract, seed)._replace(step=np.int32(step))
  return jax.tree.map(lambda v, a: jax.device_put(v, a.sharding), values, abstract)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run saved at steps 3 and 5 on 8 devices, and the state of step 5."""
  workdir = tmp_path_factory.mktemp('run')
  saver = Checkpoints(str(workdir), CONFIG)
  saver.write_config()
  last = make()
  saver.save(make(step=3, seed=1), {**DATA, 'step': 3})
  saver.save(last, DATA)
  saver.save(last, DATA)  # the same step again: nothing to do
  saver.close()
  return str(workdir), last


@pytest.fixture
def copy(run, tmp_path):
  shutil.copytree(run[0], tmp_path / 'run')
  return tmp_path / 'run'


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('mesh', MESHES)
def test_what_eight_devices_saved_restores_on_any_mesh(run, mesh):
  workdir, saved = run
  saver, abstract = Checkpoints(workdir, CONFIG), placed(CONFIG, mesh)
  assert saver.latest() == 5
  found, data = saver.restore(5, abstract)
  saver.close()
  equal(found, saved)
  assert data == DATA
  jax.tree.map(
    lambda a, f: f.sharding.is_equivalent_to(a.sharding, a.ndim) or pytest.fail(str(f.sharding)),
    abstract,
    found,
  )


@pytest.mark.parametrize('first, then', [('4x2', '1'), ('1', '8')])
def test_meshes_follow_each_other(tmp_path, first, then):
  saved = make(first)
  saver = Checkpoints(str(tmp_path), CONFIG)
  saver.save(saved, DATA)
  saver.close()
  saver = Checkpoints(str(tmp_path), CONFIG)
  equal(saver.restore(5, placed(CONFIG, then))[0], saved)
  saver.close()


def test_an_earlier_step_restores_too(run):
  saver = Checkpoints(run[0], CONFIG)
  found, data = saver.restore(3, placed(CONFIG, '1'))
  saver.close()
  assert int(found.step) == 3 and data['step'] == 3
  equal(found.ema, make(step=3, seed=1).ema)


def test_a_misshapen_checkpoint_is_refused_and_its_leaves_named(run):
  flow_head = dataclasses.replace(CONFIG.model.flow_head, mlp_dim=64)
  other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, flow_head=flow_head))
  saver = Checkpoints(run[0], other)
  with pytest.raises(ValueError) as caught:
    saver.restore(5, placed(other, '1'))
  saver.close()
  lines = str(caught.value).splitlines()
  assert lines[0].endswith('/params: 3 faults')
  assert (
    '  flow_head/layers/mlp/gate_proj/kernel: shape [2, 32, 48], this model has [2, 32, 64]'
    in lines[1:]
  )


def test_other_groups_than_the_runs_are_refused_by_name(run):
  other = dataclasses.replace(
    CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, groups=(('.*', 1.0),))
  )
  saver = Checkpoints(run[0], other)
  with pytest.raises(
    ValueError, match='/ema: .* faults\n(.*\n)*  decoder/norm/scale: missing in the checkpoint'
  ):
    saver.restore(5, placed(other, '1'))
  saver.close()


def test_weights_of_a_run_are_its_averages_unless_asked_otherwise(run):
  workdir, saved = run
  abstract = tuna_shapes(CONFIG.model)
  found = store.load_weights(workdir, abstract)
  equal(found, state.weights(saved))
  equal(found['decoder'], saved.params['decoder'])  # frozen: has no average
  equal(store.load_weights(workdir, abstract, ema=False), saved.params)
  equal(store.load_weights(workdir, abstract, step=3, ema=False), make(step=3, seed=1).params)


def test_a_step_that_is_not_there_is_named_with_those_that_are(run):
  with pytest.raises(ValueError, match=r'no checkpoint of step 4; it has \[3, 5\]'):
    store.load_weights(run[0], tuna_shapes(CONFIG.model), step=4)


def test_a_run_that_never_saved_is_told_so(tmp_path):
  saver = Checkpoints(str(tmp_path), CONFIG)
  saver.write_config()
  saver.close()
  with pytest.raises(ValueError, match=r'no checkpoint; it has \[\]'):
    store.load_weights(str(tmp_path), tuna_shapes(CONFIG.model))


def test_a_half_written_step_is_passed_over_and_cleared_away(copy):
  half = copy / 'checkpoints' / '7.orbax-checkpoint-tmp'
  shutil.copytree(copy / 'checkpoints' / '5', half)
  abstract = tuna_shapes(CONFIG.model)
  equal(store.load_weights(str(copy), abstract), store.load_weights(str(copy), abstract, step=5))
  saver = Checkpoints(str(copy), CONFIG)
  assert saver.latest() == 5
  saver.save(make(step=6), DATA)  # waits for the clearing, which runs in the background
  saver.close()
  assert not half.exists()


def test_only_the_newest_are_kept(tmp_path):
  saver = Checkpoints(str(tmp_path), dataclasses.replace(CONFIG, keep=2))
  for step in (1, 2, 3):
    saver.save(make('1', step), DATA)
  saver.close()
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()) == [
    '2',
    '3',
  ]


def test_a_failed_save_surfaces(tmp_path):
  saver = Checkpoints(str(tmp_path), CONFIG)
  saver.check()  # opens the folder
  shutil.rmtree(tmp_path / 'checkpoints')
  (tmp_path / 'checkpoints').write_text('in the way')
  with pytest.raises(OSError):
    saver.save(make('1'), DATA)
    saver.close()


def test_what_follows_a_failed_save_prints_no_trace_and_all_else_does(capsys):
  for words in ('Event loop is closed', 'another fault'):
    error = RuntimeError(words)
    sys.excepthook(RuntimeError, error, None)
  said = capsys.readouterr().err
  assert 'another fault' in said and 'Event loop' not in said


@pytest.mark.parametrize('missing', ['connector/fc1/kernel', 'decoder/norm/scale'])
def test_a_missing_leaf_is_named(tmp_path, missing):
  params = shrink.randomise(tuna_shapes(CONFIG.model), 0)
  flat = tree.flatten(params)
  flat['extra/kernel'] = flat.pop(missing)
  store.save(str(tmp_path), CONFIG.model, tree.unflatten(flat))
  with pytest.raises(ValueError, match='2 faults') as caught:
    store.load_weights(str(tmp_path), tuna_shapes(CONFIG.model))
  assert f'{missing}: missing in the checkpoint' in str(caught.value)
  assert 'extra/kernel: not in this model' in str(caught.value)


def test_a_weights_directory_knows_its_config(tmp_path):
  params = shrink.randomise(tuna_shapes(CONFIG.model), 0)
  store.save(str(tmp_path), CONFIG.model, params, {'from': 'a test'})
  about = store.read_config(tmp_path)
  assert about['kind'] == 'tuna' and from_dict(TunaConfig, about['config']) == CONFIG.model
  equal(store.load_weights(str(tmp_path), tuna_shapes(CONFIG.model)), params)
  assert about['notes'] == {'from': 'a test'}


def test_a_run_directory_knows_its_config(run):
  assert checkpoint.read_config(run[0]) == CONFIG


def test_a_directory_without_a_config_is_one_clear_line(tmp_path):
  with pytest.raises(
    ValueError, match='nothing: no config.json there; expected a run or a weights directory'
  ) as caught:
    store.open_stored(tmp_path / 'nothing')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'written, message',
  [
    ({'kind': 'vea', 'config': {}}, "kind 'vea', expected one of .*; nearest is 'vae'"),
    ({'kind': 'vae', 'config': {**to_dict(VaeConfig()), 'dims': 3}}, 'dims: no such field'),
  ],
)
def test_a_wrong_config_file_is_named(tmp_path, written, message):
  pathlib.Path(tmp_path / 'config.json').write_text(json.dumps(written))
  with pytest.raises(ValueError, match=message):
    store.open_stored(tmp_path)


def test_a_run_is_never_written_over_weights(tmp_path):
  store.save(tmp_path, CONFIG.model, {'x': np.zeros(1)})
  before = (tmp_path / 'config.json').read_text()
  with pytest.raises(ValueError, match="kind 'tuna'; expected a run or a new directory"):
    Checkpoints(str(tmp_path), CONFIG)
  assert (tmp_path / 'config.json').read_text() == before
  assert not (tmp_path / 'checkpoints').exists()


def test_a_vae_is_not_taken_for_a_run(run):
  with pytest.raises(ValueError, match="of kind 'run'; expected the weights of a VAE"):
    store.load_vae(run[0])
