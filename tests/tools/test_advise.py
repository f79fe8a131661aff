"""`plan --advise`: what is known by arithmetic, what is fitted, and what is printed. The compiler
is stood in for by answers that follow a known rule, or by those that come with the project."""

import dataclasses
import json
import os
import resource
import subprocess
import sys

import jax
import pytest

from tests import shrink
from tuna_jax import batch as batches
from tuna_jax import chips, files, sharding, sizes
from tuna_jax.config import REMATS, UserError
from tuna_jax.models import flops
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.tools import advise, advise_table, compiled, peak, plan, step_cost
from tuna_jax.train import step as train_step
from tuna_jax.train.config import OptimizerConfig, TrainConfig

GIB = 2**30


def run(size='2b', **changes):
  defaults = dict(stage='stage2', steps=1, rows=64, length=4608, visual=4096, images=16)
  return TrainConfig(**{'model': sizes.size(size), **defaults, **changes})


def remat(config, name):
  return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=name))


def test_a_step_is_written_as_json_and_read_back_to_the_same_step():
  groups = (('decoder/.*', 0.0), ('.*', 1.0))
  config = run(optimizer=OptimizerConfig(groups=groups, accumulate=2), rows=32, frozen='bfloat16')
  step = compiled.step_of(config, 'v5e:4x4')
  assert step['model'] == '2b' and step['mesh'] == [1, 16, 1, 1]
  again = compiled.config_of(json.loads(json.dumps(step)))
  assert compiled.step_of(again, 'v5e:4x4') == step
  assert again.model == config.model and again.optimizer.groups == groups
  small = dataclasses.replace(config, model=shrink.model(config.model))
  step = compiled.step_of(small, 'v5e:4x4')
  assert compiled.config_of(json.loads(json.dumps(step))).model == small.model


def test_an_answer_is_found_by_step_versions_and_flags(tmp_path, monkeypatch):
  monkeypatch.setattr(compiled, 'SHIPPED', tmp_path / 'none.json')
  step = compiled.step_of(run(), 'v5e:4x4')
  record = {'step': step, **compiled.versions(), 'peak': 1, 'reason': ''}
  (tmp_path / 'a.json').write_text(json.dumps(record))
  assert compiled.Answers(str(tmp_path)).find(step) == record
  assert compiled.Answers(str(tmp_path)).find(compiled.step_of(run(rows=32), 'v5e:4x4')) is None
  monkeypatch.setenv(compiled.FLAGS, '--xla_other')
  assert compiled.Answers(str(tmp_path), exact=False).find(step) == record
  monkeypatch.setattr(
    compiled, 'versions', lambda: {'jax': '0', 'libtpu': '1', 'flags': '--xla_other'}
  )
  assert compiled.Answers(str(tmp_path)).find(step) is None


def test_layers_keep_less_from_none_to_offload():
  kept = [step_cost.kept(remat(run(), name)) for name in REMATS]
  assert kept == sorted(kept, reverse=True) and kept[-1] == 0
  assert step_cost.kept(remat(run(), 'offload'), 'host') == step_cost.kept(run())
  # docs/tpu.md 5: bytes of a row of 2B. TPUs pad heads of 64 and 72 to 128.
  for name, gib in (('block', 1.1), ('attention', 2.3), ('narrow', 5.4), ('dots', 17.3)):
    assert step_cost.kept(remat(run(), name), lanes=1) / GIB == pytest.approx(gib, abs=0.06)
  assert step_cost.kept(remat(run(), 'narrow')) / GIB == pytest.approx(6.8, abs=0.06)


def test_layers_keep_by_arithmetic_what_jax_keeps():
  config = remat(run(rows=1), 'dots')
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention='chunked'))
  model = config.model
  batch = jax.eval_shape(
    lambda: batches.empty(
      rows=1, length=config.length, visual=config.visual, images=config.images,
      channels=model.token_dim,
    )
  )  # fmt: skip

  def backward(params, batch, key):
    draws = train_step.draw(batch, key, config)
    sums = lambda p: train_step.loss_sums(p, batch, draws, config=config)
    return jax.vjp(lambda p: sum(x.sum() for x in jax.tree.leaves(sums(p))), params)[1]

  kept = jax.eval_shape(backward, tuna_shapes(model), batch, jax.random.key(0))
  layers = {tower.num_layers for tower in (model.vision, model.decoder, model.flow_head)}
  stacked = [a for a in jax.tree.leaves(kept) if a.ndim > 3 and a.shape[0] in layers]
  held = sum(a.size * a.dtype.itemsize for a in stacked)
  # Attention in chunks does not keep its results; kernels do.
  for name, positions in step_cost.positions(config).items():
    tower = getattr(model, name)
    held += 2 * tower.num_layers * tower.num_heads * tower.head_dim * positions
  assert step_cost.kept(config) == pytest.approx(held, rel=0.01)


def points(rule, rows=(1, 2, 4), chip='v5e'):
  laid = jax.sharding.AbstractMesh((1, 16, 1, 1), sharding.AXES)
  memory = dict(parameters=1e9, ema=1e9, optimizer=2e9, batch=1e6, gradients=1e9)
  out = []
  for n in rows:
    for name in ('block', 'narrow'):
      p = peak.point(remat(run(rows=16 * n), name), laid, chip, memory)
      out.append(p._replace(peak=p.state + rule(p), limit=float('inf')))
  return out


def test_peaks_that_follow_the_equation_are_predicted_on_another_chip():
  rule = lambda p: p.kept + 1.1 * p.parts[0] + 0.8 * p.parts[1] + 2 * p.parts[2]
  model = peak.Model(points(rule))
  for p in points(rule, (3, 6), 'v6e'):
    assert model.peak(p) == pytest.approx(p.peak, rel=0.03) and not model.evidence(p)
  found = peak.judged(model.peak, points(rule, (3, 6)), lambda p: 1e10)
  assert found['R2 of peak - state'] > 0.99 and found['wrong verdicts'] == sum(
    p.peak > 1e10 for p in points(rule, (3, 6))
  )


def test_a_step_that_would_nearly_fit_takes_less_scratch_and_one_that_would_not_is_refused():
  model, (new, *_) = peak.Model(points(lambda p: p.kept + sum(p.parts))), points(lambda p: 0, (6,))
  loose = model.peak(new)
  assert loose == pytest.approx(new.known + sum(new.parts), rel=0.01)
  for share, fits in ((1.1, True), (0.99, True), (0.5, False)):
    limit = share * loose
    said = model.peak(new._replace(limit=limit))
    assert (said <= limit) == fits and (said < loose) == (share < 1)


def test_a_refusal_weighs_less_than_a_step_that_fits():
  rule = lambda p: p.kept + sum(p.parts)
  took, far = points(rule), points(lambda p: p.kept + 9 * sum(p.parts), (8,))

  def missed(refused):
    model = peak.Model([*took, *(p._replace(refused=refused) for p in far)])
    assert all(model.peak(p) == p.peak for p in took)  # what was compiled is not predicted
    return max(abs(model.peak(p) / p.peak - 1) for p in points(rule, (3,)))

  assert 0 < missed(True) < missed(False)


def test_what_is_not_drawn_has_no_gradients():
  laid = jax.sharding.AbstractMesh((1, 16, 1, 1), sharding.AXES)
  memory = dict(parameters=1e9, ema=1e9, optimizer=2e9, batch=1e6, gradients=1e9)
  drawn, read = (
    peak.point(dataclasses.replace(run(), flow_coeff=c), laid, 'v5e', memory) for c in (1.0, 0.0)
  )
  flow = flops.layer_weights(run().model, 'flow_head') * run().model.flow_head.num_layers
  whole = sum(size for *_, size in flops.matrices(run().model).values())
  assert drawn.parts[0] == 1e9
  assert read.parts[0] == pytest.approx(1e9 * (1 - flow / whole), rel=0.01)


def test_the_answers_of_the_project_are_predicted_without_themselves():
  points = [advise.point_of(record) for record in json.loads(compiled.SHIPPED.read_text())]
  without = {p: peak.Model([q for q in points if q is not p]).peak(p) for p in points}
  found = peak.judged(without.get, points, lambda p: p.limit)
  assert found['points'] >= 36 and found['wrong verdicts'] == 0
  took = [p for p in points if not p.refused]
  found = peak.judged(without.get, took, lambda p: p.limit)
  assert found['points'] >= 24 and found['worst error'] < 0.05
  assert found['R2 of peak - state'] > 0.99


def test_a_state_in_host_memory_costs_its_way_there_and_back():
  predictor = advise.Predictor(run(), 'v5e:4x4', 1, compiled.Answers(exact=False))
  mesh = {'data': 1, 'fsdp': 16, 'context': 1, 'tensor': 1}
  step = lambda host: predictor.cell(mesh, 'block', OptimizerConfig(host=host)).step
  moments = 2 * 4 * sum(a.size for a in jax.tree.leaves(tuna_shapes(run().model))) / 16
  added = 2 * moments / chips.HOST_LINK
  assert step(('moments',)) - step(()) == pytest.approx(added, rel=0.02)


@pytest.mark.slow
def test_a_fresh_clone_advises_within_seconds_from_the_answers_of_the_project(tmp_path):
  """Of processor time, since other tests may run beside this one."""
  command = ['plan', '--advise', '--offline', '--config=configs/stage2.py:2b', '--topology=v5e-16']
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run(
    [sys.executable, '-m', 'tuna_jax', *command], env={**os.environ, files.CACHE: str(tmp_path)},
    cwd=shrink.ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  said = done.stdout
  assert done.returncode == 0, done.stderr
  assert 'run with  --config.' in said and 'does not fit' in said and 'knee: from' in said
  flags = dict(
    part.removeprefix('--config.').partition('=')[::2]
    for part in said.partition('run with  ')[2].partition('\n')[0].split()
  )
  assert 1024 % int(flags['optimizer.accumulate']) == 0
  assert 'answers of this family' in said and 'by 0 answers' not in said
  assert after.ru_utime - before.ru_utime < 10


class Compiler(compiled.Answers):
  """Answers that follow a rule instead of the compiler's."""

  def __init__(self, where, limit, rule):
    super().__init__(str(where))
    self.records, self.limit, self.rule, self.asked = {}, limit, rule, []

  def compile(self, step, say=print):
    config, laid = (
      compiled.config_of(step),
      jax.sharding.AbstractMesh(tuple(step['mesh']), sharding.AXES),
    )
    memory = step_cost.memory_of(config, laid, plan.step_arguments(config, laid)[0])
    bytes_ = self.rule(peak.point(config, laid, 'v5e', memory))
    record = {
      'step': step, **compiled.versions(), 'date': '2026-11-28', 'memory': memory, 'peak': bytes_,
      'limit': self.limit, 'reason': 'refused' if bytes_ > self.limit else '', 'collectives': None,
    }  # fmt: skip
    self.records[json.dumps(step, sort_keys=True)] = record
    self.asked.append(record)
    return record


@pytest.fixture
def small(monkeypatch):
  """(a decoder that trains on text, so that no encoder takes part; a chip with little memory)."""
  config = dataclasses.replace(shrink.shrink(shrink.real('decoder')), rows=64)
  limit = 6 << 20
  chip = dataclasses.replace(chips.CHIPS['v5e'], hbm=limit / GIB)
  monkeypatch.setitem(chips.CHIPS, 'v5e', chip)
  return config, limit


@pytest.mark.parametrize('more', [0.2, 3])
def test_the_best_step_is_taken_and_the_next_faster_one_refused(small, tmp_path, more):
  """The compiler takes much less, or more, than was predicted; its answers decide."""
  config, limit = small
  answers = Compiler(tmp_path, limit, lambda p: p.known + more * sum(p.parts))
  predictor = advise.Predictor(config, 'v5e:2x2', 1, answers)
  cells, (best, *_) = advise.confirmed(predictor, 'tokens_per_second', print)
  assert best.known and not best.known.refused and best.needed <= limit
  faster = [c for c in cells if c.step < 0.99 * best.step and not c.loss]
  assert not any(c.fits for c in faster)
  assert not faster or min(faster, key=lambda c: c.needed).known
  asked = len(answers.asked)
  advise.confirmed(predictor, 'tokens_per_second', print)
  assert len(answers.asked) == asked  # nothing is compiled twice


def test_a_goal_chooses_the_least_memory_or_the_smallest_slice(small, tmp_path, monkeypatch):
  config, limit = small
  answers = Compiler(tmp_path, limit, lambda p: p.known + sum(p.parts))
  asked = dict(answers=answers, offline=True)
  least = advise_table.advice(config, 'v5e:2x2', 1, 'memory', **asked)
  assert 'model.remat=offload' in least and "optimizer.host=('moments','ema')" in least
  monkeypatch.setattr(advise_table, 'topologies_of', lambda chip: [f'{chip}:1x1', f'{chip}:2x2'])
  monkeypatch.setattr(advise_table, 'PRICES', {'v5e': 1.0})
  few = advise_table.advice(config, 'v5e:2x2', 1, 'chips', **asked)
  assert few.splitlines()[2].startswith('v5e:1x1') and 'topology' in few
  cheap = advise_table.advice(config, 'v5e:2x2', 1, 'price', **asked)
  prices = [float(line.split()[-1].replace(',', '')) for line in cheap.splitlines()[2:4]]
  assert prices == sorted(prices)


def test_measured_times_stand_in_for_published_peaks(small, tmp_path, monkeypatch):
  config, limit = small
  monkeypatch.setenv(files.CACHE, str(tmp_path))
  about = dict(steps=7, stage='stage2', date='2026-11-28', worst=0.02)
  fit = dict(floor=3.0, slopes=[0.0, 0.0, 0.0, 0.0], start=0.0, **about)
  files.write_json(tmp_path / 'speed.json', {'TPU v5 lite': fit})
  answers = Compiler(tmp_path / 'answers', limit, lambda p: p.known + sum(p.parts))
  said = advise_table.advice(config, 'v5e:2x2', 1, answers=answers, offline=True)
  assert 'time: by 7 steps of stage2' in said and '3.00' in said.partition('knee')[0]


def test_what_cannot_be_met_is_answered_with_the_nearest_that_can(small, tmp_path, monkeypatch):
  config, limit = small
  chip = dataclasses.replace(chips.CHIPS['v5e'], hbm=limit / GIB / 6)
  monkeypatch.setitem(chips.CHIPS, 'v5e', chip)
  answers = Compiler(tmp_path, limit // 6, lambda p: p.known + sum(p.parts))
  with pytest.raises(UserError, match='the smallest on which one is: v5e:2x'):
    advise_table.advice(config, 'v5e:1x1', 1, answers=answers, offline=True)
  with pytest.raises(UserError, match='no such slice; nearest are v5e:2x4 and v5e:4x4'):
    advise_table.advice(config, 'v5e:3x4', 1, answers=answers, offline=True)
  with pytest.raises(UserError, match='expected CHIP:DIMS, such as v5e:4x4'):
    advise_table.advice(config, 'v5e:many', 1, answers=answers, offline=True)
  odd = dataclasses.replace(config, rows=17)
  with pytest.raises(UserError, match='no mesh of 16 devices divides them; nearest are 16 and 32'):
    advise_table.advice(odd, 'v5e:4x4', 1, answers=answers, offline=True)
