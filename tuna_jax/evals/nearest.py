"""The judge of drawn pictures on own data: which caption does a picture look like?

Pictures are compared as averages over a grid of COARSE x COARSE. All pictures of one caption ("a
t-shirt") are its group, and kernel ridge regression, learned from true pictures, says to which
group a picture belongs. Where each caption has one picture, that is the nearest one.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

COARSE = 16
WIDTH = 4.0  # of the kernel, in squared distances to a near neighbour
RIDGE = 0.1
NEAR = 5  # neighbours that say how far near is


class Judge:
  """pictures: true ones, uint8 [H, W, 3] or clips [F, H, W, 3]. captions: theirs."""

  def __init__(self, pictures: Sequence[np.ndarray], captions: Sequence[str]):
    self._features, self._of = _coarse(pictures), [group(caption) for caption in captions]
    self.groups = sorted(set(self._of))
    distance = _distances(self._features, self._features)
    near = np.sort(distance, 1)[:, 1 : 1 + NEAR]
    self._scale = WIDTH * max(float(np.median(near)) if near.size else 1.0, 1e-6)
    self._inverse = np.linalg.inv(np.exp(-distance / self._scale) + RIDGE * np.eye(len(distance)))
    self._sizes = collections.Counter(self._of)
    self._wanted = np.array([[g == name for name in self.groups] for g in self._of], np.float64)
    self._weights = self._inverse @ self._wanted

  def __call__(self, found: Sequence[np.ndarray]) -> list[str]:
    """The group that each picture looks like."""
    kernel = np.exp(-_distances(_coarse(found), self._features) / self._scale)
    return [self.groups[k] for k in (kernel @ self._weights).argmax(1)]

  def of_own(self) -> list[str]:
    """The same of its own pictures, each judged by all the others (leave-one-out, in closed form);
    a picture that is alone in its group counts itself."""
    left = self._wanted - self._weights / np.diag(self._inverse)[:, None]
    with_it = self._wanted - RIDGE * self._weights
    alone = np.array([self._sizes[g] == 1 for g in self._of])[:, None]
    return [self.groups[k] for k in np.where(alone, with_it, left).argmax(1)]


def nearest_own(
  found: Sequence[np.ndarray], real: Sequence[np.ndarray], groups: Sequence[str]
) -> list[bool]:
  """Whether each picture is nearer to its own true one than to any other of its group."""
  distance = _distances(_coarse(found), _coarse(real))
  apart = np.array([[a != b for b in groups] for a in groups])
  nearest = np.where(apart, np.inf, distance).argmin(1)
  return [int(k) == i for i, k in enumerate(nearest)]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0)


def group(caption: str) -> str:
  """Captions of the same words are one group."""
  return ' '.join(caption.lower().split())


def _coarse(pictures: Sequence[np.ndarray]) -> np.ndarray:
  """float64 [n, COARSE * COARSE * 3] in [0, 1]; of a clip, of its first and last frame as well."""
  out = []
  for x in pictures:
    frames = x[[0, len(x) // 2, -1]] if x.ndim == 4 else x[None]
    height, width = (max(side // COARSE, 1) * COARSE for side in frames.shape[1:3])
    frames = frames[:, :height, :width].astype(np.float64) / 255
    sides = (COARSE, height // COARSE, COARSE, width // COARSE)
    out.append(frames.reshape(len(frames), *sides, 3).mean((2, 4)).ravel())
  return np.stack(out)
