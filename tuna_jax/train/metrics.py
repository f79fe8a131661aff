"""What a run says: one line a step, TensorBoard scalars, a progress bar, loss curves on disk."""

from __future__ import annotations

import json
import sys
import time

import jax
import numpy as np
from etils import epath

from tuna_jax.data.tasks import TASKS


class Log:
  """Writes `log.txt` (a line a step), `metrics.jsonl` and TensorBoard scalars under `workdir`, from
  process 0.

  On a terminal the lines become one progress bar; elsewhere every line is printed too. Compile time
  is told apart: call `compiled(seconds)` once it is known.
  """

  def __init__(self, workdir: str, steps: int, devices: int):
    self._on = jax.process_index() == 0
    self._steps, self._devices = steps, devices
    self._bar = sys.stdout.isatty()
    self._began = None
    self._compile = 0.0
    if self._on:
      import tensorboardX

      root = epath.Path(workdir)
      root.mkdir(parents=True, exist_ok=True)
      self._lines = (root / 'log.txt').open('a')
      self._records = (root / 'metrics.jsonl').open('a')
      self._board = tensorboardX.SummaryWriter(str(root / 'tensorboard'))

  def compiled(self, seconds: float) -> None:
    """Says how long the first step took to compile, and starts the clock of the others."""
    self._compile = seconds
    self._began = time.perf_counter()
    if self._on:
      print(f'compiled in {seconds:.1f} s', flush=True)

  def step(self, step: int, metrics, seconds: float, tokens: int) -> dict[str, float]:
    """Writes the metrics of a finished step; returns them as plain numbers by name.

    metrics: of `train_step`. seconds: of this step. tokens: positions of all rows, padding
    included.
    """
    values = scalars(metrics)
    values |= {
      'seconds': seconds,
      'tokens_per_second_per_device': tokens / max(seconds, 1e-9) / self._devices,
    }
    if not self._on:
      return values
    line = (
      f'completed step: {step}, seconds: {seconds:.3f}, '
      f'Tokens/s/device: {values["tokens_per_second_per_device"]:.0f}, '
      + ', '.join(
        f'{n}: {v:.4f}' for n, v in values.items() if '/' in n or n in ('loss', 'grad_norm')
      )
    )
    self._lines.write(line + '\n')
    self._records.write(
      json.dumps({'step': step, **{n: round(v, 6) for n, v in values.items()}}) + '\n'
    )
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    if self._bar:
      print(
        f'\r{self._progress(step)} loss {values["loss"]:.4f} ',
        end='' if step < self._steps else '\n',
        flush=True,
      )
    else:
      print(line, flush=True)
    if step % 50 == 0:
      self._lines.flush()
      self._records.flush()
    return values

  def close(self) -> None:
    """Writes out what is buffered."""
    if self._on:
      for file in (self._lines, self._records, self._board):
        file.close()

  def _progress(self, step: int) -> str:
    done = step / self._steps
    spent = time.perf_counter() - (self._began or time.perf_counter())
    left = spent / max(done, 1e-9) * (1 - done) if done else 0.0
    bar = '#' * int(24 * done)
    return f'[{bar:24}] {step}/{self._steps} {spent:.0f} s + {left:.0f} s (compile {self._compile:.0f} s apart)'


def scalars(metrics) -> dict[str, float]:
  """Plain numbers from the metrics of a step: loss, grad_norm, mean and per-task losses
  ('flow/t2i').
  """
  metrics = jax.tree.map(np.asarray, metrics)
  values = {'loss': float(metrics['loss']), 'grad_norm': float(metrics['grad_norm'])}
  for name in ('ntp', 'flow'):
    if name not in metrics:
      continue
    total, count = metrics[name]
    if count.sum():
      values[f'{name}/all'] = float(total.sum() / count.sum())
    for task, t, c in zip(TASKS, total, count):
      if c:
        values[f'{name}/{task}'] = float(t / c)
  return values
