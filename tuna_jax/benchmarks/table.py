"""Results of lmms-eval and of the official scorers beside the paper's numbers, as Markdown.

*.json with `results`             lmms-eval          {dimension: [score, ...]}    VBench
*.jsonl of {tag, correct}         GenEval            {type of edit: score}        ImgEdit
*.txt with a DPG-Bench score      DPG-Bench          *_score_EN_*.csv             OneIG-Bench
manifest.json                     of bench-samples   {benchmark: {column: score}} anything else
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from tuna_jax import files
from tuna_jax.benchmarks import scorers
from tuna_jax.benchmarks.paper import MODELS, TABLES
from tuna_jax.config import UserError, nearest

# task of lmms-eval: (benchmark, column, metric, what turns it into the paper's unit)
LMMS = {
  'mme': ('understanding', 'mme_perception', 'mme_perception_score', 1),
  'gqa': ('understanding', 'gqa', 'exact_match', 100),
  'realworldqa': ('understanding', 'realworldqa', 'exact_match', 100),
  'seedbench': ('understanding', 'seed_image', 'seed_image', 100),
  'mmmu_val': ('understanding', 'mmmu_val', 'mmmu_acc', 100),
  'mmstar': ('understanding', 'mmstar', 'average', 100),
  'ai2d': ('understanding', 'ai2d', 'exact_match', 100),
  'chartqa': ('understanding', 'chartqa', 'relaxed_overall', 100),
  'ocrbench': ('understanding', 'ocrbench', 'ocrbench_accuracy', 100),
  'mvbench': ('video', 'mvbench', 'mvbench_accuracy', 1),
  'videomme': ('video', 'videomme', 'videomme_perception_score', 1),
  'longvideobench_val_v': ('video', 'longvideobench_val', 'lvb_acc', 100),
  'lvbench': ('video', 'lvbench', 'lvbench_score', 100),
}
MVBENCH_TASKS = 20  # lmms-eval writes their scores, and none of the group
ONEIG = re.compile(r'(alignment|text|reasoning|style|diversity)_score_EN_.*\.csv')
DIMENSIONS = {*scorers.VBENCH_QUALITY, *scorers.VBENCH_SEMANTIC}
DPG = re.compile(r'^\s*(global|entity|attribute|relation|other|DPG-Bench score): *([\d.]+)', re.M)


@dataclasses.dataclass
class Results:
  """scores: {benchmark: {column: value in the paper's unit}}. notes: how those of a benchmark were
  made.
  """

  scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
  notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  def add(self, benchmark: str, scores: Mapping[str, float], note: str = ''):
    """Later scores replace earlier ones of the same column."""
    self.scores.setdefault(benchmark, {}).update(scores)
    if note and note not in self.notes.setdefault(benchmark, []):
      self.notes[benchmark].append(note)


def collect(paths: Iterable[str]) -> Results:
  """What the files and the files below the folders hold, later names winning: those of lmms-eval
  begin with a date. Raises UserError where nothing is read.
  """
  results = Results()
  for text in paths:
    where = files.path(text)
    if not where.exists():
      raise UserError(f'{text}: no such file or folder')
    found = [where] if not where.is_dir() else sorted(_files(where))
    for path in found:
      _read(path, results)
  if not results.scores:
    raise UserError(f'no results in {", ".join(paths)}: docs/benchmarks.md 5 lists what is read')
  return results


def markdown(results: Results) -> str:
  """A table per benchmark that has results."""
  out = ["# Results beside the paper's\n"]
  for name, table in TABLES.items():
    if name not in results.scores:
      continue
    own = results.scores[name]
    digits = 1 if name in ('understanding', 'video') else 2
    out.append(f'## {table.title}\n')
    out.append(_line(['', 'yours', *MODELS]))
    out.append(_line(['---'] * (2 + len(MODELS))))
    for column in [*table.rows, *(c for c in own if c not in table.rows)]:
      paper = table.rows.get(column, {})
      values = [own.get(column), *(paper.get(model) for model in MODELS)]
      out.append(_line([column, *('-' if v is None else f'{v:.{digits}f}' for v in values)]))
    out += ['', *(f'* {note}' for note in results.notes.get(name, ())), '']
  return '\n'.join(out)


def _line(cells: Sequence[str]) -> str:
  return f'| {" | ".join(cells)} |'


def _files(folder: epath.Path) -> Iterable[epath.Path]:
  """The files below a folder of results; pictures and clips are not opened."""
  for path in folder.iterdir():
    if path.is_dir():
      if path.name not in ('samples', 'partial'):
        yield from _files(path)
    elif path.suffix in ('.json', '.jsonl', '.txt', '.csv'):
      yield path


def _read(path: epath.Path, results: Results):
  """Adds what a file holds, if it is one of those that are read."""
  if path.suffix == '.csv':
    _oneig(path, results)
  elif path.suffix == '.txt':
    scores = {column: float(value) for column, value in DPG.findall(path.read_text())}
    if 'DPG-Bench score' in scores:
      scores['overall'] = scores.pop('DPG-Bench score')
      results.add('dpg', scores, path.name)
  elif path.suffix == '.jsonl':
    with path.open() as file:
      first = json.loads(file.readline() or '{}')
      if isinstance(first, dict) and {'tag', 'correct'} <= first.keys():
        rows = [first, *(json.loads(line) for line in file if line.strip())]
        judged = [(row['tag'], row['correct']) for row in rows]
        results.add('geneval', scorers.geneval(judged), f'{path.name}: {len(rows)} pictures')
  else:
    value = files.read_json(path)
    if isinstance(value, dict) and value:
      _json(path, value, results)


def _json(path: epath.Path, value: Mapping[str, Any], results: Results):
  if 'weights_sha256' in value:
    seeds, made = value['seeds'], value['begun_with']
    rule = 'the same for each prompt' if seeds['same'] else 'distinct for each prompt'
    results.notes.setdefault(value['benchmark'], []).append(
      f'seed {seeds["base"]}, {rule}; tuna_jax {made["tuna_jax"]}, jax {made["jax"]}; weights '
      f'{value["weights_sha256"][:12]}, prompts {value["prompts_sha256"][:12]}; '
      f'{json.dumps(value["settings"])}'
    )
  elif 'results' in value and 'configs' in value:
    _lmms(value, results)
  elif value.keys() <= DIMENSIONS:
    scores = {k: v[0] if isinstance(v, list) else v for k, v in value.items()}
    results.add('vbench', {k: 100 * v for k, v in scores.items()}, path.name)
    found = results.scores['vbench']
    if found.keys() >= DIMENSIONS:
      totals = scorers.vbench({k: v / 100 for k, v in found.items()})
      results.add('vbench', {k: 100 * v for k, v in totals.items()})
  elif value.keys() <= TABLES['imgedit'].rows.keys():
    scores = {k: float(v) for k, v in value.items() if k != 'overall'}
    if len(scores) == 9:
      scores['overall'] = float(np.mean(list(scores.values())))
    results.add('imgedit', scores, path.name)
  elif all(isinstance(v, dict) for v in value.values()) and value.keys() & TABLES.keys():
    for name, scores in value.items():
      if name not in TABLES:
        raise UserError(f'{path}: no benchmark {name!r}{nearest(name, TABLES)}')
      results.add(name, {k: float(v) for k, v in scores.items()}, path.name)


def _lmms(value: Mapping[str, Any], results: Results):
  config = value['config']
  version = str(value.get('lmms_eval_version') or '')
  if not version[:1].isdigit():  # lmms-eval writes a git branch where it runs inside a repository
    version = f'of unrecorded version ({_installed()})'
  limit = '' if config.get('limit') is None else f'; ONLY {config["limit"]:g} items per task'
  note = (
    f'lmms-eval {version}, {value.get("date")}; model_args {config.get("model_args")}; seed '
    f'{config.get("random_seed")}{limit}. The paper used lmms-eval 0.4.0.'
  )
  found = {task: _metric(task, scores) for task, scores in value['results'].items()}
  parts = [v for task, v in found.items() if task.startswith('mvbench_') and v is not None]
  if found.get('mvbench') is None and len(parts) == MVBENCH_TASKS:
    found['mvbench'] = float(np.mean(parts))
  for task, score in found.items():
    if task in LMMS and score is not None:
      benchmark, column, _, unit = LMMS[task]
      results.add(benchmark, {column: unit * score}, note)


def _metric(task: str, scores: Mapping[str, Any]) -> float | None:
  """The number of a task that the table takes; metrics are written as `name,filter`."""
  row = LMMS.get('mvbench' if task.startswith('mvbench_') else task)
  values = [v for k, v in scores.items() if row and k.split(',')[0] == row[2]]
  return values[0] if values and isinstance(values[0], int | float) else None


def _installed() -> str:
  try:
    return f'{importlib.metadata.version("lmms-eval")} is installed here'
  except importlib.metadata.PackageNotFoundError:
    return 'it is not installed here'


def _oneig(path: epath.Path, results: Results):
  match = ONEIG.fullmatch(path.name)
  if not match:
    return
  rows = list(csv.reader(io.StringIO(path.read_text())))[1:]
  if len(rows) != 1:
    raise UserError(
      f'{path}: expected the row of one model, found {", ".join(row[0] for row in rows)}; run the '
      'scorer with one name in model_names'
    )
  results.add('oneig', {match[1]: float(rows[0][-1])}, path.name)
  parts = {k: v for k, v in results.scores['oneig'].items() if k != 'overall'}
  if len(parts) == 5:
    results.add('oneig', {'overall': float(np.mean(list(parts.values())))})
