"""How alike the layers of two models are: CKNNA between every two, and the page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tuna_jax import files
from tuna_jax.evals import page
from tuna_jax.evals.cknna import QUANTILE, cknna, normalise, prepare

GROUPS = 10  # of pictures, each left out once for the standard error
FILE = 'align.json'


class How(NamedTuple):
  """topk: neighbours. unbiased: the form of HSIC. quantile: at which absolute values are clamped; 0
  clamps nothing."""

  topk: int = 10
  unbiased: bool = True
  quantile: float = QUANTILE


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], how: How) -> dict[str, Any]:
  """{'a', 'b': names of layers, 'score': [a][b], 'error': its standard errors by leaving groups of
  pictures out, ...}. a, b: name -> [n, d], rows paired. Raises ValueError as `cknna` does.
  """
  ready = [[_prepared(x, how) for x in side.values()] for side in (a, b)]
  count = len(ready[0][0])
  parts = np.array_split(np.random.default_rng(0).permutation(count), GROUPS)
  kept = [np.sort(np.setdiff1d(np.arange(count), part)) for part in parts]
  one = lambda x, y: cknna(x, y, how.topk, unbiased=how.unbiased)
  score = [[one(x, y) for y in ready[1]] for x in ready[0]]
  error = [[_error([one(x[k], y[k]) for k in kept]) for y in ready[1]] for x in ready[0]]
  return {
    'a': list(a), 'b': list(b), 'pictures': count, **how._asdict(), 'score': score, 'error': error
  }  # fmt: skip


def _prepared(features, how: How):
  return prepare(features, how.quantile) if how.quantile else normalise(features)


def _error(without) -> float:
  """The jackknife's standard error of a score, from those without each group."""
  without = np.asarray(without)
  return float(np.sqrt((GROUPS - 1) * np.mean((without - without.mean()) ** 2)))


def write(directory: str, found: Mapping[str, Any], title: str) -> str:
  """Writes align.json and index.html, a heat map and curves over the layers of b; returns the path
  of the page."""
  root = files.path(directory)
  root.mkdir(parents=True, exist_ok=True)
  files.write_json(root / FILE, {'title': title, **found})
  shown = dict(found=found, title=title, curves=curves(found), colour=colour)
  files.write_text(root / 'index.html', page.render('lab/align.html.j2', **shown))
  return str(root / 'index.html')


def curves(found: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
  """name -> (score, standard error) over the layers of b: of the visual tokens of a, where it has
  them, and of whichever layer of a scores highest."""
  score, error = np.array(found['score']), np.array(found['error'])
  best = np.nanargmax(np.where(np.isnan(score), -np.inf, score), axis=0)
  columns = range(score.shape[1])
  lines = {'the best layer of A': [(score[best[j], j], error[best[j], j]) for j in columns]}
  if 'visual' in found['a']:
    i = found['a'].index('visual')
    lines = {'visual tokens of A': [(score[i, j], error[i, j]) for j in columns], **lines}
  return {name: [(float(s), float(e)) for s, e in points] for name, points in lines.items()}


def colour(score: float) -> str:
  """Of a cell of the heat map: from the paper's colour at 0 and below to blue at 1."""
  share = min(max(0.0 if np.isnan(score) else score, 0.0), 1.0)
  return f'color-mix(in srgb, var(--bar) {100 * share:.0f}%, var(--card))'
