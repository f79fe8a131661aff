"""CKNNA: how alike two representations of the same pictures are, by their nearest neighbours.

The metric of "The Platonic Representation Hypothesis" (arXiv 2405.07987) in numpy; features are
[n, d], and their rows are paired.
"""

from __future__ import annotations

import numpy as np

QUANTILE = 0.95


def prepare(features: np.ndarray, quantile: float = QUANTILE) -> np.ndarray:
  """`features` clamped at the exact quantile of their absolute values, rows then of length 1."""
  flat = np.sort(np.abs(features).ravel())
  limit = flat[int(quantile * len(flat))]
  return normalise(np.clip(features, -limit, limit))


def normalise(features: np.ndarray) -> np.ndarray:
  """Rows of length 1."""
  return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def cknna(a: np.ndarray, b: np.ndarray, topk: int, *, unbiased: bool = True) -> float:
  """The score of a [n, d] and b [n, e]; `topk` = n - 1 is linear CKA. It is NaN where the score of
  one with itself is negative.

  Raises ValueError unless 2 <= topk < n.
  """
  count = len(a)
  if not 2 <= topk < count or len(b) != count:
    raise ValueError(f'cknna: topk={topk} of {count} and {len(b)} rows: expected 2 to {count - 1}')
  kernels = [np.asarray(x, np.float64) @ np.asarray(x, np.float64).T for x in (a, b)]
  masks = [_nearest(kernel, topk, unbiased) for kernel in kernels]
  hsic = _hsic_unbiased if unbiased else _hsic_biased
  both = masks[0] * masks[1]
  cross = hsic(both * kernels[0], both * kernels[1])
  own = [hsic(mask * kernel, mask * kernel) for mask, kernel in zip(masks, kernels)]
  with np.errstate(invalid='ignore'):
    return float(cross / (np.sqrt(own[0] * own[1]) + 1e-6))


def _nearest(kernel, topk: int, unbiased: bool) -> np.ndarray:
  """float[n, n]: 1 at the `topk` largest of each row; if unbiased, without the row itself."""
  if unbiased:
    kernel = kernel.copy()
    np.fill_diagonal(kernel, -np.inf)
  mask = np.zeros_like(kernel)
  np.put_along_axis(mask, np.argsort(-kernel, axis=1, kind='stable')[:, :topk], 1.0, axis=1)
  return mask


def _hsic_unbiased(k, l) -> float:  # noqa: E741 - the field's letters
  m = len(k)
  k, l = k * (1 - np.eye(m)), l * (1 - np.eye(m))  # noqa: E741
  value = np.sum(k * l.T) + k.sum() * l.sum() / ((m - 1) * (m - 2))
  return (value - 2 * np.sum(k @ l) / (m - 2)) / (m * (m - 3))


def _hsic_biased(k, l) -> float:  # noqa: E741
  centre = np.eye(len(k)) - 1 / len(k)
  return np.trace(k @ centre @ l @ centre)
