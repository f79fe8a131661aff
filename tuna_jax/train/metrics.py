"""The metrics of a step as plain numbers by name, and as a line."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import numpy as np

from tuna_jax import losses
from tuna_jax.data.tasks import TASKS
from tuna_jax.train.step import TIME_BINS

# The bins of the time t, by their lower ends.
TIMES = tuple(f'{n / TIME_BINS:.1f}' for n in range(TIME_BINS))
ENTRIES = {'ntp': TASKS, 'flow': TASKS, 'flow_t': TIMES}  # of each sum of a step


def line(step: int, steps: int, left: float, values: Mapping[str, float]) -> str:
  """The line of a step, `left` seconds before the last; its first part has MaxText's shape."""
  parts = [
    f'completed step: {step}',
    f'seconds: {values["seconds"]:.3f}',
    f'TFLOP/s/device: {values["tflops_per_second_per_device"]:.3f}',
    f'Tokens/s/device: {values["tokens_per_second_per_device"]:.3f}',
    f'total_weights: {values["total_weights"]:.0f}',
    f'loss: {values["loss"]:.4f}',
    f'step: {step}/{steps}',
    f'ETA: {datetime.timedelta(seconds=round(left))}',
  ]
  if 'mfu' in values:
    parts.append(f'MFU: {values["mfu"]:.1%}')
  parts += [
    f'lr: {values["lr"]:.3g}',
    f'filled: {values["filled"]:.1%}',
    f'data_wait: {values["data_wait"]:.3f}',
    f'grad_norm: {values["grad_norm"]:.4f}',
    *(f'{name}: {value:.4f}' for name, value in values.items() if '/' in name),
  ]
  return ', '.join(parts)


def scalars(metrics) -> dict[str, float]:
  """Plain numbers from the metrics of a step. total_weights: weights of all targets of both losses,
  positions where each weight is 1."""
  sums = {name: metrics[name] for name in ENTRIES if name in metrics}
  values = {name: float(value) for name, value in metrics.items() if name not in sums}
  weights = sum(float(np.sum(sums[name].count)) for name in ('ntp', 'flow') if name in sums)
  return values | {'total_weights': weights} | means(sums)


def means(sums: Mapping[str, losses.Sum]) -> dict[str, float]:
  """Mean losses: over all ('flow/all'), by task ('flow/t2i'), and of the flow by the time t
  ('flow_t/0.3', from 0.3 to 0.4); without what was not counted."""
  values = {}
  for name, entries in ENTRIES.items():
    if name not in sums:
      continue
    total, count = (np.asarray(a) for a in sums[name])
    if count.sum() and name != 'flow_t':  # its mean is that of 'flow'
      values[f'{name}/all'] = float(total.sum() / count.sum())
    for entry, t, c in zip(entries, total, count, strict=True):
      if c:
        values[f'{name}/{entry}'] = float(t / c)
  return values
