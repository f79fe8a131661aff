"""`tuna-jax ckpt` lists, verifies and compares checkpoints; its exit code says what it found."""

import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests import shrink
from tuna_jax.train.checkpoint import Checkpoints
from tuna_jax.train.state import TrainState

CONFIG = shrink.shrink(shrink.real('stage1'))


def ckpt(*arguments):
  """(exit code, stdout)."""
  command = [sys.executable, '-m', 'tuna_jax.cli.ckpt', *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
  assert not done.stderr, done.stderr
  return done.returncode, done.stdout


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('run')
  saver = Checkpoints(str(root), CONFIG)
  saver.write_config()
  for step in (4, 8):
    params = {'a': {'kernel': jnp.full((3, 5), step, jnp.float32)}, 'b': jnp.ones(2)}
    state = TrainState(jnp.int32(step), params, {'b': jnp.ones(2)}, {'mu': jnp.zeros(2)})
    saver.save(state, {'step': step})
  saver.close()
  return root


def test_list_says_what_each_checkpoint_holds_and_what_is_ignored(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  shutil.copytree(run / 'checkpoints' / '8', tmp_path / 'run/checkpoints/9.orbax-checkpoint-tmp')
  code, out = ckpt('list', tmp_path / 'run')
  lines = out.splitlines()
  assert code == 0 and len(lines) == 3
  told = 'params 2 leaves 0.0 MB, ema 1 leaves 0.0 MB, optimizer 2 leaves 0.0 MB'
  assert lines[:2] == [f'step {n}: {told}' for n in (4, 8)]
  assert lines[2] == '9.orbax-checkpoint-tmp: not complete; it is ignored'


def test_verify_names_the_damaged_step_and_exits_with_1(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  position = tmp_path / 'run' / 'checkpoints' / '8' / 'data' / 'metadata'
  position.write_text(position.read_text().replace('8', '9'))
  code, out = ckpt('verify', tmp_path / 'run')
  assert code == 1
  assert out.splitlines() == [
    'step 4: as it was saved',
    f'step 8: {position} is damaged: it differs from what was saved',
  ]


def test_diff_names_the_leaves_that_changed_between_two_steps(run):
  code, out = ckpt('diff', run)
  assert code == 1
  assert out.splitlines() == [
    'params/a/kernel: differs', 'optimizer/step: differs', 'data: differs'
  ]  # fmt: skip


def test_verify_says_where_there_is_nothing_to_compare_with(tmp_path):
  safetensors.numpy.save_file({'a': np.ones(3, np.float32)}, tmp_path / 'model.safetensors')
  code, out = ckpt('verify', tmp_path)
  assert (code, out) == (0, f'{tmp_path}: holds no digests to compare with\n')
