"""`tuna-jax data`, run as a person would."""

import json
import subprocess
import sys

import pytest
from PIL import Image


def data(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'tuna_jax.cli.data', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def mixture(tmp_path):
  Image.new('RGB', (20, 20), 'red').save(tmp_path / 'red.png')
  lines = [
    json.dumps({'image': name, 'caption': 'red'}) for name in ('red.png', 'gone.png', 'red.png')
  ]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'a.jsonl', 'task': 't2i'}]))
  return tmp_path / 'm.json'


def test_check_names_bad_records_and_fails_above_the_share(mixture):
  done = data('check', mixture, '--image_size=64')
  assert done.returncode == 1 and 'a.jsonl:2: ' in done.stdout and 'gone.png' in done.stdout
  assert '3 of 3 records read, 1 unusable; media: 2 of 64x64' in done.stdout
  assert (
    'more than --max_skip_share=0.01 of the records are unusable: ' in done.stderr
    and 'a.jsonl' in done.stderr
  )
  assert data('check', mixture, '--max_skip_share=0.5').returncode == 0


def test_preview_leaves_bad_records_out_and_says_so(mixture, tmp_path):
  done = data('preview', mixture, f'--out={tmp_path / "p.html"}')
  assert done.returncode == 0 and 'left out: ' in done.stderr and 'a.jsonl:2' in done.stderr
  assert (tmp_path / 'p.html').read_text(encoding='utf-8').count('<h3>') >= 1


def test_shapes_writes_mixtures_that_check_and_preview(tmp_path):
  assert data('shapes', f'--out={tmp_path}').returncode == 0
  for name in ('mixture.json', 'mixture_test.json'):
    assert data('check', tmp_path / name, '--limit=2').returncode == 0
  done = data('preview', tmp_path / 'mixture.json', f'--out={tmp_path / "p.html"}', '--count=1')
  assert (
    done.returncode == 0 and (tmp_path / 'p.html').read_text(encoding='utf-8').count('<h3>') == 8
  )


@pytest.mark.parametrize(
  'arguments, words',
  [
    (('check', 'gone.json'), 'gone.json: no such file'),
    (('check',), 'missing argument MIXTURE.json'),
    (('shapes',), '--out is required'),
    (('chek', 'x'), "nearest is 'check'"),
  ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words):
  done = data(*arguments)
  assert done.returncode == 2 and words in done.stderr and done.stderr.count('\n') == 1
