"""What needs the TPU compiler: a refusal with advice, remat policies, and budgets that may not
grow.

`python tests/tools/test_budgets.py` measures the rows of tests/budgets.json anew.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
BUDGETS = pathlib.Path(__file__).parents[1] / 'budgets.json'
ROOT = BUDGETS.parents[1]
GROWTH = 1.02

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='the tpu extra is not installed: no libtpu'
)


def measure(row):
  """The Plan of a row of budgets.json."""
  from tuna_jax.configs import common

  from tuna_jax.tools import plan

  config = importlib.import_module(f'tuna_jax.configs.{row["stage"]}').get_config(row['size'])
  config.update_from_flattened_dict(row['config'])
  return plan.plan(common.from_config_dict(config), row['topology'], row.get('slices', 1))


def bytes_of(result):
  """{class: bytes} that a budget holds."""
  return {
    'peak_bytes': result.peak_bytes,
    'collective_bytes': sum(c['bytes'] for c in result.collectives),
  }


def test_slices_lie_along_data():
  from tuna_jax import chips, sharding

  devices = chips.devices_of('v5e:4x4', slices=2)
  mesh = sharding.make_mesh(-1, 4, 1, 2, devices=devices, num_slices=2)
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 4, 'context': 1, 'tensor': 2}
  found = [{device.slice_index for device in part.flat} for part in mesh.devices]
  assert sorted(map(tuple, found)) == [(0,), (0,), (1,), (1,)] and found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize('row', json.loads(BUDGETS.read_text()), ids=lambda row: row['name'])
def test_memory_and_collectives_stay_in_their_budget(row):
  result = measure(row)
  assert result.fits, result.reason
  for name, found in bytes_of(result).items():
    assert found <= GROWTH * row[name], f'{name}: {found / row[name] - 1:+.1%}'


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'dots', 'block', 'offload'])
def test_every_remat_policy_compiles_for_a_tpu(remat):
  result = measure({
    'stage': 'stage2', 'size': 'tiny', 'topology': 'v5e:2x2',
    'config': {'model.remat': remat, 'model.dtype': 'bfloat16', 'rows': 4, 'length': 512,
               'visual': 256},
  })  # fmt: skip
  assert result.fits, result.reason
  assert (result.host_offload_bytes > 0) == (remat == 'offload')


@pytest.mark.slow
def test_a_step_that_fits_alone_is_refused_beside_an_encoder_without_room():
  row = {
    'stage': 'stage2', 'size': 'tiny', 'topology': 'v5e:2x2',
    'config': {'model.dtype': 'bfloat16', 'rows': 4, 'length': 512, 'visual': 256,
               'encoder.group_mb': 1000.0},
  }  # fmt: skip
  result = measure(row)
  assert result.peak_bytes < result.limit_bytes and not result.fits
  assert 'beside it the encoder' in result.reason and 'encoder.online=False' in result.advice[0]
  row['config']['encoder.online'] = False
  assert measure(row).fits


@pytest.mark.slow
def test_show_o2_draws_on_one_v5e_chip_in_bfloat16():
  from tuna_jax import sizes
  from tuna_jax.tools import plan_sample

  found = plan_sample.plan(sizes.SHOWO2_1_5B, 'v5e:1x1', side=432)
  assert found.fits and found.parameters < 6e9, str(found)


@pytest.mark.slow
def test_an_answer_of_the_compiler_is_kept_and_not_asked_for_again(tmp_path):
  from tuna_jax.configs import common

  from tuna_jax.tools import compiled

  config = importlib.import_module('tuna_jax.configs.decoder').get_config('tiny')
  config.update_from_flattened_dict({'model.dtype': 'bfloat16', 'rows': 4, 'mesh.fsdp': 4})
  step, said = compiled.step_of(common.from_config_dict(config), 'v5e:2x2'), []
  record = compiled.Answers(str(tmp_path)).compile(step, said.append)
  assert record['step'] == step and 0 < record['peak'] < record['limit'] and len(said) == 2
  assert compiled.Answers(str(tmp_path)).compile(step, said.append) == record and len(said) == 2
  with pytest.raises(ValueError, match='the compiler failed: .*rows=6 does not divide'):
    compiled.Answers(str(tmp_path)).compile({**step, 'rows': 6}, said.append)


def test_what_does_not_fit_exits_3_and_says_what_to_change(tmp_path):
  done = subprocess.run(
    [
      sys.executable, '-m', 'tuna_jax.cli.plan', '--config=configs/stage2.py:7b',
      '--config.rows=64', '--topology=v5e-16', f'--json={tmp_path}/plan.json',
    ],
    cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
  )  # fmt: skip
  assert done.returncode == 3, done.stderr
  assert 'DOES NOT FIT' in done.stdout and 'try a larger topology' in done.stdout
  assert '--config.optimizer.accumulate=' in done.stdout
  found = json.loads((tmp_path / 'plan.json').read_text())
  assert not found['fits'] and found['peak_bytes'] > found['limit_bytes'] > 15 * 2**30


def main():
  rows = json.loads(BUDGETS.read_text())
  for row in rows:
    row |= bytes_of(measure(row))
    print({k: row[k] for k in ('name', 'peak_bytes', 'collective_bytes')}, flush=True)
  BUDGETS.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}
  sys.path.insert(0, str(ROOT))
  main()
