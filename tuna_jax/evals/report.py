"""The report of a run: one self-contained page to look at, and report.json to compute with.

`report.json` holds every row of the table as `{"score", "floor", "ceiling", "target", "n"}` under
"scores". The page is the template `report.html.j2`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import pathlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tuna_jax import files
from tuna_jax.evals import curves, page
from tuna_jax.evals.reconstruct import Rebuilt
from tuna_jax.evals.results import Evaluation, Sample, by_answer

SHOWN = 24  # samples per section: the first ones, never chosen
RUNS = ('vae', 'decoder', 'stage1', 'stage2', 'stage3', 'lora')


def write(
  directory: str,
  evaluation: Evaluation,
  runs: str,
  *,
  title: str,
  facts: Mapping[str, Any],
  command: str = '',
  seconds: float = 0.0,
  growing: Sequence[tuple[str, Sequence[Sample]]] = (),
  rebuilt: Rebuilt | None = None,
  refresh: int = 0,
) -> str:
  """Writes `index.html` and `report.json` and returns the path of the page.

  runs: a run, or the directory that holds the parts of RUNS (those that exist) and steps.jsonl,
  where a launch script wrote {"step", "seconds", "command"} lines. facts: what else describes it,
  name -> value. command: what made this report, and how many seconds it took.
  growing: samples of earlier checkpoints, (heading, samples). rebuilt: what the VAE makes of
  pictures of the data. refresh: seconds after which a browser loads the page again; 0 is never.
  """
  root, runs_path = files.path(directory), files.path(runs)
  root.mkdir(parents=True, exist_ok=True)
  parts = [runs_path / name for name in RUNS]
  steps, facts = read_steps(runs_path / 'steps.jsonl'), {**facts, 'versions': versions()}
  if (runs_path / 'metrics.jsonl').exists():
    parts, steps = [runs_path], _time_of(runs_path)
  if command:
    steps.append({'step': 'evaluation', 'seconds': round(seconds, 1), 'command': command})
  history = {part.name: curves.read(part / 'metrics.jsonl') for part in parts}
  text = page.render(
    'evals/report.html.j2',
    title=title,
    tiles=_tiles(evaluation, steps),
    evaluation=evaluation,
    panels=[(name, panel) for name, read in history.items() for panel in curves.panels(read)],
    curves=curves,
    steps=steps,
    facts=facts,
    shown=SHOWN,
    by_answer=by_answer,
    growing=growing,
    rebuilt=rebuilt,
    refresh=refresh,
  )
  files.write_text(root / 'index.html', text)
  numbers = _numbers(evaluation)
  losses = {name: records[-1] for name, records in history.items() if records}
  described = {'title': title, 'steps': steps, 'facts': dict(facts), 'losses': losses}
  files.write_json(root / 'report.json', described | numbers)
  return str(root / 'index.html')


@functools.cache
def versions() -> str:
  """'tuna_jax 0.1.0 (commit 83b96b9), jax 0.10.2'; the commit where this is a checkout of git."""
  checkout = pathlib.Path(__file__).parents[2]
  commit = ''
  if (checkout / '.git').exists() and shutil.which('git'):
    asked = ['git', '-C', str(checkout), 'describe', '--always', '--dirty', '--exclude=*']
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
  own = importlib.metadata.version('tuna_jax') + (f' (commit {commit})' if commit else '')
  return f'tuna_jax {own}, jax {jax.__version__}'


def _time_of(run) -> list[dict[str, Any]]:
  """What the time of a run went to, over all its starts, as steps."""
  path = run / 'goodput.json'
  seconds = files.read_json(path)['seconds'] if path.exists() else {}
  return [{'step': kind, 'seconds': taken} for kind, taken in seconds.items() if taken >= 0.05]


def read_steps(path) -> list[dict[str, Any]]:
  """The lines of steps.jsonl; what was run again counts once, with all its seconds."""
  path = files.path(path)
  steps: dict[str, dict[str, Any]] = {}
  for line in path.read_text().splitlines() if path.exists() else ():
    step = json.loads(line)
    if step['step'] in steps:
      step['seconds'] += steps[step['step']]['seconds']
    steps[step['step']] = step
  return list(steps.values())


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
  sample = lambda s: dict(text=s.text, right=bool(s.right), answer=s.answer, wanted=s.wanted)
  return {
    'scores': {name: row.to_dict() for name, row in evaluation.rows.items()},
    'titles': dict(evaluation.titles),
    'rebuilt': evaluation.rebuilt,
    'by_answer': {
      name: [vars(row) for row in by_answer(r.samples)] for name, r in evaluation.results.items()
    },
    'seconds': dict(evaluation.seconds),
    'samples': {name: [sample(s) for s in r.samples] for name, r in evaluation.results.items()},
  }


def _tiles(evaluation: Evaluation, steps) -> list[tuple[str, str]]:
  """(value, what it is) of the numbers at the top."""
  rows = evaluation.rows.values()
  judged = [row.reached for row in rows if row.target is not None]
  tiles = [(f'{sum(judged)} of {len(judged)}', 'targets reached')] if judged else []
  held = [row for name, row in evaluation.rows.items() if name not in evaluation.training]
  trained = sum(row.n for row in rows) - sum(row.n for row in held)
  which = 'held-out items judged' if trained else 'items judged'
  if held:
    tiles.append((f'{np.mean([row.score for row in held]):.0%}', 'mean score'))
    tiles.append((f'{sum(row.n for row in held):,}', which))
  if trained:
    tiles.append((f'{trained:,}', 'training items judged beside them'))
  if steps:
    tiles.append((page.clock(sum(s['seconds'] for s in steps)), 'in all'))
  return tiles
