"""The advice of `tuna_jax.tools.advise` as text."""

from __future__ import annotations

import dataclasses

from tuna_jax.chips import CHIPS, PRICES, count_of, topologies_of, topology_name
from tuna_jax.config import UserError
from tuna_jax.tools import advise, compiled
from tuna_jax.tools.plan import GIB
from tuna_jax.train.config import TrainConfig

SHOWN = 12  # topologies
MESHES = 4  # other ones


def advice(
  config: TrainConfig,
  topology: str,
  slices: int = 1,
  goal: str = 'tokens_per_second',
  answers: compiled.Answers | None = None,
  offline: bool = False,
  say=print,
) -> str:
  """What to run, why, and what else there is. offline: nothing is compiled.

  Raises UserError that names the smallest topology on which a step is predicted to fit, where none
  does on this one.
  """
  topology, answers = topology_name(topology), answers or compiled.Answers(exact=not offline)
  named = topologies_of(topology.partition(':')[0])
  if topology not in named:
    near = sorted(named, key=lambda name: abs(count_of(name) - count_of(topology)))[:2]
    raise UserError(f'topology {topology}: no such slice; nearest are {" and ".join(near)}')
  found = lambda name: advise.Predictor(config, name, slices, answers)
  lines = []
  if goal in ('chips', 'price'):
    names = named
    if goal == 'price':
      names = [name for chip in PRICES for name in topologies_of(chip)]
    rows = [(name, best) for name in names if (best := _best(found, name))]
    if not rows:
      raise UserError(_unmet(config, topology, slices, ''))
    cost = lambda row: count_of(row[0]) if goal == 'chips' else dollars(row[0], slices, row[1])
    rows.sort(key=cost)
    topology = rows[0][0]
    lines = ['', f'{"topology":14}{"chips":>7}{"s per step":>12}{"$ per 1,000 steps":>20}']
    lines += [
      f'{name:14}{chips_of(name, slices):7}{best.step:12.2f}{dollars(name, slices, best):20,.0f}'
      for name, best in rows[:SHOWN]
    ]
  predictor = found(topology)
  order = 'memory' if goal == 'memory' else 'tokens_per_second'
  if offline:
    cells = list(predictor.cells())
    ranked = advise.ranked(cells, order, known=True)
  else:
    cells, ranked = advise.confirmed(predictor, order, say)
  if not ranked:
    larger = (name for name in named if count_of(name) > count_of(topology))
    nearest = next((name for name in larger if _best(found, name)), '')
    raise UserError(_unmet(config, topology, slices, nearest))
  return '\n'.join([*lines, *_text(config, predictor, cells, ranked[0], goal)])


def dollars(topology: str, slices: int, cell: advise.Cell) -> float:
  """List price of 1,000 steps."""
  price = PRICES[topology.partition(':')[0]]
  return price * chips_of(topology, slices) * cell.step / 3.6


def chips_of(topology: str, slices: int) -> int:
  """How many chips so many slices have."""
  return slices * count_of(topology) // CHIPS[topology.partition(':')[0]].devices


def flags_of(cell: advise.Cell, base: TrainConfig) -> str:
  """The flags that turn `base` into the cell."""
  out = [
    f'mesh.{name}={size}'
    for name, size in cell.mesh.items()
    if getattr(base.mesh, name) != size and not (name == 'data' and base.mesh.data == -1)
  ]
  if cell.config.model.remat != base.model.remat:
    out.append(f'model.remat={cell.config.model.remat}')
  out += [f'optimizer.{change}' for change in _changes(cell.config.optimizer, base.optimizer)]
  return ' '.join(
    f'"--config.{flag}"' if '(' in flag else f'--config.{flag}' for flag in out
  )  # fmt: skip


def _changes(optimizer, base) -> list[str]:
  names = dict.fromkeys(
    ('accumulate', *(name for changes, _ in advise.VARIANTS for name in changes))
  )
  return [
    f'{name}={getattr(optimizer, name)}'.replace(' ', '')
    for name in names
    if getattr(optimizer, name) != getattr(base, name)
  ]


def others(cell: advise.Cell, cells: list[advise.Cell]) -> list[tuple[str, advise.Cell]]:
  """(what is changed, cell) of every single change of remat, state, turns (the next fewer and the
  next more) and mesh (the fastest), each kind from the fastest to the slowest."""
  mine, found = _parts(cell), {name: [] for name in ('remat', 'state', 'turns', 'mesh')}
  for other in cells:
    theirs = _parts(other)
    differ = [name for name in mine if mine[name] != theirs[name]]
    if len(differ) == 1:
      found[differ[0]].append(other)
  for some in found.values():
    some.sort(key=lambda c: (c.step, c.needed))
  turns = sorted(found['turns'], key=lambda c: c.turns)
  fewer, more = ([c for c in turns if (c.turns < cell.turns) == less] for less in (True, False))
  found |= {'turns': fewer[-1:] + more[:1], 'mesh': found['mesh'][:MESHES]}
  return [
    (flags_of(other, cell.config).replace('--config.', '').replace('"', ''), other)
    for some in found.values()
    for other in some
  ]


def _parts(cell: advise.Cell) -> dict:
  state = dataclasses.replace(cell.config.optimizer, accumulate=1)
  remat = cell.config.model.remat
  return {'mesh': cell.mesh, 'remat': remat, 'turns': cell.turns, 'state': state}


def _best(found, name: str) -> advise.Cell | None:
  try:
    return next(iter(advise.ranked(list(found(name).cells()), 'tokens_per_second')), None)
  except UserError:
    return None  # the rows do not divide over it


def _unmet(config, topology, slices, nearest: str) -> str:
  advised = f'the smallest on which one is: {nearest}' if nearest else (
    'no larger one has a name; fewer --rows do not help, since one row per device does not fit: '
    'shard it over more context, or train adapters (docs/advice.md 1)'
  )  # fmt: skip
  return (
    f'{config.rows} rows of {config.length:,} on {slices} x {topology}: no step is predicted to '
    f'fit in memory; {advised}'
  )


def _text(config, predictor, cells, best, goal) -> list[str]:
  tokens = config.rows * config.length / best.step
  said = predictor.answers.find(compiled.step_of(config, predictor.topology, predictor.slices))
  where = f'{predictor.slices} x {predictor.topology}' if predictor.slices > 1 else (
    predictor.topology
  )  # fmt: skip
  rows = config.rows / advise.ways_of(best.mesh)
  at_once = rows / best.config.optimizer.accumulate
  price = dollars(predictor.topology, predictor.slices, best)
  lines = [
    f'{where}, {config.rows} rows of {config.length:,} tokens per step, for {goal}',
    '',
    f'run with  {flags_of(best, config) or "the configuration as it is"}',
    '',
    f'{"mesh (data, fsdp, context, tensor)":36}{",".join(map(str, best.mesh.values())):>14}',
    f'{"rows of a device, at a time":36}{f"{rows:g}, {at_once:g}":>14}',
    f'{"memory with the encoder, GiB":36}{f"{best.needed / GIB:.2f}":>14} of '
    f'{best.limit / GIB:.2f}, by {best.evidence} answers of this family',
    f'{"seconds per step":36}{best.step:14.2f}',
    f'{"tokens per second":36}{tokens:14,.0f}',
    f'{"list price of 1,000 steps, $":36}{price:14,.0f}',
  ]
  record = predictor.answers.find(
    compiled.step_of(best.config, predictor.topology, predictor.slices)
  )
  lines.append(
    f'compiled on {record["date"]} with jax {record["jax"]}, libtpu {record["libtpu"]}'
    if record
    else 'not compiled yet: without --offline the compiler confirms it'
  )
  faster = [c for c in cells if not c.loss and c.step < 0.99 * best.step]
  if faster:
    least = min(faster, key=lambda c: (not c.fits, c.step if c.fits else c.needed, c.needed))
    why = 'would fit by prediction and was not compiled' if least.fits else (
      'refused by the compiler' if least.known else 'does not fit by prediction'
    )  # fmt: skip
    lines.append(
      f'next faster, by {best.step - least.step:.2f} s: {flags_of(least, config)}: '
      f'{least.needed / GIB:.2f} GiB, {why}'
    )
  lines += [
    '',
    f'knee: from {best.knee:.2f} rows of a device at a time, links are faster than operations; '
    + (
      'memory for more rows buys no speed'
      if at_once >= best.knee
      else 'more rows at a time would help'
    ),
    '',
    f'{"one change":58}{"GiB":>8}{"s per step":>12}{"":3}',
  ]
  for what, cell in others(best, cells):
    verdict = 'fits' if cell.fits else 'does not fit'
    verdict += f'; {cell.loss}' if cell.loss and not best.loss else ''
    lines.append(
      f'{what:58}{(cell.needed - best.needed) / GIB:+8.2f}{cell.step - best.step:+12.2f}'
      f'   {verdict}'
    )
  lines += ['', *_assumptions(predictor, best, said)]
  return lines


def _assumptions(predictor, best, said) -> list[str]:
  count = len(predictor.answers.all())
  lines = [
    f'- memory: state and gradients by arithmetic, the rest fitted to {count} answers of the '
    f'compiler; a step may use {advise.SAFE:.0%} of what there is',
    '- time: the slowest of operations with softmax, traffic of HBM, links and the host link, '
    'and then a state in host memory and the encoder; published peaks, no measurement',
    '- prices: list prices of tuna_jax/chips.py, which you should check',
  ]  # fmt: skip
  if predictor.measured:
    about = predictor.measured[1]
    lines[1] = (
      f'- time: by {about["steps"]} steps of {about["stage"]} that were measured on this kind of '
      f'device on {about["date"]}, off by {about["worst"]:.0%} at most; links by published peaks'
    )
  if said:
    fits = 'was refused' if said['reason'] else f'takes {said["peak"] / GIB:.2f} GiB'
    lines.append(f'- the configuration as given {fits} (the step alone)')
  if best.seconds.get('host link'):
    lines.append(
      '- the host link: 15 GB/s per chip in each direction; nothing else runs while the state '
      'crosses it for the update'
    )
  return lines
