"""Which step to run on a topology, predicted: `tuna-jax plan --advise`.

A cell is a mesh, the rows per device at a time, what layers keep (remat) and a variant of the
optimizer's state. All cells that take the same rows per step are predicted, memory by `peak`
and time by `step_cost.times`, and ranked; the best is confirmed by the compiler.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from tuna_jax import sharding
from tuna_jax.chips import CHIPS, HOST_LINK, count_of
from tuna_jax.config import TOWERS, UserError
from tuna_jax.models.flops import matrices
from tuna_jax.tools import compiled, encoder_cost, peak, plan, speed, step_cost
from tuna_jax.tools.hlo import Collective
from tuna_jax.train import flops
from tuna_jax.train.config import MeshConfig, TrainConfig

SAFE = 0.97  # of the memory that the compiler gives a program: what a prediction may use
MOST_CONTEXT = 4
REMATS = (
  'none', 'dots', 'vision=dots,decoder=narrow,flow_head=dots', 'narrow', 'attention', 'block',
  'offload',
)  # fmt: skip
# Of the optimizer's state: fields, and what they cost beside time. Those with a loss are shown and
# not chosen.
VARIANTS = (
  ({}, ''),
  ({'host': ('moments',)}, ''),
  ({'host': ('moments', 'ema')}, ''),
  ({'mu_dtype': 'bfloat16'}, 'first moments are rounded'),
  ({'ema_dtype': 'bfloat16'}, 'noise of 2^-9 in the average'),
  ({'kind': 'adafactor'}, 'another optimizer'),
)


class Cell(NamedTuple):
  """A step that was predicted. peak: bytes of a device without the encoder; known: the compiler's
  own answer; evidence: its answers in the family; loss: of its variant, '' if it is exact."""

  config: TrainConfig
  mesh: dict[str, int]
  peak: float
  known: peak.Point | None
  encoder: int
  limit: int
  evidence: int
  seconds: dict[str, float]
  loss: str

  @property
  def needed(self) -> float:
    """Bytes of a device, the encoder at work."""
    return self.peak + self.encoder

  @property
  def fits(self) -> bool:
    """As the compiler said, or by prediction, with some room for its error."""
    if self.known:
      return not self.known.refused and self.needed <= self.limit
    return self.needed <= SAFE * self.limit

  @property
  def turns(self) -> int:
    """Of a step: micro-batches."""
    return self.config.optimizer.accumulate

  @property
  def step(self) -> float:
    """Seconds of a step."""
    return self.seconds['estimate']

  @property
  def knee(self) -> float:
    """Rows of one device at a time from which links take less time than operations."""
    links = max((s for n, s in self.seconds.items() if n.startswith(('links', 'dcn'))), default=0.0)
    rows = step_cost.micro_rows(self.config, _mesh(self.mesh))
    return rows * links / self.seconds['compute']


class Predictor:
  """Predicts the cells of one topology; raises UserError for one that no answer can be laid out
  on."""

  def __init__(self, config: TrainConfig, topology: str, slices: int, answers: compiled.Answers):
    self.config, self.topology, self.slices, self.answers = config, topology, slices, answers
    self.chip_name = topology.partition(':')[0]
    self.chip = CHIPS[self.chip_name]
    self.devices = slices * count_of(topology)
    self.measured = speed.stored(self.chip.kind)
    self.encoder = encoder_cost.cost(
      config, self.chip, self.devices, math.ceil(self.devices / self.chip.devices / 4)
    )
    self.memory = functools.cache(self._memory)
    self.work = functools.cache(flops.train_flops)
    self.learn()

  def learn(self) -> None:
    """Fits the memory to all answers there are, and finds those that tell what is sent."""
    records = self.answers.all()
    self.model = peak.Model([point_of(record) for record in records])
    self.sent = [
      r
      for r in records
      if r['collectives'] and r['step']['slices'] == self.slices and _same_model(r, self.config)
    ]

  def cells(self) -> Iterator[Cell]:
    """All cells of the configuration's rows, variants that cost accuracy last."""
    tried = 0
    for changes, loss in VARIANTS:
      optimizer = dataclasses.replace(self.config.optimizer, **changes)
      if changes and optimizer == self.config.optimizer:
        continue
      for mesh in self.meshes():
        ways = mesh['data'] * mesh['fsdp']
        if self.config.rows % ways or self.config.length % mesh['context']:
          continue
        for turns in _divisors(self.config.rows // ways):
          for remat in REMATS:
            tried += 1
            yield self.cell(mesh, remat, dataclasses.replace(optimizer, accumulate=turns), loss)
    if not tried:
      raise UserError(
        f'rows={self.config.rows}: no mesh of {self.devices} devices divides them; nearest are '
        f'{_nearest_multiple(self.config.rows, self.devices)}'
      )

  def meshes(self) -> Iterator[dict[str, int]]:
    """Meshes of the devices, of the configuration's tensor axis."""
    tensor = self.config.mesh.tensor
    for context in _divisors(MOST_CONTEXT):
      for fsdp in _divisors(sharding.MAX_FSDP):
        ways = fsdp * context * tensor
        data = self.devices // ways
        if data * ways == self.devices and data % self.slices == 0:
          # A copy of the parameters beside another pays only if there are more devices than that.
          if data == self.slices or fsdp * context >= min(8, self.devices):
            yield {'data': data, 'fsdp': fsdp, 'context': context, 'tensor': tensor}

  def cell(self, mesh: dict[str, int], remat: str, optimizer, loss: str = '') -> Cell:
    """The prediction of one cell."""
    config = dataclasses.replace(
      self.config,
      model=dataclasses.replace(self.config.model, remat=remat),
      optimizer=optimizer,
      mesh=MeshConfig(*mesh.values(), slices=self.slices),
    )
    laid, same = _mesh(mesh), dataclasses.replace(optimizer, accumulate=1)
    memory, (state, _) = self.memory(laid, same)
    rows = step_cost.micro_rows(config, laid) * optimizer.accumulate
    far = state, int(step_cost.kept(config, 'host') * rows)
    point = peak.point(config, laid, self.chip_name, memory)
    seconds, _ = step_cost.times(
      config,
      laid,
      self.chip,
      self.slices,
      self.work(dataclasses.replace(self.config, model=config.model)),
      self.exchanged(config, mesh),
      memory,
      self.encoder,
      far,
    )
    if self.measured:
      own = self.measured[0].seconds(speed.work_of(config, laid.size))
      seconds['estimate'] = max(own, seconds['step']) + 2 * state / HOST_LINK + self.encoder.seconds
    return Cell(
      config,
      mesh,
      self.model.peak(point),
      self.model.known(point),
      self.encoder.resident + self.encoder.temporaries,
      int(self.chip.hbm * plan.GIB),
      self.model.evidence(point),
      seconds,
      loss,
    )

  def _memory(self, laid, optimizer) -> tuple[dict[str, int], tuple[int, int]]:
    """(bytes by class, bytes that cross to the host), whatever turns and remat."""
    config = dataclasses.replace(self.config, optimizer=optimizer)
    state, batch, key = plan.step_arguments(config, laid)[0]
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, remat='block'))
    return (
      step_cost.memory_of(plain, laid, (state, batch, key)),
      step_cost.far_bytes(plain, laid, state),
    )

  def exchanged(self, config: TrainConfig, mesh: dict[str, int]) -> list[Collective]:
    """What devices send each other: as in the nearest step that was compiled, or by arithmetic."""
    shards, turns = mesh['fsdp'] * mesh['context'], config.optimizer.accumulate
    near = self._near(config, mesh)
    if near is None:
      weights = 2 * sum(size for _, _, size in matrices(config.model).values())
      sent = weights * (shards - 1) / shards if shards > 1 else 0
      # Three gathers (forwards, again for remat, backwards), and a sum that is scattered.
      found = [Collective('all-gather', ('fsdp',), 0, int(GATHERS * sent * turns))]
      if mesh['data'] > 1:
        kind = 'all-reduce' if self.slices == 1 else 'dcn-all-reduce'
        found.append(Collective(kind, ('data',), 0, int(4 * weights / shards)))
      return found
    theirs = dict(zip(sharding.AXES, near['step']['mesh']))
    before = near['step']['optimizer'].get('accumulate', 1)
    tokens = config.rows / ways_of(mesh) * config.length
    tokens /= near['step']['rows'] / ways_of(theirs) * near['step']['length']
    found = []
    for kind, axes, count, sent in near['collectives']:
      ways, those = (math.prod(m[a] for a in axes) for m in (mesh, theirs))
      if ways == 1:
        continue
      times = (1 - 1 / ways) / (1 - 1 / those)
      if 'fsdp' in axes:  # parameters, for each turn
        times *= turns / before
      elif 'data' in axes:  # gradients of a shard
        times *= theirs['fsdp'] * theirs['context'] / shards
      else:  # keys, values and columns of activations
        times *= tokens
      found.append(Collective(kind, tuple(axes), count, int(sent * times)))
    return found

  def _near(self, config: TrainConfig, mesh: dict[str, int]) -> dict | None:
    """The compiled step of the same model and axes whose chip, remat and mesh are most alike."""
    axes = [size > 1 for size in mesh.values()]
    return max(
      (record for record in self.sent if [n > 1 for n in record['step']['mesh']] == axes),
      key=lambda record: (
        record['step']['topology'].partition(':')[0] == self.chip_name,
        record['step']['remat'] == config.model.remat,
        record['step']['mesh'] == list(mesh.values()),
      ),
      default=None,
    )


def ranked(cells: list[Cell], goal: str, known: bool = False) -> list[Cell]:
  """Cells that fit, the best first: exact ones; of equals (within 1 %) one with the state on the
  devices, whole rows, and few turns.

  known: whether families without an answer of the compiler come after all others.
  """
  new = lambda c: known and not c.evidence
  if goal == 'memory':
    return sorted((c for c in cells if c.fits), key=lambda c: (new(c), c.loss != '', c.needed))
  fitting = [c for c in cells if c.fits]
  best = min((c.step for c in fitting if not c.loss and not new(c)), default=0.0)
  order = lambda c: (
    new(c), c.loss != '', max(c.step, 1.01 * best), len(c.config.optimizer.host),
    c.mesh['context'], c.turns, c.needed,
  )  # fmt: skip
  return sorted(fitting, key=order)


def confirmed(predictor: Predictor, goal: str, say) -> tuple[list[Cell], list[Cell]]:
  """(cells, ranked ones), once the compiler took the best one and refused the smallest of those
  that would be faster: what it answers is learned, until both hold."""
  for _ in range(MOST_COMPILES):
    cells = list(predictor.cells())
    best = ranked(cells, goal)
    if not best:
      return cells, best
    faster = [c for c in cells if not c.fits and not c.loss and c.step < 0.99 * best[0].step]
    asked = [best[0], *sorted(faster, key=lambda c: c.needed)[: goal != 'memory']]
    unknown = [c for c in asked if c.known is None]
    if not unknown:
      return cells, best
    predictor.answers.compile(
      compiled.step_of(unknown[0].config, predictor.topology, predictor.slices), say
    )
    predictor.learn()
  raise UserError(
    f'{MOST_COMPILES} steps were compiled, and none is the best one: run the same command again, '
    'which knows them now'
  )


MOST_COMPILES = 6
GATHERS = 4.2  # of 2B and 7B: bytes that FSDP sends in a turn, in parameters of bfloat16


def point_of(record: dict) -> peak.Point:
  """The Point of an answer of the compiler."""
  step = record['step']
  laid = jax.sharding.AbstractMesh(tuple(step['mesh']), sharding.AXES)
  chip = step['topology'].partition(':')[0]
  return peak.point(compiled.config_of(step), laid, chip, record['memory'], record)


def _same_model(record: dict, config: TrainConfig) -> bool:
  model = compiled.config_of(record['step']).model
  return all(getattr(model, tower) == getattr(config.model, tower) for tower in TOWERS)


@functools.cache
def _laid(sizes: tuple[int, ...]):
  return jax.sharding.AbstractMesh(sizes, sharding.AXES)


def _mesh(mesh: dict[str, int]):
  return _laid(tuple(mesh.values()))


def ways_of(mesh: dict[str, int]) -> int:
  """Over how many devices rows are spread."""
  return mesh['data'] * mesh['fsdp']


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]


def _nearest_multiple(rows: int, of: int) -> str:
  below = rows // of * of
  return ' and '.join(str(n) for n in (below, below + of) if n)
