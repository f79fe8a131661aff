"""A golden case, the verdict on one output, and the bar.

The bar, with no exceptions: integers equal; floats within 30 x sens_1ulp everywhere, or within 2e-6
in relative L2. `sens_1ulp` is how far the official output itself moves when weights and inputs move
by 6e-8 (docs/architecture.md 14).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from tuna_jax.config import UserError
from tuna_jax.weights.tensors import Lazy

SENSITIVITIES = 30.0  # of the official output to one rounding of everything that goes in
RELATIVE = 2e-6  # L2, of an output less sensitive than that


class GoldenError(UserError):
  """A directory that holds no golden set."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison, or one fault, which has a `note` and perhaps no numbers."""

  case: str
  output: str
  passed: bool
  shape: tuple[int, ...] | None = None
  max_abs: float | None = None
  relative: float | None = None
  sensitivity: float | None = None
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Case:
  """One case as its function sees it.

  config: the index's, with the whole model's sizes under 'model' where the case runs it. tensors:
  {name: numpy} of in.*, out.* and dbg.*. weights: {official name: Lazy}. folder: the golden set.
  """

  name: str
  kind: str
  config: Mapping[str, Any]
  entries: Mapping[str, Mapping[str, Any]]
  tensors: Mapping[str, np.ndarray]
  weights: Mapping[str, Lazy]
  folder: epath.Path

  def given(self, *path: str) -> np.ndarray:
    """The tensor in.<path>; KeyError naming it if the case has none."""
    return self.tensors['.'.join(('in', *path))]

  def has(self, *path: str) -> bool:
    """Whether there is an in.<path>."""
    return '.'.join(('in', *path)) in self.tensors

  def wants(self, *path: str) -> bool:
    """Whether the case asks for out.<path>."""
    return '.'.join(('out', *path)) in self.entries


Outputs = Mapping[str, Any]  # {'out.<sub>.<x>' or 'dbg.<sub>.<x>': array}, or Rows of its own
Compute = Callable[[Case], Outputs]


def compare(case: str, output: str, ours, theirs: np.ndarray, entry: Mapping[str, Any]) -> Row:
  """The verdict on one output."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  sensitivity = float(entry.get('sens_1ulp') or 0.0)
  if ours.shape != theirs.shape:
    return Row(case, output, False, theirs.shape, note=f'ours has shape {list(ours.shape)}')
  if not np.issubdtype(theirs.dtype, np.floating):
    wrong = int(np.sum(ours.astype(np.int64) != theirs.astype(np.int64)))
    error = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
    relative, note = (None, f'{wrong} of {theirs.size} differ') if wrong else (0.0, '')
    return Row(case, output, not wrong, theirs.shape, error, relative, 0.0, note)
  ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
  if not np.array_equal(np.isnan(ours), np.isnan(theirs)) or np.isinf(ours).any():
    note = 'not finite where the other is, or infinite'
    return Row(case, output, False, theirs.shape, sensitivity=sensitivity, note=note)
  difference, size = np.nan_to_num(ours - theirs), np.linalg.norm(np.nan_to_num(theirs))
  largest, norm = float(np.abs(difference).max(initial=0.0)), float(np.linalg.norm(difference))
  relative = float(norm / size) if size else (0.0 if not norm else math.inf)
  passed = largest <= SENSITIVITIES * sensitivity or relative <= RELATIVE
  note = '' if passed else f'allowed {SENSITIVITIES * sensitivity:.1e}, or {RELATIVE:.0e} relative'
  return Row(case, output, bool(passed), theirs.shape, largest, relative, sensitivity, note)


def report(rows: Iterable[Row]) -> dict:
  """The rows and what they add up to, for JSON."""
  rows = list(rows)
  failed = sum(not row.passed for row in rows)
  return {
    'passed': not failed,
    'failed': failed,
    'cases': len({row.case for row in rows if row.case}),
    'tolerance': {'sensitivities': SENSITIVITIES, 'relative': RELATIVE},
    'rows': [
      {n: None if v in (math.inf, -math.inf) or v != v else v for n, v in vars(row).items()}
      for row in rows
    ],
  }
