"""Everything that a path can name works on gs://, against a real emulator on loopback."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import shrink
from tests.chaos.test_damage import CONFIG, DATA, MODEL, abstract, equal, make_run, state
from tests.train.test_evaluations import events
from tests.train.test_metrics import metrics
from tests.weights.small import random_leaves
from tuna_jax import files, tree
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.evals import curves
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sample.output import Clip, Picture, read_info
from tuna_jax.train import loop, report
from tuna_jax.train.checkpoint import Checkpoints
from tuna_jax.train.goodput import Goodput
from tuna_jax.weights import steps, store

storage = pytest.importorskip('tests.storage', reason='needs the emulator of the extra `test`')


@pytest.fixture(scope='module')
def bucket():
  with storage.bucket() as url:
    yield url


def test_a_file_is_written_whole_or_not_at_all(bucket):
  files.write_text(f'{bucket}/a/x', 'old')
  for content in (b'half', bytes(20 << 20)):  # in one request, and in several
    with pytest.raises(KeyboardInterrupt):
      with files.writing(f'{bucket}/a/x') as file:
        file.write(content)
        raise KeyboardInterrupt
    assert files.path(f'{bucket}/a/x').read_text() == 'old'
  files.write_json(f'{bucket}/a/y.json', {'n': 1})
  assert files.read_json(f'{bucket}/a/y.json') == {'n': 1}
  assert [p.name for p in sorted(files.path(f'{bucket}/a').iterdir())] == ['x', 'y.json']


def test_checkpoints_are_saved_restored_and_passed_over_when_damaged_or_unfinished(bucket):
  run = files.path(f'{bucket}/run')
  make_run(run)
  steps_folder = run / 'checkpoints'
  (steps_folder / '12' / 'params').mkdir(parents=True)
  files.write_text(steps_folder / '12' / 'params' / 'half', 'x')
  assert steps.committed(run) == [4, 8]
  victim = max((steps_folder / '8' / 'params' / 'd').iterdir(), key=lambda p: p.stat().length)
  data = bytearray(victim.read_bytes())
  data[len(data) // 2] ^= 1
  victim.write_bytes(bytes(data))
  saver = Checkpoints(str(run), CONFIG)
  step, found, _ = saver.restore_newest(abstract())
  assert step == 4
  equal(found, state(4))
  saver.save(state(8), DATA)
  saver.close()
  steps.check(run, 8)


def test_weights_and_a_vae_are_written_and_loaded(bucket):
  leaves, vae = random_leaves(tuna_shapes(MODEL)), random_leaves(vae_shapes(MODEL.vae))
  store.write(f'{bucket}/w', MODEL, leaves, vae, {})
  equal(tree.flatten(store.load_weights(f'{bucket}/w', tuna_shapes(MODEL))), leaves)
  store.save(f'{bucket}/w/vae', MODEL.vae, vae)  # replaces what is there
  equal(tree.flatten(store.load_vae(f'{bucket}/w/vae')[1]), vae)


def test_tokenizers_pictures_and_clips_are_written_and_read(bucket):
  Tokenizer.train(['a few words', 'more words'], 400).save(f'{bucket}/tokenizer')
  tokenizer = Tokenizer.from_dir(f'{bucket}/tokenizer')
  assert tokenizer.decode(tokenizer.encode('words')) == 'words'
  pixels = np.zeros((5, 64, 64, 3), np.uint8)
  Picture(pixels[0], {'prompt': 'x'}).save(f'{bucket}/out/a.png')
  for name in ('a.mp4', 'a.gif'):
    Clip(pixels, 8, {'prompt': 'x'}).save(f'{bucket}/out/{name}')
  for name in ('a.png', 'a.mp4', 'a.gif'):
    assert read_info(f'{bucket}/out/{name}') == {'prompt': 'x'}


def test_a_file_that_grows_is_parts_which_a_restart_adds_to(bucket, monkeypatch):
  monkeypatch.setattr(files, 'PART', 12)
  where = f'{bucket}/grows/log.txt'
  assert files.read_appended(where) == b''
  for start in 'ab':
    file = files.Appending(where)
    for n in range(4):
      file.write(f'{start} line {n}\n'.encode())
      if n % 2:
        file.flush()
    file.write(b'cut off')  # by a kill
  lines = [f'{start} line {n}\n' for start in 'ab' for n in range(4)]
  assert files.read_appended(where).decode() == ''.join(lines)
  assert len(list(files.path(where).parent.iterdir())) == 4


def test_reports_reach_the_bucket_while_a_run_goes_on_and_a_restart_keeps_them(
  bucket, tmp_path, monkeypatch
):
  monkeypatch.setattr(report, 'FLUSH_S', 0.05)
  run = f'{bucket}/reports'
  logs = [report.Log(run, CONFIG, jax.devices(), Goodput(run))]

  def steps():
    return [record['step'] for record in curves.read(f'{run}/metrics.jsonl')]

  def shown():
    folder = files.path(run) / 'tensorboard'
    for part in folder.iterdir() if folder.exists() else ():
      (tmp_path / part.name).write_bytes(part.read_bytes())
    return sorted({e.step for e in events(tmp_path) if e.summary.value})

  for n in (1, 2):  # the first is not closed, as if it had been killed
    if n == 2:
      logs.append(report.Log(run, CONFIG, jax.devices(), Goodput(run)))
    logs[-1].step(n, metrics(), 0.5, 0.0)
    until = time.monotonic() + 30
    while (steps(), shown()) != ([*range(1, n + 1)],) * 2 and time.monotonic() < until:
      time.sleep(0.1)
    assert steps() == shown() == [*range(1, n + 1)]
  for log in logs:
    log.close()
  lines = files.read_appended(f'{run}/log.txt').decode().splitlines()
  assert [line[:18] for line in lines].count('completed step: 1,') == 1
  assert files.read_json(f'{run}/goodput.json')['starts'] == 2


def test_a_profile_reaches_the_bucket(bucket):
  with loop._profile(f'{bucket}/profiled'):
    jax.block_until_ready(jax.numpy.ones(3) + 1)
  found = list((files.path(bucket) / 'profiled' / 'profile' / 'plugins').glob('profile/*/*'))
  assert any(path.name.endswith('.xplane.pb') and path.stat().length for path in found), found


def tuna(*arguments, devices=1):
  command = [sys.executable, '-m', *map(str, arguments)]
  environment = os.environ | {'XLA_FLAGS': shrink.flags(devices)}
  return subprocess.Popen(
    command, text=True, cwd=shrink.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    env=environment,
  )  # fmt: skip


def finished(*arguments, devices=1):
  process = tuna(*arguments, devices=devices)
  out, _ = process.communicate(timeout=900)
  assert process.returncode == 0, out
  return out


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_continues_draws_and_is_exported(bucket, tmp_path):
  config = shrink.stage('stage2', steps=8, rows=2, checkpoint_every=2)
  names = {'vae': config.vae, 'tokenizer': config.tokenizer}
  for name, local in names.items():
    for file in pathlib.Path(local).rglob('*'):
      if file.is_file():
        files.write_bytes(f'{bucket}/{name}/{file.relative_to(local)}', file.read_bytes())
  run = f'{bucket}/pod'
  command = [
    'tuna_jax.cli.train', '--config=configs/stage2.py:tiny', f'--workdir={run}',
    *shrink.overrides(config, shrink.real('stage2')),
    f'--config.vae={bucket}/vae', f'--config.tokenizer={bucket}/tokenizer',
  ]  # fmt: skip
  process = tuna(*command)
  for line in process.stdout:
    if 'completed step: 5' in line:
      process.send_signal(signal.SIGKILL)
      break
  process.wait()
  saved = steps.committed(run)
  assert saved and saved[-1] < 8
  out = finished(*command)
  assert 'completed step: 8' in out and 'completed step: 1,' not in out
  assert steps.committed(run)[-1] == 8
  drawn = f'{bucket}/drawn.png'
  finished(
    'tuna_jax.cli.generate', 't2i', 'a red circle', f'--checkpoint={run}', '--points=3',
    f'--output={drawn}',
  )  # fmt: skip
  assert read_info(drawn)['prompt'] == 'a red circle'
  finished('tuna_jax.cli.convert', 'export', f'--input={run}', f'--output={bucket}/exported')
  assert (files.path(bucket) / 'exported' / 'config.json').exists()
  assert not os.path.exists(os.path.join(shrink.ROOT, 'gs:'))


@pytest.mark.slow
def test_three_hundred_steps_killed_twice_lose_no_step_and_no_line_older_than_30_seconds(bucket):
  config = shrink.stage('stage1', steps=300, rows=8, checkpoint_every=20)
  run = f'{bucket}/killed'
  command = [
    'tuna_jax.cli.train', '--config=configs/stage1.py:tiny', f'--workdir={run}',
    *shrink.overrides(config, shrink.real('stage1')),
  ]  # fmt: skip
  for stop in (100, 200):
    process, seen = tuna(*command, devices=8), {}
    for line in process.stdout:
      if line.startswith('completed step: '):
        step = int(line.split()[2].rstrip(','))
        seen[step] = time.monotonic()
        if step >= stop and seen[step] - min(seen.values()) > 35:
          process.send_signal(signal.SIGKILL)
          killed = time.monotonic()
          break
    process.wait()
    kept = {record['step'] for record in curves.read(f'{run}/metrics.jsonl')}
    old = {step for step, at in seen.items() if at < killed - 30}
    assert old and old <= kept
  assert 'goodput: ' in finished(*command, devices=8)
  assert [r['step'] for r in curves.read(f'{run}/metrics.jsonl')] == list(range(1, 301))
  journal = files.read_json(f'{run}/goodput.json')
  assert journal['starts'] == 3 and journal['step'] == 300 and journal['seconds']['lost'] > 0
