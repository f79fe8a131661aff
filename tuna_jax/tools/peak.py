"""Peak memory of steps that were not compiled, from those that were.

PAPAYA (arXiv 2303.14633) fits one line per method, M(b) = alpha b + beta. Here what is known by
arithmetic is not fitted: the state, and what layers keep. Of the rest there is one fit over all
answers of the compiler,

    peak - state - kept = a (gradients) + b (fixed) + c (scratch of the rows)

(fixed: the language head and the weights of two layers), in which no number belongs to a family
(model, chip, axes of the mesh, remat): a line through the answers of each family predicted others
of it worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from tuna_jax.chips import CHIPS
from tuna_jax.config import TOWERS
from tuna_jax.models.flops import layer_weights
from tuna_jax.tools import step_cost
from tuna_jax.train.config import TrainConfig

PARTS = 3  # numbers that are fitted
# A program that would not fit is scheduled again with less scratch, and then fills memory. 2B took
# 14.6 of 15.75 GiB with eight rows per device, 0.3 GiB less for each of them than with four.
SQUEEZED, FULL = 0.3, 0.95


class Point(NamedTuple):
  """A step in the terms of the model. family: what its answers share; state: bytes of parameters,
  moments, average and batch; kept: of what layers keep, and gradients that are summed over
  micro-batches; parts: as in the equation;
  peak: bytes that the compiler gave it, None if it was not compiled; refused: whether those are
  what it would have needed; limit: bytes that a program may take."""

  family: tuple
  state: float
  kept: float
  parts: tuple[float, ...]
  peak: float | None = None
  refused: bool = False
  limit: float = float('inf')

  @property
  def known(self) -> float:
    """Bytes that need no fit."""
    return self.state + self.kept


def point(config: TrainConfig, mesh, chip: str, memory: dict[str, int], record=None) -> Point:
  """The Point of a step from its configuration, its mesh, the bytes that `step_cost.memory_of`
  counts, and the answer if there is one."""
  model = config.model
  item = 2 if model.dtype == 'bfloat16' else 4
  rows = step_cost.micro_rows(config, mesh)
  towers = {name: getattr(model, name) for name in TOWERS if getattr(model, name)}
  weights = {name: layer_weights(model, name) for name in towers}
  widest = max(weights.values())
  vocabulary, width = model.decoder.padded_vocab, model.decoder.dim
  positions = step_cost.positions(config)
  wide = {name: positions[name] * _width(name, tower) for name, tower in towers.items()}
  scratch = wide.pop('vision', 0) + max(wide.values())
  # A tower that nothing passes through has no gradients, though it has moments; its share here is
  # that of a run in which all towers train.
  each = {name: weights[name] * tower.num_layers for name, tower in towers.items()}
  idle = sum(n for name, n in each.items() if not positions[name])
  gradients = memory['gradients'] * (1 - idle / (sum(each.values()) + vocabulary * width))
  axes = tuple(name for name, size in mesh.shape.items() if size > 1)
  family = (str((model.vision, model.decoder, model.flow_head)), chip, axes, model.remat)
  summed = gradients * (config.optimizer.accumulate > 1)
  return Point(
    family,
    sum(memory[k] for k in ('parameters', 'ema', 'optimizer', 'batch')),
    step_cost.kept(config) * rows + summed,
    (gradients, item * (vocabulary * width + 2 * widest), item * scratch * rows),
    record and record['peak'],
    bool(record and record['reason']),
    CHIPS[chip].hbm * 2**30,
  )


def _width(name: str, tower) -> int:
  """Numbers per position that a layer and its backward pass hold at a time: inputs, queries, keys,
  values and the MLP; where it is modulated, six vectors and three products with them."""
  heads = 2 * (tower.num_heads + tower.num_kv_heads) * tower.head_dim
  return (4 + 9 * (name == 'flow_head')) * tower.dim + heads + 3 * tower.mlp_dim


class Model:
  """Fitted to points with a peak. What a refused step would have needed is some per cent off what
  steps that fit take, so it counts a fifth."""

  def __init__(self, points: Sequence[Point]):
    known = [p for p in points if p.peak]
    self._known = {p[:4]: p for p in known}
    self.coefficients = np.ones(PARTS)
    if known:
      # Relative errors count; what the points do not decide stays near 1, the value by arithmetic.
      weight = np.array([(1 / 5 if p.refused else 1) / p.peak for p in known])
      parts = np.array([p.parts for p in known])
      pull = 0.05 * np.eye(PARTS)
      left = np.vstack([parts * weight[:, None], pull])
      right = np.concatenate([np.array([p.peak - p.known for p in known]) * weight, pull.sum(1)])
      self.coefficients = nnls(left, right)[0]

  def peak(self, of: Point) -> float:
    """Bytes that the compiler would give a step."""
    if known := self.known(of):
      return known.peak
    loose = of.known + float(np.dot(self.coefficients, of.parts))
    tight = loose - SQUEEZED * self.coefficients[-1] * of.parts[-1]
    return min(loose, max(tight, FULL * of.limit))

  def known(self, of: Point) -> Point | None:
    """The answer to this very step."""
    return self._known.get(of[:4])

  def evidence(self, of: Point) -> int:
    """How many answers its family has."""
    return sum(family == of.family for family, *_ in self._known)


def judged(said: Callable, held_out: Sequence[Point], limit) -> dict[str, float]:
  """How well points are predicted that the model did not see: R2 of the peak and of the peak
  without the state, the worst relative error, and the wrong verdicts of fits or does not fit.

  said, limit: functions of a Point, in bytes.
  """
  real = np.array([p.peak for p in held_out])
  predicted = np.array([said(p) for p in held_out])
  state = np.array([p.state for p in held_out])
  spread = lambda a: float(np.sum((a - a.mean()) ** 2)) or np.nan
  missed = float(np.sum((real - predicted) ** 2))
  fits = np.array([limit(p) for p in held_out])
  return {
    'points': len(held_out),
    'R2 of peak': 1 - missed / spread(real),
    'R2 of peak - state': 1 - missed / spread(real - state),
    'worst error': float(np.max(np.abs(predicted / real - 1))),
    'wrong verdicts': int(
      np.sum((predicted <= fits) != np.array([not p.refused for p in held_out]))
    ),
  }
