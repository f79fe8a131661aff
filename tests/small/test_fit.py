"""One command from own data to a report; a stopped or killed one continues."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.sample import small
from tuna_jax.config import UserError
from tuna_jax.small.fit import Progress, fit
from tuna_jax.train import checkpoint
from tuna_jax.weights import store


@pytest.fixture
def album(tmp_path):
  """24 pictures of two kinds, in folders named by what they show."""
  for n in range(24):
    kind, level = ('dark', 40) if n % 2 else ('light', 200)
    noise = np.random.default_rng(n).integers(-30, 30, (32, 32, 3))
    path = tmp_path / 'album' / kind / f'{n}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((level + noise).astype(np.uint8)).save(path)
  return tmp_path / 'album'


@pytest.mark.slow
def test_a_folder_becomes_a_model_and_a_report_within_its_steps(album, tmp_path):
  said = []
  page = fit(
    str(album), str(tmp_path / 'run'), minutes=0.2, held_out=0.3, image_size='32', n=4,
    say=said.append,
  )  # fmt: skip
  report = json.loads((tmp_path / 'run' / 'report.json').read_text())
  assert {'captions_test', 'pictures_test', 'captions_train'} <= set(report['scores'])
  assert 'taken for their caption' in open(page).read()
  assert 'Held out, at' not in open(page).read()  # its time was over before stage 1
  assert not checkpoint.read_config(tmp_path / 'run' / 'stage1').report.held_out  # nor so few steps
  assert any('DOES NOT FIT' in line for line in said)  # of so few steps
  before = json.loads((tmp_path / 'run' / 'fit.json').read_text())['steps']
  again = dict(minutes=0.2, image_size='32', n=4, say=str)
  assert fit(str(album), str(tmp_path / 'run'), **again) == page
  assert json.loads((tmp_path / 'run' / 'fit.json').read_text())['steps'] == before


@pytest.mark.slow
def test_a_killed_fit_goes_on_to_its_report(album, tmp_path):
  run = tmp_path / 'run'
  command = [sys.executable, '-m', 'tuna_jax.cli.fit', str(album), f'--out={run}', '--minutes=0.2']
  command += ['--image_size=32', '--held_out=0.3', '--n=4']
  log = tmp_path / 'log.txt'
  for reached in ('vae/metrics.jsonl', 'stage2/metrics.jsonl'):
    with log.open('w') as file:
      process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    while not (run / reached).exists():
      assert process.poll() is None, f'ended before {reached}: {log.read_text()[-2000:]}'
      time.sleep(0.1)
    process.kill()
    process.wait()
  known = json.loads((run / 'fit.json').read_text())
  assert set(known['done']) >= {'data', 'tokenizer', 'vae', 'decoder', 'stage1'}
  assert 'report' not in known['done']
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  found = json.loads((run / 'fit.json').read_text())
  assert {k: found['steps'][k] for k in known['steps']} == known['steps']
  assert found['done'][-1] == 'report' and 'captions_test' in (run / 'report.json').read_text()


@pytest.mark.slow
def test_adapters_of_a_model_are_fitted_and_the_model_stays(album, tmp_path):
  base = tmp_path / 'base'
  store.save(base, small.CONFIG, small.params())
  store.save(base / 'vae', small.VAE, small.vae_params())
  small.tokenizer().save(base)
  before, said = store.read_config(base)['digest'], []
  page = fit(
    str(album), str(tmp_path / 'run'), minutes=0.2, held_out=0.3, image_size='32', n=4,
    lora=str(base), say=said.append,
  )  # fmt: skip
  report = json.loads((tmp_path / 'run' / 'report.json').read_text())
  assert {'captions_test', 'pictures_test'} <= set(report['scores']) and page.endswith('index.html')
  adapted, plain = store.open_stored(tmp_path / 'run' / 'lora'), store.open_stored(base)
  changed = {k for k, v in plain.params.items() if (v[()] != adapted.params[k][()]).any()}
  kernels = {leaf.replace('lora_a', 'kernel') for leaf in adapted.adapters if 'lora_a' in leaf}
  assert changed == kernels
  assert store.checked(plain) and store.read_config(base)['digest'] == before


def test_seconds_and_steps_are_those_of_all_starts(tmp_path):
  path = str(tmp_path / 'fit.json')
  progress = Progress.open(path, 'my.json', 1.0)
  assert progress.choose('vae', lambda: 50.0) == 50
  with pytest.raises(InterruptedError), progress.part('vae', str):
    progress.save()  # as it is saved while a part runs
    assert set(json.loads(open(path).read())['seconds']) == {'vae'}
    raise InterruptedError
  again = Progress.open(path, 'my.json', 2.0)
  assert again.choose('vae', lambda: 70.0) == 50 and not again.done
  with again.part('vae', str):
    assert set(again.spent) == {'vae'}
  assert Progress.open(path, 'my.json', 2.0).done == ['vae']
  assert again.left <= 120


def test_other_data_are_refused(tmp_path):
  path = str(tmp_path / 'fit.json')
  begun = Progress.open(path, 'my.json', 1.0)
  begun.done.append('data')
  begun.save()
  with pytest.raises(UserError, match=r'begun with my.json, not with other.json'):
    Progress.open(path, 'other.json', 1.0)


@pytest.mark.parametrize(
  ('changes', 'fault'),
  [
    ({'minutes': float('nan')}, 'minutes=nan: expected at least 0.1'),
    ({'minutes': -1.0}, 'minutes=-1.0: expected at least 0.1'),
    ({'minutes': 'abc'}, "minutes: expected float, found str 'abc'"),
    ({'most': 1}, 'most=1: expected at least 2'),
    ({'image_size': 33}, 'both sides must be multiples of 16'),
    ({'data': 'gone'}, 'data: gone: no such file or folder'),
    ({'test': 'gone'}, 'test: gone: no such file or folder'),
    ({'vae': 'gone'}, 'vae: gone: no such file or folder'),
    ({'data': ['a']}, 'data: expected str, found list'),
    ({'out': None}, 'out: expected str, found None'),
  ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(album, tmp_path, changes, fault):
  arguments = {'data': str(album), 'out': str(tmp_path / 'run')} | changes
  with pytest.raises(UserError, match=re.escape(fault)):
    fit(**arguments)
  assert not (tmp_path / 'run').exists()


def test_a_folder_for_results_is_no_file_and_may_have_failed_before(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'other').mkdir()
  with pytest.raises(UserError, match='file: is a file; expected a folder'):
    fit(str(tmp_path / 'empty'), str(tmp_path / 'file'))
  for data in ('empty', 'other'):  # nothing was done with the first, so the second may begin there
    with pytest.raises(UserError, match=f'{data}: no pictures with texts'):
      fit(str(tmp_path / data), str(tmp_path / 'run'), say=str)
