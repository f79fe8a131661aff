"""`tuna-jax train` in processes: it stops when asked, with 75, and the same command continues."""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import shrink
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train.config import ReportConfig
from tuna_jax.weights import store

TIMEOUT_S = 300
STEPS = 30


def config(**changes):
  return shrink.stage('stage1', **{'steps': STEPS, 'rows': 2, 'checkpoint_every': 10**6, **changes})


def command(config, workdir, *more):
  return [
    sys.executable,
    '-m',
    'tuna_jax.cli.train',
    '--config=configs/stage1.py:tiny',
    f'--workdir={workdir}',
    *shrink.overrides(config, shrink.real('stage1')),
    *more,
  ]


def start(*arguments, devices=1, **environment):
  environment = {'XLA_FLAGS': shrink.flags(devices), **environment}
  return subprocess.Popen(
    arguments,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=shrink.ROOT,
    env=os.environ | environment,
  )


def finish(process):
  """(exit code, stdout, stderr); the process is gone afterwards."""
  try:
    out, err = process.communicate(timeout=TIMEOUT_S)
  finally:
    process.kill()
  return process.returncode, out, err


def wait_for(process, text):
  """Reads stdout up to a line that has `text`."""
  for line in process.stdout:
    if text in line:
      return
  raise AssertionError(f'{text!r} never came; stderr: {process.stderr.read()}')


def weights(workdir, config):
  return store.load_weights(str(workdir), tuna_shapes(config.model), ema=False)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nobody disturbed: (its directory, stdout, stderr)."""
  workdir = tmp_path_factory.mktemp('whole')
  code, out, err = finish(start(*command(config(), workdir)))
  assert code == 0, err
  return workdir, out, err


def test_a_run_stopped_by_either_signal_exits_75_and_the_same_command_ends_where_it_would_have(
  whole, tmp_path
):
  for number in (signal.SIGTERM, signal.SIGINT):
    process = start(*command(config(), tmp_path))
    wait_for(process, 'completed step: ')
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 75 and 'the same command continues' in err, err
    assert len(err.strip().splitlines()) == 1, err
  code, out, err = finish(start(*command(config(), tmp_path)))
  assert code == 0, err
  assert 'continued from the checkpoint of step' in out and ' in 3 starts; ' in out
  assert 'completed step: 2,' not in out and f'completed step: {STEPS},' in out
  jax.tree.map(
    np.testing.assert_array_equal, weights(tmp_path, config()), weights(whole[0], config())
  )


def test_a_run_prints_what_it_is_its_steps_and_where_the_time_went_and_nothing_else(whole):
  workdir, out, err = whole
  lines = out.strip().splitlines()
  heads = [
    f'stage1 in {workdir}: step 0 of {STEPS}, fresh weights', 'parameters: ', 'devices: 1 x cpu ',
    'batch: 2 rows x ', 'optimizer: adamw, ', 'compiled in ',
    *(f'completed step: {n}, ' for n in range(1, STEPS + 1)), 'goodput: ',
  ]  # fmt: skip
  assert [line[: len(head)] for line, head in zip(lines, heads, strict=True)] == heads
  assert lines == (workdir / 'log.txt').read_text().splitlines()
  assert not err.strip(), err


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], '--config=FILE:SIZE and --workdir=DIR are needed'),
    (
      ['--config=configs/stage1.py:tiny', '--workdir=x', '--config.optimizer.lrr=1'],
      "--config.optimizer.lrr: no such field; nearest is 'optimizer.lr'",
    ),
    (['--config=configs/stage1.py:tiny', '--workdir={tmp}/x'], 'tokenizer: no directory given'),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path):
  arguments = [a.format(tmp=tmp_path) for a in arguments]
  code, _, err = finish(start(sys.executable, '-m', 'tuna_jax.cli.train', *arguments))
  assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_two_processes_stop_together_and_one_continues(whole, tmp_path):
  with socket.create_server(('', 0)) as server:
    address = f'localhost:{server.getsockname()[1]}'
  held_out = tmp_path / 'held.json'
  held_out.write_text('[{"path": "shapes", "task": "t2i", "split": "test", "size": 50}]')
  report = ReportConfig(
    line_s=0, held_out=str(held_out), held_out_every=300, held_out_batches=1,
    samples_every=300, sample_points=2, prompts=('a red circle',),
  )  # fmt: skip
  shared = dataclasses.replace(config(), steps=400, report=report)
  tmp_path = tmp_path / 'run'
  pair = [
    start(
      *command(
        shared, tmp_path, f'--coordinator={address}', '--num_processes=2', f'--process_id={i}'
      )
    )
    for i in range(2)
  ]
  wait_for(pair[0], 'eval metrics after step: 0, loss=')
  wait_for(pair[0], 'completed step: 2')
  pair[1].send_signal(signal.SIGTERM)  # one is told; both must stop at one step
  ended = [finish(process) for process in pair]
  assert [code for code, _, _ in ended] == [75, 75], ended
  steps = sorted(
    int(p.name) for p in (pathlib.Path(tmp_path) / 'checkpoints').iterdir() if p.name.isdigit()
  )
  assert len(steps) == 1 and 2 <= steps[0] < 400
  alone = dataclasses.replace(shared, steps=steps[0] + 1, report=config().report)
  # Another number of steps is another schedule, so the result is not compared: it goes on.
  code, out, err = finish(start(*command(alone, tmp_path)))
  assert code == 0 and f'completed step: {steps[0] + 1},' in out, err
