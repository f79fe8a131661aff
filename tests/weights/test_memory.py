"""A full 2B checkpoint goes through in little memory: 4.4 billion parameters, an 8.8 GB file, 17.7
GB written.
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

from tests.weights.small import shapes_only
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.sizes import TUNA_2B
from tuna_jax.weights import safetensors, tables
from tuna_jax.weights.convert import export
from tuna_jax.weights.tensors import Lazy, cast, index_shape

ROOT = pathlib.Path(__file__).parents[2]
ALLOWANCE = 1.5e9  # bytes beside 1.5 times the largest tensor
DISK = 30e9

CHILD = """
import json, re, runpy, sys
open('/proc/self/clear_refs', 'w').write('5')  # else it begins at the parent's high-water mark
status = 0
try:
  runpy.run_module('tuna_jax.cli.convert', run_name='__main__', alter_sys=True)
except SystemExit as exit:
  status = exit.code or 0
peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]
print(json.dumps({'peak': int(peak) * 1024}))
sys.exit(status)
"""


def write_synthetic(folder, config):
  """An official checkpoint of `config` in bfloat16: real names and shapes, random values. Returns
  its largest tensor.
  """
  noise = (0.02 * np.random.default_rng(0).standard_normal(1 << 24, np.float32)).astype(
    ml_dtypes.bfloat16
  )

  def random(value):
    def read(index):
      shape = index_shape(index)
      return np.resize(noise, shape)

    return Lazy(value.shape, value.dtype, read)

  tensors = cast(
    export(tables.tuna_official(config), shapes_only(tuna_shapes(config))), ml_dtypes.bfloat16
  )
  tensors = {name: random(value) for name, value in tensors.items()}
  safetensors.write_folder(folder, tensors)
  return max(value.nbytes for value in tensors.values())


@pytest.mark.slow
def test_a_full_2b_checkpoint_converts_within_its_memory(tmp_path, capsys):
  if shutil.disk_usage(tmp_path).free < DISK:
    pytest.skip(f'needs {DISK / 1e9:.0f} GB of disk')
  (tmp_path / 'in').mkdir()
  largest = write_synthetic(tmp_path / 'in', TUNA_2B)
  try:
    for arguments in (
      ['import', '--size=2b', f'--input={tmp_path}/in', f'--output={tmp_path}/ours'],
      ['export', f'--input={tmp_path}/ours', '--dtype=bfloat16', f'--output={tmp_path}/out'],
    ):
      if arguments[0] == 'export':
        shutil.rmtree(tmp_path / 'in')
      done = subprocess.run(
        [sys.executable, '-c', CHILD, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
      )
      peak = json.loads(done.stdout.splitlines()[-1])['peak']
      with capsys.disabled():
        print(
          f'\n2B {arguments[0]}: peak {peak / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB, '
          f'limit {(1.5 * largest + ALLOWANCE) / 1e9:.2f} GB'
        )
      assert peak < 1.5 * largest + ALLOWANCE
  finally:
    shutil.rmtree(tmp_path)
