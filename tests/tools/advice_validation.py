"""How well `tuna-jax plan --advise` predicts what it has not seen.

  python -m tests.tools.advice_validation [--compile] [--minutes=60]
  python -m tests.tools.advice_validation --measure

Prints each answer of the compiler beside what is predicted without it, and without its whole
family, and what the cell advised without a grid of answers loses against the best of them. With
--compile, first compiles what is missing of SERIES, one step after the other, and adds it to the
answers that come with the project; the same command continues. With --measure, fits the time of
steps to a sweep on this CPU, and compares the throughput of other steps with it, pair by pair.
"""

import collections
import dataclasses
import importlib
import itertools
import json
import sys
import tempfile
import time
import types

import jax
from tuna_jax.configs import common

from tuna_jax import chips, files, sharding
from tuna_jax.tools import advise, bench_train, compiled, encoder_cost, peak, speed, step_cost
from tuna_jax.tools.plan import GIB
from tuna_jax.train import flops

# Rows of the paper's comparison whose steps differ.
ROWS = ('12', '7', '8', '3', '13', '9', '10', '11', '1', '2')
_2B, _LORA = 'stage2:2b', 'stage3:2b-lora'
# (stage:size, topology, what is changed). A refusal takes a tenth of the time of an answer.
SERIES = (
  *((f'compare:{row}', 'v5e:4x4', {}) for row in ROWS),
  # The first and the fourth answer of docs/advice.md 4.
  (
    _2B,
    'v5e:4x4',
    {'model.remat': 'narrow', 'optimizer.accumulate': 64, 'optimizer.host': ('moments',)},
  ),
  ('stage2:2b-video', 'v5p:2x4x4', {'mesh.fsdp': 32}),
  (_2B, 'v5e:4x4', {'rows': 64, 'model.remat': 'narrow', 'optimizer.accumulate': 4}),
  (_2B, 'v6e:4x4', {'rows': 64, 'model.remat': 'dots', 'optimizer.accumulate': 4}),
  (_2B, 'v5e:4x4', {'rows': 64, 'optimizer.accumulate': 4}),
  ('stage2:7b', 'v5e:4x4', {'rows': 16}),
  (_2B, 'v6e:4x4', {'rows': 256}),
  (_2B, 'v5e:4x4', {'rows': 16, 'model.remat': 'none'}),
  ('stage2:2b-video', 'v5p:2x4x4', {'rows': 32}),
  (_2B, 'v5e:4x4', {'rows': 64, 'model.remat': 'attention'}),
  ('stage2:7b', 'v6e:4x4', {'rows': 16}),
  (_2B, 'v5e:4x4', {'rows': 16}),
  (_2B, 'v5e:4x4', {'rows': 64}),
  (_2B, 'v5e:4x4', {'model.remat': 'narrow', 'optimizer.accumulate': 64}),
  (_2B, 'v5e:4x4', {'rows': 16, 'model.remat': 'dots'}),
  (_2B, 'v5e:4x4', {'rows': 128}),
  (_2B, 'v5e:4x4', {'rows': 32, 'model.remat': 'narrow'}),
  (_2B, 'v5e:8x8', {'rows': 512}),
  (_2B, 'v6e:4x4', {'rows': 32, 'model.remat': 'dots'}),
  (_LORA, 'v5e:1x1', {'optimizer.accumulate': 4}),
  (_LORA, 'v5e:1x1', {}),
  ('stage3:7b-lora', 'v5e:2x4', {}),
  (_2B, 'v6e:4x4', {'rows': 64}),
  (_2B, 'v6e:4x4', {'rows': 16, 'model.remat': 'narrow'}),
  (_2B, 'v6e:4x4', {'rows': 16, 'model.remat': 'dots'}),
  (_2B, 'v6e:4x4', {'rows': 128}),
  (_2B, 'v5e:4x4', {'rows': 32, 'model.remat': 'attention'}),
  (_2B, 'v5e:8x8', {'rows': 256}),
  (_LORA, 'v5e:1x1', {'optimizer.accumulate': 2}),
  ('stage2:7b', 'v6e:16x16', {}),
  ('stage2:7b', 'v5e:16x16', {}),
  ('stage2:7b', 'v6e:16x16', {'rows': 2048}),
  ('stage2:7b', 'v6e:16x16', {'rows': 512, 'model.remat': 'dots'}),
)


NO_ENCODER = encoder_cost.Cost(0, 0, 0, 0.0, 0.0, 0.0)


def config_of(named: str, changes: dict):
  """The TrainConfig of STAGE:SIZE with changes."""
  stage, size = named.split(':')
  config = importlib.import_module(f'tuna_jax.configs.{stage}').get_config(size)
  config.update_from_flattened_dict(changes)
  return common.from_config_dict(config)


def series(minutes: float) -> None:
  """Compiles what is missing of SERIES and ships it, until the minutes are over."""
  answers, end = compiled.Answers(), time.monotonic() + 60 * minutes
  for named, topology, changes in SERIES:
    if time.monotonic() > end:
      return print('the same command continues')
    step = compiled.step_of(config_of(named, changes), topology)
    if not answers.find(step):
      answers.compile(step, lambda line: print(line, flush=True))
      ship(answers.all())


def ship(records) -> None:
  """Writes the answers that come with the project."""
  lines = ',\n'.join(json.dumps(record) for record in records)
  compiled.SHIPPED.write_text(f'[\n{lines}\n]\n')


def report() -> None:
  """Each answer without itself, and without its family."""
  records = compiled.Answers(exact=False).all()
  points = [advise.point_of(record) for record in records]
  room = {p: record['limit'] for p, record in zip(points, records)}
  for name, others in (
    ('itself', lambda p: [q for q in points if q is not p]),
    ('its family', lambda p: [q for q in points if q.family != p.family]),
  ):
    said = {p: peak.Model(others(p)).peak(p) for p in points}
    print(f'\nwithout {name}')
    for record, p in zip(records, points):
      verdict = 'refused' if p.refused else ''
      wrong = 'WRONG' if (said[p] <= room[p]) == p.refused else ''
      print(
        f'{compiled.shown(record["step"]):110}{p.peak / GIB:7.2f}{said[p] / GIB:7.2f} GiB'
        f'{said[p] / p.peak - 1:+7.1%} {verdict} {wrong}'
      )
    took = [p for p in points if not p.refused]
    for group, chosen in (('all', points), ('not refused', took)):
      found = peak.judged(said.get, chosen, room.get)
      shown = (f'{k} {v:.3f}' if isinstance(v, float) else f'{k} {v}' for k, v in found.items())
      print(f'{group}: {", ".join(shown)}')


class Unseen:
  """The answers to all but a grid, and of the grid those that were asked for."""

  def __init__(self, records: list[dict], grid: list[dict]):
    self.known, self.grid = [r for r in records if r not in grid], grid

  def all(self) -> list[dict]:
    return self.known

  def compile(self, step: dict, say) -> None:
    self.known = [*self.known, next(r for r in self.grid if r['step'] == step)]


class Blind(advise.Predictor):
  """Advice among the cells of a grid, which begins without any answer to them. The encoder is left
  out of prediction and answers."""

  def __init__(self, records: list[dict], grid: list[dict]):
    step = grid[0]['step']
    answers = Unseen(records, grid)
    super().__init__(compiled.config_of(step), step['topology'], step['slices'], answers)
    self.encoder = NO_ENCODER

  def cells(self):
    for record in self.answers.grid:
      config, mesh = compiled.config_of(record['step']), record['step']['mesh']
      yield self.cell(dict(zip(sharding.AXES, mesh)), config.model.remat, config.optimizer)


def regret() -> None:
  """What the advised cell of a grid loses: a grid is all answers to the same rows of a model on one
  topology."""
  records, grids = compiled.Answers(exact=False).all(), collections.defaultdict(list)
  for record in records:
    step = record['step']
    same = {k: v for k, v in step.items() if k not in ('remat', 'mesh', 'optimizer')}
    groups = {k: v for k, v in step['optimizer'].items() if k in ('groups', 'lora')}
    grids[json.dumps([same, groups])].append(record)
  print('\ngrids: cells, those that fit; advised, compiled for it, its bound, the best, regret')
  for grid in (g for g in grids.values() if sum(not r['reason'] for r in g) > 1):
    blind = Blind(records, grid)
    best = advise.confirmed(blind, 'tokens_per_second', lambda line: None)[1][0]
    step = compiled.step_of(best.config, blind.topology, blind.slices)
    found = bound(next(r for r in grid if r['step'] == step))
    least = min(bound(r) for r in grid if not r['reason'])
    print(
      f'{step["model"]} on {step["topology"]}, {step["rows"]} rows: {len(grid)}, '
      f'{sum(not r["reason"] for r in grid)}; {step["remat"]} in {best.turns}, '
      f'{len(blind.answers.known) + len(grid) - len(records)}, {found:.2f} s, {least:.2f} s, '
      f'{found / least - 1:.1%}'
    )


def bound(record: dict) -> float:
  """Seconds of a step that was compiled: the slowest resource, with what it really sends."""
  step, config = record['step'], compiled.config_of(record['step'])
  laid = jax.sharding.AbstractMesh(tuple(step['mesh']), sharding.AXES)
  chip = chips.CHIPS[step['topology'].partition(':')[0]]
  found = compiled.answer_of(record).collectives
  work = flops.train_flops(config)
  seconds, _ = step_cost.times(
    config, laid, chip, step['slices'], work, found, record['memory'], NO_ENCODER
  )
  return seconds['step']


# Steps that no sweep measures: multiples of the rows, remat and turns.
HELD_OUT = (
  (2, 'dots', 1), (8, 'block', 2), (4, 'attention', 1), (8, 'none', 1), (8, 'narrow', 8),
)  # fmt: skip


def measure(config) -> None:
  """Pairs of held-out steps: whether the one that is predicted to be faster is faster."""
  # The time of this process on its processors: other work on the machine does not count.
  bench_train.time = types.SimpleNamespace(perf_counter=time.process_time)
  with tempfile.TemporaryDirectory() as folder:
    speed.store = lambda: files.path(folder) / 'speed.json'
    fitted = speed.sweep(
      config, bench_train.bench, steps=6, say=lambda line: print(line, flush=True)
    )['fit']
  hinge, rows = speed.Hinge(fitted['floor'], fitted['slopes'], fitted['start']), []
  print(f'\n{"held out":28}{"measured, rows/s":>18}{"predicted":>12}')
  for times, remat, turns in HELD_OUT:
    cell = speed.changed(config, config.rows * times, remat, turns)
    real = cell.rows / bench_train.bench(cell, 6)['seconds']
    said = cell.rows / hinge.seconds(speed.work_of(cell, 1))
    rows.append((real, said))
    print(f'{f"{cell.rows} rows, {remat} in {turns}":28}{real:18.2f}{said:12.2f}', flush=True)
  pairs = list(itertools.combinations(rows, 2))
  right = sum((a[0] > b[0]) == (a[1] > b[1]) for a, b in pairs)
  off = max(abs((a[0] / b[0]) / (a[1] / b[1]) - 1) for a, b in pairs)
  print(f'{right} of {len(pairs)} pairs in the right order; ratios off by {off:.1%} at most')


def main():
  minutes = [float(a.partition('=')[2]) for a in sys.argv if a.startswith('--minutes=')]
  if '--measure' in sys.argv:
    config = config_of('decoder:tiny', {'rows': 4, 'length': 256})
    return measure(dataclasses.replace(config, initial=''))
  if '--compile' in sys.argv:
    series(minutes[0] if minutes else 60)
  report()
  regret()


if __name__ == '__main__':
  main()
