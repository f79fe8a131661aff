"""The page of a run grows while it trains, and a start that takes no step leaves it alone."""

import dataclasses
import json
import time
import types

import numpy as np

from tests import shrink
from tuna_jax.evals import running
from tuna_jax.train.config import ReportConfig
from tuna_jax.train.goodput import Goodput
from tuna_jax.train.report import Log

CONFIG = dataclasses.replace(
  shrink.shrink(shrink.real('stage2')), steps=40, report=ReportConfig(line_s=3600)
)
CPU = [types.SimpleNamespace(device_kind='cpu')]


def told(folder):
  """What a run of three steps and one sample writes."""
  log = Log(str(folder), CONFIG, CPU, Goodput(str(folder)))
  for step in (1, 2, 3):
    log.record(step, {'loss': 1 / step, 'ntp/all': 1 / step, 'ntp/vqa': 1 / step})
  log.pictures(2, {'a red <circle>': np.full((16, 16, 3), 90, np.uint8)})
  return log


def test_the_page_shows_losses_samples_and_where_the_time_went(tmp_path, monkeypatch):
  monkeypatch.setattr(running, 'REFRESH', 1)
  run = tmp_path / 'run'
  with running.Running(CONFIG, str(run)):
    log = told(run)
    log.flush()
    while not (run / 'index.html').exists():
      time.sleep(0.1)
    growing = (run / 'index.html').read_text()
    log.close()
  assert 'http-equiv="refresh"' in growing and 'cross-entropy' in growing
  page = (run / 'index.html').read_text()
  assert 'http-equiv="refresh"' not in page
  assert 'Drawn after step 2' in page and 'a red &lt;circle&gt;' in page
  assert '<tr><th>start</th>' in page  # what the time went to
  assert 'tuna_jax 0' in page and 'jax' in page
  assert json.loads((run / 'report.json').read_text())['losses']['run']['step'] == 3


def test_a_start_that_takes_no_step_leaves_the_page_as_it_was(tmp_path):
  run = tmp_path / 'run'
  told(run).close()
  (run / 'index.html').write_text('before')
  with running.Running(CONFIG, str(run)):
    pass
  assert (run / 'index.html').read_text() == 'before'
