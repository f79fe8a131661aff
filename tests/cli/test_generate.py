"""`tuna-jax generate` and `bench`: mistakes are one line and exit code 2, before anything is
loaded.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.sample import small
from tuna_jax.data.media import read_video
from tuna_jax.sample.output import Picture, read_info
from tuna_jax.weights import store

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(verb, *arguments):
  return subprocess.run(
    [sys.executable, '-m', f'tuna_jax.cli.{verb}', *arguments],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )


@pytest.mark.parametrize(
  'arguments, says',
  [
    (['t2i', 'x'], 'give --checkpoint, the directory of a run or of weights, or --model'),
    (['eddit', 'x'], "nearest is 'edit'"),
    (['t2i', '--checkpoint=w'], 'missing argument PROMPT'),
    (['edit', 'x', '--checkpoint=w'], '--image is required'),
    (
      ['t2i', 'x', '--checkpoint=w', '--image=a.png'],
      'takes no --image, which is for edit and ask',
    ),
    (['ask', 'x', '--checkpoint=w', '--points=9'], 'takes no --points'),
    (['t2v', 'x', '--checkpoint=w', '--output=a.png'], '.mp4 or .gif'),
    (['t2i', 'x', '--checkpoint=w', '--output=nowhere/a.png'], 'no directory nowhere'),
    (['t2i', 'x', '--checkpoint=w', '--guidance_interval=0-1'], 'two numbers'),
    (['t2i', 'x', '--checkpoint=w', '--guidance=0'], 'above 0'),
    (['t2i', 'x', '--checkpoint=nowhere'], 'no such folder, and no model that is published'),
  ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(arguments, says):
  done = run('generate', *arguments)
  assert done.returncode == 2, done.stderr
  assert says in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_info_prints_what_a_file_remembers(tmp_path):
  Picture(np.zeros((16, 16, 3), np.uint8), {'prompt': 'a red ball', 'seed': 3}).save(
    tmp_path / 'a.png'
  )
  done = run('generate', 'info', str(tmp_path / 'a.png'))
  assert json.loads(done.stdout) == {'prompt': 'a red ball', 'seed': 3}


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path):
  Picture(np.zeros((16, 16, 3), np.uint8), {'prompt': 'a red ball ' * 9000}).save(
    tmp_path / 'a.png'
  )
  command = f'{sys.executable} -m tuna_jax.cli.generate info {tmp_path}/a.png | head -c 9'
  done = subprocess.run(
    ['bash', '-c', command], capture_output=True, text=True, check=False, cwd=ROOT
  )
  assert done.stdout == '{\n "promp' and not done.stderr


def test_the_bench_counts_the_published_size_without_running_it(tmp_path):
  sizes = '--size=2b,tuna-2-7b'
  done = run('bench', 'sample', sizes, '--norun', '--points=50', f'--json={tmp_path}/b.json')
  assert done.returncode == 0, done.stderr
  assert '11.3x fewer FLOPs' in done.stdout
  found = json.loads((tmp_path / 'b.json').read_text())['sizes']
  assert found['tuna-2-7b']['t2i']['naive_over_cached_flops'] > 2
  found = found['2b']
  assert found['t2i']['naive_over_cached_flops'] > 10
  assert found['edit']['naive_over_cached_flops'] > 3


VERBS = """
import sys
from absl import flags
from tuna_jax.cli import generate

folder = sys.argv[1]
few = ['--size=16', '--points=3']
for words, more in (
    (['t2i', 'a red ball', ''], [*few, f'--output={folder}/a.png']),
    (['edit', 'make it blue'], [
      *few, f'--output={folder}/b.png', f'--image={folder}/a-0.png', '--guidance_interval=0,0.6',
    ]),
    (['t2v', 'a red ball'], [
      *few, f'--output={folder}/c.gif', '--frames=5', f'--image={folder}/a-0.png',
    ]),
    (['story', 'a red ball'], [*few, f'--output={folder}/d.png', '--max_new_tokens=4']),
    (['ask', 'what is this'], [f'--image={folder}/a-0.png', '--max_new_tokens=4'])):
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(['generate', f'--checkpoint={folder}/w', '--seed=7', *more])
  generate.main(['generate', *words])
"""


@pytest.mark.slow
def test_every_verb_writes_its_file_with_prompt_seed_and_settings_in_it(tmp_path):
  store.save(str(tmp_path / 'w'), small.CONFIG, small.params())
  store.save(str(tmp_path / 'w/vae'), small.VAE, small.vae_params())
  small.tokenizer().save(tmp_path / 'w')
  done = subprocess.run(
    [sys.executable, '-c', VERBS, str(tmp_path)],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  found = {name: read_info(tmp_path / name) for name in ('a-0.png', 'a-1.png', 'b.png', 'c.gif')}
  assert [(f['prompt'], f['seed'], f['points']) for f in found.values()] == [
    ('a red ball', 7, 3),
    ('', 8, 3),
    ('make it blue', 7, 3),
    ('a red ball', 7, 3),
  ]
  assert [f['guidance']['scale'] for f in found.values()] == [7.5, 7.5, 7.5, 6.0]
  assert found['b.png']['guidance']['interval'] == [0, 0.6]
  assert found['b.png']['sources'] == [f'{tmp_path}/a-0.png']
  assert len(read_video(str(tmp_path / 'c.gif'), '16', 5)) == 5
  assert len(done.stdout.splitlines()) >= 5  # four files and an answer
