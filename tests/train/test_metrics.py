"""What a run reports, in lines that scripts read and files that tools open."""

import dataclasses
import importlib.machinery
import io
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from tests import shrink
from tuna_jax.config import UserError
from tuna_jax.data.tasks import TASKS
from tuna_jax.losses import Sum
from tuna_jax.train import flops, report
from tuna_jax.train.config import ReportConfig
from tuna_jax.train.goodput import Goodput
from tuna_jax.train.metrics import means, scalars
from tuna_jax.train.report import Log
from tuna_jax.train.step import TIME_BINS

NAMES = list(TASKS)
CONFIG = dataclasses.replace(shrink.shrink(shrink.real('stage2')), steps=2)
V5E = [types.SimpleNamespace(device_kind='TPU v5 lite')] * 4


def metrics(loss=1.5):
  def sums(entries, **found):
    total, count = np.zeros((2, len(entries)), np.float32)
    for entry, (t, c) in found.items():
      total[entries.index(entry)], count[entries.index(entry)] = t, c
    return Sum(total, count)

  parts = np.zeros((2, TIME_BINS), np.float32)
  parts[:, 3] = 8, 16
  return {
    'loss': np.float32(loss),
    'grad_norm': np.float32(0.5),
    'lr': np.float32(1e-4),
    'filled': np.float32(0.5),
    'ntp': sums(NAMES, caption=(6.0, 3.0), vqa=(1.0, 1.0)),
    'flow': sums(NAMES, t2i=(8.0, 16.0)),
    'flow_t': Sum(*parts),
  }


def test_losses_are_told_by_task_and_time_and_absent_ones_are_not():
  assert means({name: metrics()[name] for name in ('ntp', 'flow', 'flow_t')}) == {
    'ntp/all': 1.75,
    'ntp/caption': 2.0,
    'ntp/vqa': 1.0,
    'flow/all': 0.5,
    'flow/t2i': 0.5,
    'flow_t/0.3': 0.5,
  }
  assert scalars(metrics())['total_weights'] == 20  # 4 targets of text, 16 latent tokens


def test_a_loss_that_is_off_is_absent():
  only = {k: v for k, v in metrics().items() if not k.startswith('flow')}
  found = scalars(only)
  assert not [name for name in found if name.startswith('flow')] and found['total_weights'] == 4


def opened(folder, devices=V5E, **changes):
  return Log(str(folder), dataclasses.replace(CONFIG, **changes), devices, Goodput(str(folder)))


@pytest.fixture
def log(tmp_path, capsys):
  log = opened(tmp_path)
  log.say('compiled in 38.4 s')
  log.step(1, metrics(), 0.5, 0.125)
  log.step(2, metrics(loss=float('nan')), 0.25, 0.0)
  log.close()
  return tmp_path, capsys.readouterr().out


def test_a_step_is_one_line_in_the_shape_scripts_grep(log):
  folder, printed = log
  lines = (folder / 'log.txt').read_text().splitlines()
  assert lines == printed.splitlines() and lines[0] == 'compiled in 38.4 s'
  assert lines[-1].startswith('goodput: ') and len(lines) == 4
  assert re.match(
    r'completed step: 1, seconds: 0\.500, TFLOP/s/device: \d+\.\d{3}, Tokens/s/device: 320\.000, '
    r'total_weights: 20, loss: 1\.5000, step: 1/2, ETA: 0:00:0[01], MFU: 0\.\d%, lr: 0\.0001, '
    r'filled: 50\.0%, data_wait: 0\.125, grad_norm: 0\.5000, ntp/all: ',
    lines[1],
  )
  assert 'ntp/caption: 2.0000' in lines[1] and 'flow_t/0.3: 0.5000' in lines[1]


def test_speed_counts_filled_positions_alone(log):
  first = json.loads((log[0] / 'metrics.jsonl').read_text().splitlines()[0])
  assert first['tokens_per_second_per_device'] == CONFIG.rows * CONFIG.length / 2 / 0.5 / 4
  done = flops.train_flops(CONFIG).useful / 2 / 0.5 / 4
  assert first['tflops_per_second_per_device'] == pytest.approx(done / 1e12)
  assert first['mfu'] == pytest.approx(done / 197e12)


def test_a_chip_without_a_known_peak_has_no_mfu(tmp_path):
  log = opened(tmp_path, [types.SimpleNamespace(device_kind='cpu')])
  log.step(1, metrics(), 0.5, 0.0)
  log.close()
  assert 'MFU' not in (tmp_path / 'log.txt').read_text()


def test_curves_lie_on_disk_and_in_tensorboard(log):
  folder, _ = log
  records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert (
    [r['step'] for r in records] == [1, 2]
    and records[0]['loss'] == 1.5
    and np.isnan(records[1]['loss'])
  )
  assert any((folder / 'tensorboard').iterdir())


@pytest.mark.parity
def test_a_run_does_not_load_pytorch(tmp_path):
  script = (
    'import sys; from tuna_jax.train import loop, report; report._board(sys.argv[1]).close(); '
    "assert 'torch' not in sys.modules; import torch; torch.zeros(1)"
  )
  subprocess.run([sys.executable, '-c', script, tmp_path], check=True, cwd=shrink.ROOT)


def test_a_continued_run_appends(log):
  folder, _ = log
  again = opened(folder, steps=3)
  again.step(3, metrics(), 0.5, 0.0)
  again.close()
  assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 3
  assert len(list((folder / 'tensorboard').iterdir())) == 2  # also within one second


def test_a_line_is_printed_at_an_interval_and_for_the_first_and_last_step(tmp_path, capsys):
  log = opened(tmp_path, steps=9, report=ReportConfig(line_s=3600))
  for step in range(5, 10):  # continued after step 4
    log.step(step, metrics(), 10.0, 0.0)
  log.close()
  printed = capsys.readouterr().out.splitlines()[:-1]
  assert [re.match(r'completed step: (\d)', line)[1] for line in printed] == ['5', '9']
  # After one step of 10 s, four are left: what came before the continuation does not count.
  assert 'step: 5/9, ETA: 0:00:40' in printed[0]
  assert len((tmp_path / 'log.txt').read_text().splitlines()) == 6  # and where the time went


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_on_a_terminal_the_lines_become_a_bar_that_counts_on_after_a_stop(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'stdout', terminal := Terminal())
  log = opened(tmp_path, steps=10)
  log.step(9, metrics(), 0.5, 0.0)
  log.step(10, metrics(), 0.5, 0.0)
  log.close()
  shown = terminal.getvalue()
  assert '10/10' in shown and 'loss=1.5000' in shown and 'completed step' not in shown


class FakeWandb(types.ModuleType):
  """Keeps what the functions of wandb that are used were called with."""

  def __init__(self):
    super().__init__('wandb')
    self.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
    self.begun, self.rows, self.finished = [], [], 0

  def init(self, **settings):
    self.begun.append(settings)
    return self

  def define_metric(self, name, step_metric):
    assert (name, step_metric) == ('*', 'step')

  def log(self, row):
    self.rows.append(row)

  def Image(self, pixels, caption):  # noqa: N802
    return pixels.shape, caption

  def finish(self):
    self.finished += 1


def test_wandb_is_told_numbers_and_pictures_of_one_run_over_all_starts(tmp_path, monkeypatch):
  wandb = FakeWandb()
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  config = dataclasses.replace(CONFIG, report=ReportConfig(wandb='tuna'))
  report.check(config)
  for step in (1, 2):
    log = opened(tmp_path, report=config.report)
    log.step(step, metrics(), 0.5, 0.0)
    log.pictures(step, {'a red circle': np.zeros((8, 8, 3), np.uint8)})
    log.close()
  first, second = wandb.begun
  assert first == second and first['project'] == 'tuna' and first['resume'] == 'allow'
  assert first['config']['optimizer']['lr'] == CONFIG.optimizer.lr and wandb.finished == 2
  assert [(r['step'], r['loss']) for r in wandb.rows if 'loss' in r] == [(1, 1.5), (2, 1.5)]
  assert wandb.rows[1] == {'step': 1, 'samples': [((8, 8, 3), 'a red circle')]}


def test_a_run_that_asks_for_wandb_where_it_is_not_is_told_so(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config = dataclasses.replace(CONFIG, report=ReportConfig(wandb='tuna'))
  with pytest.raises(UserError, match=r"report\.wandb='tuna': no package wandb; pip install"):
    report.check(config)
