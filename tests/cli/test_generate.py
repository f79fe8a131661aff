"""`tuna-jax generate` and `bench`: mistakes are one line and exit code 2, before anything is loaded."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tuna_jax.sample.output import Picture

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(verb, *arguments):
  return subprocess.run(
      [sys.executable, '-m', f'tuna_jax.cli.{verb}', *arguments], capture_output=True, text=True, check=False,
      cwd=ROOT)


@pytest.mark.parametrize('arguments, says', [
    (['t2i', 'x'], '--checkpoint is required'),
    (['eddit', 'x'], "nearest is 'edit'"),
    (['t2i', '--checkpoint=w'], 'missing argument PROMPT'),
    (['edit', 'x', '--checkpoint=w'], '--image is required'),
    (['t2i', 'x', '--checkpoint=w', '--image=a.png'], 'did you mean `generate edit`'),
    (['t2v', 'x', '--checkpoint=w', '--output=a.png'], '.mp4 or .gif'),
    (['t2i', 'x', '--checkpoint=w', '--guidance_interval=0-1'], 'two numbers'),
    (['t2i', 'x', '--checkpoint=w', '--guidance=0'], 'above 0'),
    (['t2i', 'x', '--checkpoint=nowhere'], 'no config.json'),
])
def test_a_mistake_is_one_line_that_says_what_to_do(arguments, says):
  done = run('generate', *arguments)
  assert done.returncode == 2, done.stderr
  assert says in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_info_prints_what_a_file_remembers(tmp_path):
  Picture(np.zeros((16, 16, 3), np.uint8), {'prompt': 'a red ball', 'seed': 3}).save(tmp_path / 'a.png')
  done = run('generate', 'info', str(tmp_path / 'a.png'))
  assert json.loads(done.stdout) == {'prompt': 'a red ball', 'seed': 3}


def test_the_bench_counts_the_published_size_without_running_it(tmp_path):
  done = run('bench', 'sample', '--size=2b', '--norun', '--points=50', f'--json={tmp_path}/b.json')
  assert done.returncode == 0, done.stderr
  assert '10.7x fewer FLOPs' in done.stdout
  found = json.loads((tmp_path / 'b.json').read_text())
  assert found['t2i']['naive_over_cached_flops'] > 10
  assert found['edit']['naive_over_cached_flops'] > 3
