"""Which run `tuna-jax evaluate` takes."""

import pytest

from tests import shrink
from tuna_jax.cli.evaluate import find_run
from tuna_jax.config import UserError
from tuna_jax.train import checkpoint


def a_run(path):
  path.mkdir()
  (path / 'config.json').write_text('{}')


def test_the_last_stage_trained_is_taken(tmp_path):
  a_run(tmp_path / 'stage1')
  a_run(tmp_path / 'stage2')
  assert find_run(str(tmp_path), '') == str(tmp_path / 'stage2')
  assert find_run(str(tmp_path), 'stage1') == str(tmp_path / 'stage1')
  assert find_run(str(tmp_path / 'stage1'), '') == str(tmp_path / 'stage1')
  a_run(tmp_path / 'lora')  # of `fit --lora`
  assert find_run(str(tmp_path), '') == str(tmp_path / 'lora')


def test_a_stage_that_is_not_there_is_named_with_the_nearest(tmp_path):
  a_run(tmp_path / 'stage2')
  with pytest.raises(UserError, match="--stage=stage3: no such run .* nearest is 'stage2'"):
    find_run(str(tmp_path), 'stage3')
  with pytest.raises(UserError, match='no run there; expected lora or stage3 or stage2 or stage1'):
    find_run(str(tmp_path / 'nothing'), '')


def test_a_model_of_the_rendered_world_is_not_judged_on_a_mixture(tmp_path, tuna_jax):
  checkpoint.Checkpoints(tmp_path / 'run', shrink.stage('stage2')).write_config()
  said = tuna_jax('evaluate', f'--workdir={tmp_path}/run', '--data=my_test.json', code=2)
  assert 'my_test.json' in said and 'is judged on held-out items of its own' in said
