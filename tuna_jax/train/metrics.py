"""What a run reports: one line per step, TensorBoard scalars, a progress bar, metrics on disk."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import tensorboardX
import tqdm
from etils import epath

from tuna_jax.data.tasks import TASKS


class Log:
  """Writes `log.txt` (one line per step), `metrics.jsonl` and TensorBoard scalars under `workdir`,
  from process 0.

  On a terminal the lines become one progress bar; elsewhere every line is printed too. The time of
  compilation is reported apart from the steps.
  """

  def __init__(self, workdir: str, steps: int, devices: int):
    self._on = jax.process_index() == 0
    self._steps, self._devices, self._bar = steps, devices, None
    if self._on:
      root = epath.Path(workdir)
      root.mkdir(parents=True, exist_ok=True)
      self._lines = (root / 'log.txt').open('a')
      self._records = (root / 'metrics.jsonl').open('a')
      self._board = tensorboardX.SummaryWriter(str(root / 'tensorboard'))

  def compiled(self, seconds: float) -> None:
    """Prints how long the first step took to compile."""
    if self._on:
      print(f'compiled in {seconds:.1f} s', flush=True)

  def step(self, step: int, metrics, seconds: float, tokens: int) -> dict[str, float]:
    """Writes the metrics of a finished step; returns them as plain numbers by name.

    metrics: of `train_step`. seconds: of this step. tokens: positions of all rows, padding
    included.
    """
    values = scalars(metrics)
    speed = tokens / max(seconds, 1e-9) / self._devices
    values |= {'seconds': seconds, 'tokens_per_second_per_device': speed}
    if not self._on:
      return values
    shown = {n: v for n, v in values.items() if '/' in n or n in ('loss', 'grad_norm')}
    line = f'completed step: {step}, seconds: {seconds:.3f}, Tokens/s/device: {speed:.0f}, '
    line += ', '.join(f'{n}: {v:.4f}' for n, v in shown.items())
    record = {'step': step, **{n: round(v, 6) for n, v in values.items()}}
    self._lines.write(line + '\n')
    self._records.write(json.dumps(record) + '\n')
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    if self._bar is None:  # a continued run counts on from where it stopped
      self._bar = tqdm.tqdm(
        total=self._steps, initial=step - 1, unit='step', file=sys.stdout, disable=None
      )
    self._bar.set_postfix(loss=f'{values["loss"]:.4f}', refresh=False)
    self._bar.update()
    if self._bar.disable:
      print(line, flush=True)
    if step % 50 == 0:
      self._lines.flush()
      self._records.flush()
    return values

  def close(self) -> None:
    """Writes out what is buffered."""
    if self._bar is not None:
      self._bar.close()
    if self._on:
      for file in (self._lines, self._records, self._board):
        file.close()


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
