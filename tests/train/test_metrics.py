"""What a run reports, in lines that scripts read and files that tools open."""

import io
import json
import re
import sys

import numpy as np
import pytest

from tuna_jax.data.tasks import TASKS
from tuna_jax.losses import Sum
from tuna_jax.train.metrics import Log, scalars

NAMES = list(TASKS)


def metrics(loss=1.5):
  def sums(**by_task):
    total, count = np.zeros((2, len(NAMES)), np.float32)
    for task, (t, c) in by_task.items():
      total[NAMES.index(task)], count[NAMES.index(task)] = t, c
    return Sum(total, count)

  return {
    'loss': np.float32(loss),
    'grad_norm': np.float32(0.5),
    'ntp': sums(caption=(6.0, 3.0), vqa=(1.0, 1.0)),
    'flow': sums(t2i=(8.0, 16.0)),
  }


def test_losses_are_told_by_task_and_absent_tasks_are_not():
  assert scalars(metrics()) == {
    'loss': 1.5,
    'grad_norm': 0.5,
    'ntp/all': 1.75,
    'ntp/caption': 2.0,
    'ntp/vqa': 1.0,
    'flow/all': 0.5,
    'flow/t2i': 0.5,
  }


def test_a_loss_that_is_off_is_absent():
  only = {k: v for k, v in metrics().items() if k != 'flow'}
  assert not [name for name in scalars(only) if name.startswith('flow')]


@pytest.fixture
def log(tmp_path, capsys):
  log = Log(str(tmp_path), steps=2, devices=4)
  log.compiled(38.4)
  log.step(1, metrics(), 0.5, 4096)
  log.step(2, metrics(loss=float('nan')), 0.25, 4096)
  log.close()
  return tmp_path, capsys.readouterr().out


def test_a_step_is_one_line_in_the_shape_scripts_grep(log):
  folder, printed = log
  lines = (folder / 'log.txt').read_text().splitlines()
  assert len(lines) == 2 and all(line in printed for line in lines)
  assert re.match(
    r'completed step: 1, seconds: 0.500, Tokens/s/device: 2048, loss: 1.5000, grad_norm: 0.5000, ',
    lines[0],
  )
  assert 'ntp/caption: 2.0000' in lines[0] and 'flow/t2i: 0.5000' in lines[0]


def test_compile_time_is_told_apart(log):
  assert 'compiled in 38.4 s' in log[1]


def test_curves_lie_on_disk_and_in_tensorboard(log):
  folder, _ = log
  records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert (
    [r['step'] for r in records] == [1, 2]
    and records[0]['loss'] == 1.5
    and np.isnan(records[1]['loss'])
  )
  assert records[0]['tokens_per_second_per_device'] == 2048
  assert any((folder / 'tensorboard').iterdir())


def test_a_continued_run_appends(log):
  folder, _ = log
  again = Log(str(folder), steps=3, devices=4)
  again.step(3, metrics(), 0.5, 4096)
  again.close()
  assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 3


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_on_a_terminal_the_lines_become_a_bar_that_counts_on_after_a_stop(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'stdout', terminal := Terminal())
  log = Log(str(tmp_path), steps=10, devices=1)
  log.step(9, metrics(), 0.5, 4096)
  log.step(10, metrics(), 0.5, 4096)
  log.close()
  shown = terminal.getvalue()
  assert '10/10' in shown and 'loss=1.5000' in shown and 'completed step' not in shown
