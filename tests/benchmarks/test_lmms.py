"""The plug-in inside the real lmms-eval, offline: prompts, order, extraction and scores."""

import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from tests.benchmarks import harness
from tuna_jax.benchmarks import answers, lmms
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
FULL = {
  **{f'{task} exact_match': 1.0 for task in ('ai2d', 'realworldqa')},
  'chartqa relaxed_overall': 1.0,
  'mme mme_perception_score': 400.0,  # two of the ten categories
  'mmmu_val mmmu_acc': 1.0,
  'mmstar average': 1.0,
  'mvbench_moving_direction mvbench_accuracy': 100.0,
  'ocrbench ocrbench_accuracy': 0.003,  # three rows of the thousand that it divides by
  'seedbench seed_image': 1.0,
}


def run(*arguments, **environment):
  done = subprocess.run(
    [sys.executable, '-m', *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return done.stdout


@pytest.fixture(scope='module')
def installed(pytestconfig):
  """lmms-eval is here, or the test is skipped; with --live it fails."""
  if importlib.util.find_spec('lmms_eval') is None:
    how = 'lmms-eval is not installed: launch/test.sh --live installs it'
    pytest.fail(how) if pytestconfig.getoption('live') else pytest.skip(how)


@pytest.fixture(scope='module')
def found(installed, tmp_path_factory):
  out = tmp_path_factory.mktemp('lmms') / 'home'
  run('tests.benchmarks.harness', out)
  return json.loads((out / 'found.json').read_text())


def test_lmms_eval_finds_both_kinds_by_the_entry_point(found):
  assert found['models'] == ['Simple', 'Chat']


@pytest.mark.parametrize('kind', lmms.KINDS)
def test_an_oracle_scores_full_on_every_shipped_task_and_a_wrong_one_nothing(found, kind):
  right, wrong = found['kinds'][kind]['oracle'], found['kinds'][kind]['wrong']
  assert {name: right[name] for name in FULL} == FULL
  assert {name: wrong[name] for name in FULL} == dict.fromkeys(FULL, 0.0)


def test_the_texts_of_a_model_are_those_of_generator_text(found):
  assert found['said'] == found['direct']
  assert len({text for texts in found['said'].values() for text in texts}) > 9


def test_both_kinds_ask_the_same_where_pictures_stand_first(found):
  inside = {'mmmu_val'}  # its messages hold the picture inside the text
  assert {t for t in found['said'] if found['said'][t] != found['chat'][t]} <= inside


def test_nine_tasks_of_both_kinds_take_under_three_minutes_of_a_processor(found):
  assert found['seconds']['all'] < 180


def test_a_second_run_answers_from_the_cache_of_lmms_eval(found):
  assert found['asked'] == [7, 7]


@pytest.mark.slow
def test_several_hosts_each_answer_their_share(installed, tmp_path):
  out = tmp_path / 'home'
  run('tests.benchmarks.harness', out, 'tasks')
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  group = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
  hosts = [
    subprocess.Popen(
      [sys.executable, '-m', 'tests.benchmarks.harness', str(out), 'share'],
      cwd=ROOT,
      env={**os.environ, **group, 'RANK': str(rank), 'LOCAL_RANK': '0'},
    )
    for rank in range(2)
  ]
  assert [host.wait(timeout=300) for host in hosts] == [0, 0]
  first, second = (json.loads((out / f'found{rank}.json').read_text()) for rank in range(2))
  assert first['asked'] == second['asked'] == 4  # 4 + 3 questions; one is asked twice to be even
  assert {name: first['scores'][name] for name in FULL if name in first['scores']} == {
    'mme mme_perception_score': 400.0,
    'ai2d exact_match': 1.0,
  }


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_cache_of_its_own_name(installed, tmp_path):
  out = tmp_path / 'home'
  run('tests.benchmarks.harness', out, 'tasks')
  command = [sys.executable, '-m', 'tests.benchmarks.harness', str(out), 'dies']
  named = {**os.environ, 'LMMS_CACHE_RUN_ID': 'mine'}
  codes = [subprocess.run(command, cwd=ROOT, env=named, check=False).returncode for _ in range(2)]
  found = json.loads((out / 'found.json').read_text())
  assert codes == [-signal.SIGKILL, 0]
  assert found['asked'] == sum(len(harness.rows(task)) for task in harness.ALIKE) - answers.BATCHES
  alike = {name: score for name, score in FULL.items() if name.split()[0] in harness.ALIKE}
  assert {name: found['scores'][name] for name in alike} == alike


@pytest.mark.slow
def test_the_command_line_of_lmms_eval_runs_a_checkpoint(installed, tmp_path):
  out, weights = tmp_path / 'home', tmp_path / 'weights'
  run('tests.benchmarks.harness', out, 'tasks')
  harness.save_tiny(weights)
  task = out / 'tasks' / 'mme.yaml'  # a shipped task wins over a local one of the same name
  config = {**json.loads(task.read_text()), 'task': 'mme_local'}
  task.with_name('mme_local.yaml').write_text(json.dumps(config))
  arguments = f'checkpoint={weights},image_size=32,images=all,resize=cover'
  said = run(
    *('lmms_eval', '--model', 'tuna_jax', '--model_args', arguments, '--tasks', 'mme_local'),
    *('--include_path', out / 'tasks', '--batch_size', 8, '--output_path', tmp_path / 'out'),
    **dict.fromkeys(('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE'), '1'),
    HF_HOME=str(out),
  )
  assert 'mme_local' in said
  (results,) = (tmp_path / 'out').rglob('*_results.json')
  assert json.loads(results.read_text())['results']['mme_local']['mme_perception_score,none'] >= 0


def test_importing_the_plug_in_imports_neither_jax_nor_torch_nor_lmms_eval():
  code = (
    'import sys, tuna_jax.benchmarks.lmms\n'
    "assert not {'jax', 'torch', 'lmms_eval', 'transformers'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
  'arguments, says',
  [
    ({}, 'expected checkpoint=RUN'),
    ({'checkpoint': 'w', 'resize': 'sqash'}, "nearest is 'squash'"),
    ({'checkpoint': 'w', 'images': '2'}, 'expected first or all'),
    ({'checkpoint': '/nowhere'}, '/nowhere'),
  ],
)
def test_a_mistaken_model_arg_says_what_was_expected(arguments, says):
  with pytest.raises(UserError, match=says):
    lmms.Model(**arguments)


def test_model_args_replace_the_sizes_of_the_checkpoint():
  generator = harness.tiny(MediaConfig('64', '64', 5))
  assert lmms.Model(generator=generator, frames=9, image_size=32).generator.media == MediaConfig(
    '32', '64', 9
  )
