"""A comparison from the first run to the page: rows are trained and scored one after the other, and
`compare.json` and `index.html` are written anew after each.

`compare.json` holds every verdict of every run, so that all else follows from it. Runs that it has
are not trained again; a file that was begun with another recipe is an error.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tuna_jax import files, tree
from tuna_jax.config import TunaConfig, UserError
from tuna_jax.configs import compare
from tuna_jax.evals import page
from tuna_jax.lab import balance, scores, verdicts
from tuna_jax.lab.recipe import Lab, Recipe
from tuna_jax.models.shapes import tuna_shapes

FILE = 'compare.json'


def run(
  rows: Sequence[str],
  seeds: int,
  out: str,
  recipe: Recipe,
  n: int,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Trains and scores `rows` with seeds 0 to `seeds` - 1 into `out`; returns compare.json.

  n: items of each task. All rows come with one seed before the first comes with the next, so that
  what is stopped compares as many rows as it can. Raises UserError for an unknown row, or where
  `out` was begun otherwise; Stopped where it was asked to stop: the same command continues.
  """
  for name in rows:
    compare.row(name)
  root, lab = files.path(out), Lab(out, recipe)
  root.mkdir(parents=True, exist_ok=True)
  about = {'size': 'tiny', 'n': n, 'recipe': recipe.to_dict()}
  found = {**about, 'runs': [], 'alignment': []}
  if (root / FILE).exists():
    found = files.read_json(root / FILE)
    if differ := sorted(k for k in about if found.get(k) != about[k]):
      told = ', '.join(f'{k} {found.get(k)!r}, now {about[k]!r}' for k in differ)
      raise UserError(f'{root / FILE}: it was begun with {told}; take another --out')
  for seed, name in itertools.product(range(seeds), rows):
    if any((r['row'], r['seed']) == (name, seed) for r in found['runs']):
      continue
    began = time.perf_counter()
    trained = lab.row(name, seed)
    scored = scores.score(trained, compare.ROWS[name].data, n)
    found['runs'].append(
      {
        'row': name,
        'seed': seed,
        'tokens': lab.tokens(name),
        'seconds': round(time.perf_counter() - began),
        'scores': scored,
      }
    )
    means = ', '.join(f'{t} {100 * np.mean(s["items"]):.1f}%' for t, s in scored.items())
    say(f'row {name}, seed {seed}: {means}')
    _align(found, lab, seed)
    write(root, found)
  return write(root, found)


def _align(found: dict[str, Any], lab: Lab, seed: int) -> None:
  """Measures the alignment of a seed, once all rows that it needs are trained here."""
  runs = {name: lab.last(name, seed) for name in balance.ROWS}
  have = {r['row'] for r in found['runs'] if r['seed'] == seed}
  if have >= runs.keys() and all(files.path(run).exists() for run in runs.values()):
    if not any(m['seed'] == seed for m in found['alignment']):
      found['alignment'].append({'seed': seed, **balance.measure(runs)})


def write(root, found: dict[str, Any]) -> dict[str, Any]:
  """Writes compare.json, with what follows from its runs, and the page; returns the former."""
  found = {**found, **concluded(found)}
  files.write_json(root / FILE, found)
  files.write_text(root / 'index.html', page.render('lab/compare.html.j2', **shown(found)))
  return found


def concluded(found: dict[str, Any]) -> dict[str, Any]:
  """{'table', 'claims'}: per row and task the mean with its interval, floor and ceiling, and a
  verdict on each comparison of `verdicts.CLAIMS`."""
  rows: dict[str, dict[int, dict]] = {}
  for r in found['runs']:
    rows.setdefault(r['row'], {})[r['seed']] = r['scores']
  table = {}
  for name in sorted(rows, key=list(compare.ROWS).index):
    own, runs = rows[name], sorted(rows[name])
    table[name] = {
      task: {
        **verdicts.interval(np.array([own[s][task]['items'] for s in runs]))._asdict(),
        'by_seed': [round(float(np.mean(own[s][task]['items'])), 4) for s in runs],
        'floor': float(np.mean([own[s][task]['floor'] for s in runs])),
        'ceiling': float(np.mean([own[s][task]['ceiling'] for s in runs])),
      }
      for task in own[runs[0]]
    }
  items = {
    name: {s: {t: v['items'] for t, v in own[s].items()} for s in own} for name, own in rows.items()
  }
  claims = [verdicts.judge(claim, items) for claim in verdicts.CLAIMS]
  if found['alignment']:
    claims += balance.judge(found['alignment'])
  return {'table': table, 'claims': claims}


def parameters(name: str, size: str = 'tiny') -> int:
  """How many numbers the model of a row has, by shapes alone."""
  return _count(compare.model(name, size))


@functools.cache
def _count(model: TunaConfig) -> int:
  return sum(leaf.size for leaf in tree.flatten(tuna_shapes(model)).values())


def _told(better: str, worse: str, what: str) -> str:
  """What tells two rows apart, and what the paper has for them."""
  rows = compare.ROWS[better], compare.ROWS[worse]
  kinds = ((row.title, f'Wan {row.vae}', row.encoder, row.data) for row in rows)
  differ = [f'{a} over {b}' for a, b in zip(*kinds) if a != b]
  paper = list(zip(compare.METRICS, *(row.paper for row in rows)))
  paper = paper[4:] if what == verdicts.DRAW else paper[:4]
  said = [f'{name} {a:g} over {b:g}' for name, a, b in paper if a is not None and b is not None]
  return ', '.join(differ) + (f'. In the paper: {", ".join(said)}' if said else '')


def shown(found: dict[str, Any]) -> dict[str, Any]:
  """What the page shows of compare.json."""
  groups: dict[str, list] = {}
  for claim in found['claims']:
    told = _told(*claim['compared']) if 'compared' in claim else ''
    groups.setdefault(claim['group'], []).append({**claim, 'told': told})
  claims = [(g, verdicts.together([c['verdict'] for c in own]), own) for g, own in groups.items()]
  claims.sort(key=lambda claim: claim[1] == verdicts.MISSING)  # stable: those come last
  ends = [
    abs(c['difference'][end] or 0)
    for c in found['claims']
    if c['difference']
    for end in ('low', 'high')
  ]
  return {
    'found': found,
    'claims': claims,
    'scale': max([0.1, *ends]),
    'rows': compare.ROWS,
    'metrics': compare.METRICS,
    'tasks': [*scores.READ, *scores.DRAWN],
    'parameters': {name: parameters(name) for name in found['table']},
    'seconds': sum(r['seconds'] for r in found['runs']),
    'jax': jax.__version__,
  }
