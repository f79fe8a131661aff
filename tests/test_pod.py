"""The commands of docs/pod.md with a small model, an emulator of object storage and eight simulated
devices: a kill loses nothing, and nothing is written outside of the bucket.
"""

import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests import shrink
from tuna_jax import files
from tuna_jax.sample.output import read_info
from tuna_jax.weights import steps

storage = pytest.importorskip('tests.storage', reason='needs the emulator of the extra `test`')
pytestmark = pytest.mark.slow
STEPS, KILLED = 300, 120


def start(*arguments):
  command = [sys.executable, '-m', *map(str, arguments)]
  environment = os.environ | {'XLA_FLAGS': shrink.flags(8), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    command, text=True, cwd=shrink.ROOT, env=environment, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )  # fmt: skip


def run(*arguments):
  process = start(*arguments)
  out, _ = process.communicate(timeout=1200)
  assert process.returncode == 0, out
  return out


def fill(bucket):
  """Pictures of one colour with its name, as records in the bucket, and what a run starts from."""
  colours = {'red': (200, 30, 30), 'green': (30, 160, 60), 'blue': (40, 60, 200)}
  lines = {'train': [], 'test': []}
  for number, (name, colour) in enumerate(sorted(colours.items()) * 4):
    pixels = np.full((64, 64, 3), colour, np.uint8) + np.uint8(number)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    files.write_bytes(f'{bucket}/data/pictures/{number}.png', file.getvalue())
    record = f'{{"image": "pictures/{number}.png", "caption": "a {name} square"}}'
    lines['train' if number < 9 else 'test'].append(record)
  for split, mixture in (('train', 'mixture'), ('test', 'test')):
    files.write_text(f'{bucket}/data/{split}.jsonl', '\n'.join(lines[split]) + '\n')
    rows = [
      {'path': f'{bucket}/data/{split}.jsonl', 'root': f'{bucket}/data', 'task': task}
      for task in ('t2i', 'caption')
    ]
    files.write_json(f'{bucket}/data/{mixture}.json', rows)
  for part in ('vae', 'tokenizer'):
    for file in (pathlib.Path(shrink.assets()) / part).rglob('*'):
      if file.is_file():
        name = file.relative_to(shrink.assets())
        files.write_bytes(f'{bucket}/parts/{name}', file.read_bytes())


def log_lines(workdir):
  return [
    line
    for part in sorted(files.path(workdir).glob('log*'))
    for line in part.read_text().splitlines()
  ]


def test_the_commands_of_the_page_run_and_a_killed_run_loses_nothing():
  with storage.bucket() as bucket:
    fill(bucket)
    work, mixture = f'{bucket}/runs/stage2', f'{bucket}/data/mixture.json'
    config = shrink.stage('stage2', steps=STEPS, checkpoint_every=40)
    small = [
      '--config=configs/stage2.py:tiny',
      *shrink.overrides(config, shrink.real('stage2')),
      f'--config.data.mixture={mixture}',
      f'--config.tokenizer={bucket}/parts/tokenizer',
    ]
    train = ['tuna_jax.cli.train', f'--workdir={work}', *small, f'--config.vae={bucket}/parts/vae']
    assert 'caption, 9 of 9 records read, 0 unusable' in run('tuna_jax.cli.data', 'check', *small)
    assert '%' in run('tuna_jax.cli.data', 'fill', *small, '--batches=2')

    process = start(*train)
    for line in process.stdout:
      if f'completed step: {KILLED},' in line:
        seen = time.time()
        break
    while not any(f'completed step: {KILLED},' in line for line in log_lines(work)):
      assert time.time() - seen < 30 and process.poll() is None
      time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = steps.committed(work)[-1]
    assert 0 < saved < STEPS
    out = run(*train)
    assert f'continued from the checkpoint of step {saved}' in out
    done = [int(n) for line in log_lines(work) for n in re.findall(r'completed step: (\d+),', line)]
    assert set(done) == set(range(1, STEPS + 1))
    assert steps.committed(work)[-1] == STEPS
    assert 'damaged' not in run('tuna_jax.cli.ckpt', 'verify', work)

    run('tuna_jax.cli.data', 'encode', mixture, f'--vae={bucket}/parts/vae',
        f'--out={bucket}/latents', '--config=configs/stage2.py:tiny', *small[1:-2])  # fmt: skip
    offline = [
      f'--config.data.mixture={bucket}/latents/mixture.json',
      '--config.encoder.online=False',
    ]
    run(*train[:1], f'--workdir={bucket}/runs/offline', *small, *offline, '--config.steps=2')

    run('tuna_jax.cli.evaluate', f'--workdir={work}', f'--data={bucket}/data/test.json',
        f'--report={bucket}/report', '--n=2', '--points=3')  # fmt: skip
    assert '<html' in files.path(f'{bucket}/report/index.html').read_text()[:200].lower()
    run('tuna_jax.cli.generate', 't2i', 'a red square', f'--checkpoint={work}', '--points=3',
        f'--output={bucket}/drawn.png')  # fmt: skip
    assert read_info(f'{bucket}/drawn.png')['prompt'] == 'a red square'
    run('tuna_jax.cli.convert', 'export', f'--input={work}', f'--output={bucket}/exported')
    assert (files.path(bucket) / 'exported' / 'config.json').exists()
    assert not (shrink.ROOT / 'gs:').exists()
