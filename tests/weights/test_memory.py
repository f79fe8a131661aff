"""Full checkpoints go through in little memory: Tuna 2B, 4.4 billion parameters, an 8.8 GB file and
17.7 GB written; Show-o2 1.5B, 2.8 billion in pickled shards of 11.3 GB, which then draws.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from PIL import Image as Pil

from tests.weights.small import shapes_only
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sizes import SHOWO2_1_5B, TUNA_2B
from tuna_jax.weights import safetensors, tables, torchfile
from tuna_jax.weights.convert import export
from tuna_jax.weights.designs import official
from tuna_jax.weights.tensors import Lazy, cast, index_shape

ROOT = pathlib.Path(__file__).parents[2]
ALLOWANCE = 1.5e9  # bytes beside 1.5 times the largest tensor
DISK = 30e9
DRAWING = 8e9  # bytes in which Show-o2 1.5B draws: its parameters in bfloat16 are 5.7 GB

CHILD = """
import json, re, runpy, sys
open('/proc/self/clear_refs', 'w').write('5')  # else it begins at the parent's high-water mark
status = 0
try:
  runpy.run_module(f'tuna_jax.cli.{sys.argv.pop(1)}', run_name='__main__', alter_sys=True)
except SystemExit as exit:
  status = exit.code or 0
peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]
print(json.dumps({'peak': int(peak) * 1024}))
sys.exit(status)
"""


def synthetic(tensors):
  """The tensors with random values. Returns them and the bytes of the largest."""
  dtype = next(iter(tensors.values())).dtype
  noise = (0.02 * np.random.default_rng(0).standard_normal(1 << 24, np.float32)).astype(dtype)

  def random(value):
    return Lazy(value.shape, dtype, lambda index: np.resize(noise, index_shape(index)))

  return {n: random(t) for n, t in tensors.items()}, max(t.nbytes for t in tensors.values())


def run(*arguments) -> int:
  """The peak of memory of a verb in a process of its own."""
  done = subprocess.run(
    [sys.executable, '-c', CHILD, *map(str, arguments)],
    check=False,
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])['peak']


@pytest.fixture
def folder(tmp_path):
  """A folder with room, which is emptied at once."""
  if shutil.disk_usage(tmp_path).free < DISK:
    pytest.skip(f'needs {DISK / 1e9:.0f} GB of disk')
  (tmp_path / 'in').mkdir()
  yield tmp_path
  shutil.rmtree(tmp_path)


def check(what, peak, largest, capsys):
  limit = 1.5 * largest + ALLOWANCE
  with capsys.disabled():
    print(
      f'\n{what}: peak {peak / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB, '
      f'limit {limit / 1e9:.2f} GB'
    )
  assert peak < limit


@pytest.mark.slow
def test_a_full_2b_checkpoint_converts_within_its_memory(folder, capsys):
  tensors = export(tables.tuna_official(TUNA_2B), shapes_only(tuna_shapes(TUNA_2B)))
  tensors, largest = synthetic(cast(tensors, ml_dtypes.bfloat16))
  safetensors.write_folder(folder / 'in', tensors)
  ours = folder / 'ours'
  peak = run('convert', 'import', '--size=2b', f'--input={folder}/in', f'--output={ours}')
  check('2B import', peak, largest, capsys)
  shutil.rmtree(folder / 'in')
  peak = run('convert', 'export', f'--input={ours}', '--dtype=bfloat16', f'--output={folder}/out')
  check('2B export', peak, largest, capsys)


@pytest.mark.slow
def test_a_full_show_o2_imports_within_its_memory_and_draws(folder, capsys):
  config, made = SHOWO2_1_5B, folder / 'in'
  tensors, largest = synthetic(export(official(config), shapes_only(tuna_shapes(config))))
  shards = {'stem': 'pytorch_model', 'write': torchfile.write_file, 'end': '.bin'}
  safetensors.write_folder(made, tensors, shard_bytes=10**10, **shards)
  assert (made / 'pytorch_model.bin.index.json').exists() and len(list(made.glob('*.bin'))) == 2
  vae = export(tables.wan_vae(config.vae), shapes_only(vae_shapes(config.vae)))
  torchfile.write_file(folder / 'Wan2.1_VAE.pth', synthetic(vae)[0])
  ours, where = folder / 'ours', ['--source=showo2', f'--vae={folder}/Wan2.1_VAE.pth']
  peak = run('convert', 'import', *where, f'--input={made}', f'--output={ours}')
  check('Show-o2 1.5B import', peak, largest, capsys)
  shutil.rmtree(made)
  Tokenizer.train(['a red ball'], 300).save(ours)
  picture = folder / 'ball.png'
  words = ['t2i', 'a red ball', f'--checkpoint={ours}', f'--output={picture}', '--seed=1']
  peak = run('generate', *words, '--size=128', '--points=3', '--dtype=bfloat16')  # 8 x 8 tokens
  with capsys.disabled():
    print(f'Show-o2 1.5B drawing: peak {peak / 1e9:.2f} GB')
  assert peak < DRAWING
  assert Pil.open(picture).size == (128, 128)
