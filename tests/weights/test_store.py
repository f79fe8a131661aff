"""Directories of ours: read lazily whoever wrote them, written whole or not at all."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.small import random_leaves, small_config
from tuna_jax import files, tree
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train.checkpoint import Checkpoints
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.state import TrainState
from tuna_jax.weights import steps, store
from tuna_jax.weights.tensors import CheckpointError, Damaged, lazies

CONFIG = small_config()
SHAPES = tuna_shapes(CONFIG)
LEAVES = random_leaves(SHAPES)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of one saved step in which the decoder is frozen and the averages differ from the
  parameters.
  """
  path = tmp_path_factory.mktemp('run')
  config = TrainConfig(model=CONFIG, stage='x', steps=1, rows=1, length=8, visual=4, images=1)
  params = {name: jnp.asarray(value) for name, value in LEAVES.items()}
  averages = {name: value + 1 for name, value in params.items() if not name.startswith('decoder/')}
  state = TrainState(jnp.int32(7), tree.unflatten(params), averages, {'count': jnp.int32(7)})
  checkpoints = Checkpoints(str(path), config)
  checkpoints.save(state, {'rows': [0], 'position': 0})
  checkpoints.write_config()
  checkpoints.close()
  return path


def test_a_run_gives_its_averages_where_it_has_them(run):
  stored = store.open_stored(run)
  assert stored.config == CONFIG and set(stored.params) == set(LEAVES)
  for name, value in LEAVES.items():
    want = value if name.startswith('decoder/') else value + 1
    np.testing.assert_array_equal(stored.params[name][()], want, err_msg=name)


def test_a_run_gives_its_parameters_if_asked(run):
  name = 'connector/fc1/kernel'
  np.testing.assert_array_equal(
    store.open_stored(run, ema=False, step=7).params[name][()], LEAVES[name]
  )


def test_a_saved_leaf_is_read_by_slices(run):
  name = 'decoder/layers/mlp/up_proj/kernel'
  index = (slice(1, 2), slice(3, 9), slice(5, 6))
  np.testing.assert_array_equal(store.open_stored(run).params[name][index], LEAVES[name][index])


def test_a_step_that_was_not_saved_is_named_with_those_that_were(run):
  with pytest.raises(CheckpointError, match=r'no checkpoint of step 3; it has \[7\]'):
    store.open_stored(run, step=3)


def test_a_write_that_fails_leaves_nothing(tmp_path):
  def read(index):
    raise OSError('the disk is gone')

  broken = {name: dataclasses.replace(value, read=read) for name, value in lazies(LEAVES).items()}
  with pytest.raises(OSError):
    store.write(tmp_path / 'out', CONFIG, broken, None, {})
  assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_weights_and_nothing_else(tmp_path):
  store.save(tmp_path, CONFIG, {'old': np.zeros(3)})
  (tmp_path / 'metrics.jsonl').write_text('')
  store.save(tmp_path, CONFIG, {'new': np.ones(2)}, {'from': 'a test'})
  stored = store.open_stored(tmp_path)
  assert list(stored.params) == ['new'] and stored.notes == {'from': 'a test'}
  assert (tmp_path / 'metrics.jsonl').exists()


def test_a_tree_comes_back_and_is_the_default_where_there_is_none(tmp_path):
  value = (3, {'a': jnp.arange(4.0), 'b': (jnp.int32(2), None)})
  file = tmp_path / 'state.safetensors'
  assert store.restore_tree(file, value) is value
  store.save_tree(file, value)
  step, found = store.restore_tree(file, (0, {'a': jnp.zeros(4), 'b': (jnp.int32(0), None)}))
  assert list(range(step)) == [0, 1, 2] and int(found['b'][0]) == 2
  np.testing.assert_array_equal(found['a'], value[1]['a'])


def test_a_path_means_its_own_characters(run, tmp_path):
  shutil.copytree(run, tmp_path / 'a%20b')
  assert set(store.open_stored(tmp_path / 'a%20b').params) == set(LEAVES)


def test_a_step_that_is_not_complete_is_not_read(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  half = tmp_path / 'run' / 'checkpoints' / '9.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'run' / 'checkpoints' / '7', half)
  assert steps.committed(tmp_path / 'run') == [7]


def test_stored_leaves_must_be_exactly_the_models():
  leaves = lazies(LEAVES)
  leaves['connector/fc1/kernl'] = leaves.pop('connector/fc1/kernel')
  leaves['decoder/norm/scale'] = dataclasses.replace(leaves['decoder/norm/scale'], shape=(65,))
  with pytest.raises(CheckpointError) as caught:
    store.check('stored weights', leaves, SHAPES)
  for text in (
    "connector/fc1/kernel: missing in the checkpoint; nearest is 'connector/fc1/kernl'",
    'connector/fc1/kernl: not in this model',
    'decoder/norm/scale: shape [65], this model has [64]',
  ):
    assert text in str(caught.value)


def changed(folder, **fields):
  """Changes config.json by hand."""
  about = files.read_json(folder / 'config.json')
  files.write_json(folder / 'config.json', {**about, **fields})


def test_a_flipped_bit_of_weights_is_named(tmp_path):
  store.write(tmp_path / 'w', CONFIG, LEAVES, None, {})
  file = tmp_path / 'w' / 'params' / 'model.safetensors'
  data = bytearray(file.read_bytes())
  data[-5] ^= 1
  file.write_bytes(data)
  with pytest.raises(
    Damaged, match=r'/w/params is damaged: \S+ has the digest \w{16}, and was saved'
  ):
    store.load_weights(tmp_path / 'w', SHAPES)
  assert store.open_stored(tmp_path / 'w').params  # names and shapes are as they were


def test_a_config_changed_by_hand_is_named_and_taken_without_its_digest(tmp_path):
  store.write(tmp_path / 'w', CONFIG, LEAVES, None, {})
  changed(tmp_path / 'w', notes={'mine': 1})
  with pytest.raises(
    Damaged, match='config.json is damaged: .*; if you changed it, remove its dig'
  ):
    store.open_stored(tmp_path / 'w')
  changed(tmp_path / 'w', digest='')
  assert store.open_stored(tmp_path / 'w').notes == {'mine': 1}
  changed(tmp_path / 'w', digets='')
  with pytest.raises(CheckpointError, match="no such field: digets; nearest is 'digest"):
    store.open_stored(tmp_path / 'w')


def test_a_changed_tokenizer_beside_weights_is_named(tmp_path):
  files.write_text(tmp_path / 'tokenizer.json', '{"a": 1}')
  store.write(tmp_path / 'w', CONFIG, LEAVES, None, {}, [tmp_path / 'tokenizer.json'])
  files.write_text(tmp_path / 'w' / 'tokenizer.json', '{"a": 2}')
  with pytest.raises(Damaged, match=r'w/tokenizer\.json is damaged'):
    store.open_stored(tmp_path / 'w')


def test_a_saved_tree_that_was_damaged_is_named(tmp_path):
  store.save_tree(tmp_path / 's.safetensors', {'a': jnp.arange(4.0)})
  data = bytearray((tmp_path / 's.safetensors').read_bytes())
  data[-1] ^= 1
  (tmp_path / 's.safetensors').write_bytes(data)
  with pytest.raises(Damaged, match=r's\.safetensors is damaged: a has'):
    store.restore_tree(tmp_path / 's.safetensors', {'a': jnp.zeros(4)})
