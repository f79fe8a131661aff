"""Every file of a checkpoint and of a weights directory, damaged: named, never silently wrong.

A damaged checkpoint is passed over for the older one; a damaged weights directory is one line that
names the file or the leaf. A fast sample runs always, all of it with --slow.
"""

import dataclasses
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tests.weights.small import random_leaves, small_config
from tuna_jax import files, tree
from tuna_jax.config import UserError
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.train.checkpoint import Checkpoints
from tuna_jax.train.state import TrainState
from tuna_jax.weights import safetensors, store
from tuna_jax.weights.open import open_checkpoint, verify
from tuna_jax.weights.tensors import Damaged, lazies

CONFIG = dataclasses.replace(shrink.shrink(shrink.real('stage1')), keep=3)
MODEL = small_config()
DATA = {'rows': [0, 1], 'next': [[3, -1], [4, 2]], 'batch': 2}


def state(step):
  """A state of a few leaves; one of them is large enough for files of its own."""
  draw = np.random.default_rng(step).standard_normal
  params = {'decoder': {'kernel': draw((300, 200)), 'scale': draw(7)}, 'vision': {'bias': draw(5)}}
  params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
  flat = tree.flatten(params)
  moments = {'mu': jax.tree.map(lambda a: a * 2, flat), 'nu': jax.tree.map(lambda a: a**2, flat)}
  return TrainState(jnp.int32(step), params, jax.tree.map(lambda a: a + 1, flat), moments)


def abstract():
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), state(0))


def make_run(root):
  saver = Checkpoints(str(root), CONFIG)
  saver.write_config()
  for step in (4, 8):
    saver.save(state(step), {**DATA, 'step': step})
  saver.close()


def make_weights(root):
  vae = random_leaves(vae_shapes(MODEL.vae))
  (root / 'decoder').mkdir(parents=True)
  files.write_text(root / 'decoder' / 'tokenizer.json', '{"words": 1}')
  copied = [root / 'decoder' / 'tokenizer.json']
  store.write(root / 'out', MODEL, random_leaves(tuna_shapes(MODEL)), vae, {}, copied)
  shutil.rmtree(root / 'decoder')


def make_export(root):
  root.mkdir()
  leaves = lazies({name: np.arange(500.0) + i for i, name in enumerate('abcd')})
  digests = safetensors.write_folder(root, leaves, shard_bytes=9000)
  files.write_json(root / 'config.json', {'model_type': 'x', 'tuna_jax_digests': digests})


def damages(root):
  """(file, kind, place) for every file under `root`; large files are flipped in several places."""
  found = []
  for folder, _, names in sorted(os.walk(root)):
    for name in sorted(names):
      file = os.path.relpath(os.path.join(folder, name), root)
      size = os.path.getsize(os.path.join(folder, name))
      spots = [size // 2] if size < 3000 else [size // 9, size // 3, size // 2, size - size // 7]
      found += [(file, 'deleted', 0), (file, 'halved', 0), *((file, 'flipped', s) for s in spots)]
  return found


def damage(file, kind, place):
  if kind == 'deleted':
    os.remove(file)
    return
  data = bytearray(open(file, 'rb').read())
  if kind == 'halved':
    data = data[: len(data) // 2]
  elif data:
    data[place] ^= 0x10
  with open(file, 'wb') as out:
    out.write(data)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def one_line(text, *words):
  assert '\n' not in text and len(text) < 600, text
  assert all(word in text for word in words), text


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp('made')
  make_run(root / 'run')
  make_weights(root / 'weights')
  make_export(root / 'export')
  return root


def run_case(copy, case, caplog):
  """Damages a file of step 8; the next start has step 8 as it was saved, or says so and has 4."""
  damage(copy / 'checkpoints' / '8' / case[0], *case[1:])
  saver = Checkpoints(str(copy), CONFIG)
  caplog.clear()
  step, found, data = saver.restore_newest(abstract())
  equal(found, state(step))
  assert data == {**DATA, 'step': step}
  if step == 4:
    one_line(caplog.records[-1].getMessage(), f'{copy}/checkpoints/8', 'step 4 is used')
    saver.save(state(8), DATA)  # the damaged one is not in the way
  saver.close()
  equal(Checkpoints(str(copy), CONFIG).restore_newest(abstract())[1], state(8))
  return 'step 4' if step == 4 else 'harmless'


def weights_case(copy, case, caplog):
  """Loads what was saved, or is one line that names the directory."""
  del caplog
  damage(copy / 'out' / case[0], *case[1:])
  try:
    params = store.load_weights(copy / 'out', tuna_shapes(MODEL))
    store.read_config(copy / 'out' / 'vae')
    vae = store.load_vae(copy / 'out' / 'vae')[1]
  except UserError as error:
    one_line(str(error), f'{copy}/out')
    return 'named'
  equal(tree.flatten(params), random_leaves(tuna_shapes(MODEL)))
  equal(tree.flatten(vae), random_leaves(vae_shapes(MODEL.vae)))
  return 'harmless'


def export_case(copy, case, caplog):
  """What `convert export` wrote is compared with its digests before it is converted again."""
  del caplog
  damage(copy / case[0], *case[1:])
  try:
    verify(copy)
    found = {name: leaf[()] for name, leaf in open_checkpoint(copy).items()}
  except UserError as error:
    one_line(str(error).replace('\n', '; '), str(copy))
    return 'named'
  equal(found, {name: np.arange(500.0) + i for i, name in enumerate('abcd')})
  return 'harmless'


def matrix(made, tmp_path, caplog, every):
  """Runs every `every`th case of all; {outcome: count}."""
  caplog.set_level(logging.WARNING)
  counts, number = {}, 0
  cases = {
    'run': ('checkpoints/8', run_case),
    'weights': ('out', weights_case),
    'export': ('', export_case),
  }
  for kind, (inside, case_of) in cases.items():
    for case in damages(made / kind / inside):
      number += 1
      if number % every:
        continue
      copy = tmp_path / 'copy'
      shutil.copytree(made / kind, copy)
      try:
        outcome = f'{kind}: {case_of(copy, case, caplog)}'
      except Exception as error:
        raise AssertionError(f'{kind}: {case}: {type(error).__name__}: {error}') from error
      counts[outcome] = counts.get(outcome, 0) + 1
      shutil.rmtree(copy)
  print(counts)
  return counts


def test_a_sample_of_damages_is_named_and_survived(made, tmp_path, caplog):
  counts = matrix(made, tmp_path, caplog, every=9)
  assert counts['run: step 4'] >= 4 and counts['weights: named'] >= 2


@pytest.mark.slow
def test_every_damage_is_named_and_survived(made, tmp_path, caplog):
  counts = matrix(made, tmp_path, caplog, every=1)
  assert sum(counts.values()) >= 120


def test_a_run_without_a_good_checkpoint_is_an_error(made, tmp_path):
  shutil.copytree(made / 'run', tmp_path / 'run')
  for step in (4, 8):
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step) / 'ema')
  saver = Checkpoints(str(tmp_path / 'run'), CONFIG)
  with pytest.raises(Damaged) as caught:
    saver.restore_newest(abstract())
  saver.close()
  one_line(str(caught.value), 'no checkpoint can be used', 'checkpoints/8/ema', 'checkpoints/4/ema')
  assert (tmp_path / 'run' / 'checkpoints' / '8').exists()  # nothing is moved


def test_a_damaged_checkpoint_that_is_asked_for_is_not_replaced_by_another(made, tmp_path):
  shutil.copytree(made / 'run', tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '8' / 'params')
  with pytest.raises(Damaged, match='checkpoints/8/params is damaged'):
    store.open_stored(tmp_path / 'run', step=8)
  assert store.open_stored(tmp_path / 'run', step=4).params


def test_without_digests_only_a_run_that_says_so_continues(made, tmp_path):
  shutil.copytree(made / 'run', tmp_path / 'run')
  for step in (4, 8):
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step) / 'digests')
  saver = Checkpoints(str(tmp_path / 'run'), CONFIG)
  with pytest.raises(Damaged, match='--config.verify=false'):
    saver.restore_newest(abstract())
  saver.close()
  saver = Checkpoints(str(tmp_path / 'run'), dataclasses.replace(CONFIG, verify=False))
  equal(saver.restore_newest(abstract())[1], state(8))
  saver.close()
