"""`tuna-jax data`, run as a person would."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from tuna_jax.models.shapes import vae_shapes
from tuna_jax.toy.sizes import TINY
from tuna_jax.weights import fresh, store


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


@pytest.mark.slow
def test_preview_warns_of_a_vae_that_does_not_fit(mixture, tmp_path):
  vae = TINY.vae
  store.save(str(tmp_path / 'vae'), vae, fresh.init(vae_shapes(vae), 0))
  arguments = ('--image_size=64', f'--vae={tmp_path / "vae"}', f'--out={tmp_path / "p.html"}')
  done = data('preview', mixture, *arguments)
  assert done.returncode == 0 and ' dB on 2 pictures' in done.stdout
  assert 'THE VAE DOES NOT FIT' in done.stderr
  assert 'THE VAE DOES NOT FIT' in (tmp_path / 'p.html').read_text(encoding='utf-8')


def test_shapes_writes_mixtures_that_check_and_preview(tmp_path):
  assert data('shapes', f'--out={tmp_path}').returncode == 0
  for name in ('mixture.json', 'mixture_test.json'):
    assert data('check', tmp_path / name, '--limit=2').returncode == 0
  done = data('preview', tmp_path / 'mixture.json', f'--out={tmp_path / "p.html"}', '--count=1')
  assert (
    done.returncode == 0 and (tmp_path / 'p.html').read_text(encoding='utf-8').count('<h3>') == 8
  )


def test_check_of_a_config_says_what_share_fits_its_rows_and_which_field_to_change(tmp_path):
  Image.new('RGB', (64, 64), 'red').save(tmp_path / 'red.png')
  lines = [json.dumps({'image': 'red.png', 'caption': 'red ' * n}) for n in (1, 900, 2, 3)]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'a.jsonl', 'task': 't2i'}]))
  ask = ('check', '--config=configs/stage1.py:2b', f'--config.data.mixture={tmp_path / "m.json"}')
  done = data(*ask, '--limit=4')
  assert done.returncode == 0, done.stderr
  assert '75.0% of the first 4 records are small enough for a row of L=2304, V=2048' in done.stdout
  assert 'a.jsonl:2: its texts take 903 tokens, more than max_text=496' in done.stdout
  done = data(*ask, '--config.visual=512')
  assert done.returncode == 2 and 'a.jsonl:1: the example of t2i needs L=' in done.stderr
  assert 'V=1024, M=1; a row has L=2304, V=512' in done.stderr
  assert '--config.visual=1024, or lower data.media.image_size' in done.stderr


def test_fill_prints_how_full_the_rows_of_every_phase_are():
  done = data(
    'fill', '--config=configs/stage1.py:2b', '--config.data.mixture=synthetic', '--batches=2'
  )
  assert done.returncode == 0, done.stderr
  head, row = done.stdout.strip().splitlines()
  assert head.startswith('from step   L filled') and 0.85 < float(row.split()[1][:-1]) / 100 <= 1


@pytest.mark.parametrize(
  'arguments, words',
  [
    (('fill',), '--config=FILE:SIZE is required'),
    (('check', 'a.json', '--config=configs/stage1.py:2b'), 'give --config.data.mixture'),
    (('check', 'gone.json'), 'gone.json: no such file'),
    (('check',), 'missing argument MIXTURE.json'),
    (('shapes',), '--out is required'),
    (('chek', 'x'), "nearest is 'check'"),
  ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words):
  done = data(*arguments)
  assert done.returncode == 2 and words in done.stderr and done.stderr.count('\n') == 1


def test_pack_writes_a_mixture_that_checks_and_names_what_it_left_out(mixture, tmp_path):
  done = data('pack', mixture, f'--out={tmp_path / "out"}', '--image_size=64', '--processes=1')
  assert done.returncode == 1 and '2 records packed, 1 unusable' in done.stdout
  assert 'a.jsonl:2: ' in done.stdout and 'more than --max_skip_share' in done.stderr
  checked = data('check', tmp_path / 'out' / 'mixture.json', '--image_size=64')
  assert checked.returncode == 0 and '2 of 2 records read, 0 unusable' in checked.stdout
