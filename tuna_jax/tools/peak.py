"""Peak memory of steps that were not compiled, from those that were.

PAPAYA (arXiv 2303.14633) fits one line per method, M(b) = alpha b + beta. Here what is known by
arithmetic is not fitted: the state, and what layers keep. Of the rest there is one fit over all
answers of the compiler,

    peak - state - kept = a (gradients) + b (fixed) + c (scratch of the rows)
                          + d (gradients, if they are summed over micro-batches)

and what it misses in a family (model, chip, axes of the mesh, remat) is a line through the answers
of that family, or half of it, in proportion, if they have one number of rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from tuna_jax import losses
from tuna_jax.config import TOWERS
from tuna_jax.models.flops import layer_weights
from tuna_jax.tools import step_cost
from tuna_jax.train.config import TrainConfig

PARTS = 4  # numbers that are fitted


class Point(NamedTuple):
  """A step in the terms of the model. family: what its answers share; state: bytes of parameters,
  moments, average and batch; kept: of what layers keep; parts: as in the equation;
  peak: bytes that the compiler gave it, None if it was not compiled; refused: whether those are
  what it would have needed."""

  family: tuple
  state: float
  kept: float
  parts: tuple[float, ...]
  peak: float | None = None
  refused: bool = False

  @property
  def known(self) -> float:
    """Bytes that need no fit."""
    return self.state + self.kept


def point(config: TrainConfig, mesh, chip: str, memory: dict[str, int], record=None) -> Point:
  """The Point of a step from its configuration, its mesh, the bytes that `step_cost.memory_of`
  counts, and the answer if there is one."""
  model, gradients = config.model, memory['gradients']
  item = 2 if model.dtype == 'bfloat16' else 4
  rows = step_cost.micro_rows(config, mesh)
  towers = [name for name in TOWERS if getattr(model, name)]
  widest = max(layer_weights(model, name) for name in towers)
  vocabulary, width = model.decoder.padded_vocab, model.decoder.dim
  logits = 4 * vocabulary * min(losses.CHUNK, rows * config.length)
  scratch = max(
    tokens * (4 * t.dim + 2 * (t.num_heads + t.num_kv_heads) * t.head_dim + 3 * t.mlp_dim)
    for name, tokens in step_cost.positions(config).items()
    if (t := getattr(model, name))
  )
  axes = tuple(name for name, size in mesh.shape.items() if size > 1)
  family = (str((model.vision, model.decoder, model.flow_head)), chip, axes, model.remat)
  summed = gradients * (config.optimizer.accumulate > 1)
  return Point(
    family,
    sum(memory[k] for k in ('parameters', 'ema', 'optimizer', 'batch')),
    step_cost.kept(config) * rows,
    (gradients, logits + item * (vocabulary * width + 2 * widest), item * scratch * rows, summed),
    record and record['peak'],
    bool(record and record['reason']),
  )


class Model:
  """Fitted to points with a peak. What a refused step would have needed is some per cent off what
  steps that fit take, so it counts a third, and in a family only where there is nothing else."""

  def __init__(self, points: Sequence[Point]):
    known = [p for p in points if p.peak]
    took = {p.family for p in known if not p.refused}
    self.points = [p for p in known if not p.refused or p.family not in took]
    self._known = {p[:4]: p for p in known}
    self.coefficients = np.ones(PARTS)
    if known:
      # Relative errors count, of 2 % or so; what the points do not decide stays near 1, the value
      # by arithmetic.
      weight = np.array([(1 / 3 if p.refused else 1) / p.peak for p in known])
      parts = np.array([p.parts for p in known])
      pull = 0.02 * np.eye(PARTS)
      left = np.vstack([parts * weight[:, None], pull])
      right = np.concatenate([np.array([p.peak - p.known for p in known]) * weight, pull.sum(1)])
      self.coefficients = nnls(left, right)[0]

  def peak(self, of: Point) -> float:
    """Bytes that the compiler would give a step."""
    known = self.known(of)
    return known.peak if known else of.known + self._rest(of) + self._missed(of)

  def known(self, of: Point) -> Point | None:
    """The answer to this very step."""
    return self._known.get(of[:4])

  def evidence(self, of: Point) -> int:
    """How many answers its family has."""
    return len(self._family(of))

  def _rest(self, of: Point) -> float:
    return float(np.dot(self.coefficients, of.parts))

  def _family(self, of: Point) -> list[Point]:
    return [p for p in self.points if p.family == of.family]

  def _missed(self, of: Point) -> float:
    """By a line in the scratch of the rows through what the fit misses in the family."""
    family = self._family(of)
    if not family:
      return 0.0
    rows = np.array([p.parts[2] for p in family])
    left = np.array([p.peak - p.known - self._rest(p) for p in family])
    if len(set(rows)) < 2:
      return self._rest(of) * float(left.sum() / sum(self._rest(p) for p in family)) / 2
    slope, start = np.polyfit(rows, left, 1)
    return float(start + slope * of.parts[2])


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
