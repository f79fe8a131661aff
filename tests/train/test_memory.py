"""What holds a step in less memory: it is the same step, or its loss is the one stated."""

import dataclasses
import functools
import math
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tests.train.test_step import BATCH, CONFIG, KEY, start
from tuna_jax import sharding, tree
from tuna_jax.tools import plan
from tuna_jax.train import flops, loop, optimizer, state, step
from tuna_jax.train.config import HOST, OptimizerConfig
from tuna_jax.weights import steps

METHODS = {
  'narrow and none': {'model.remat': 'vision=none,decoder=narrow'},
  'attention': {'model.remat': 'attention'},
  'mu': {'mu_dtype': 'bfloat16'},
  'factored': {'kind': 'adafactor'},
  'ema in bfloat16': {'ema_dtype': 'bfloat16'},
  'ema every third step': {'ema_every': 3},
  'moments in host memory': {'host': ('moments',)},
  'all in host memory': {'host': ('moments', 'ema'), 'ema_every': 2},
}


def changed(config, how):
  how = dict(how)
  remat = how.pop('model.remat', config.model.remat)
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, remat=remat),
    optimizer=dataclasses.replace(config.optimizer, **how),
  )


def taken(config, devices, count=3):
  """The state after `count` steps on so many devices."""
  mesh = sharding.make_mesh(fsdp=devices, devices=jax.devices()[:devices])
  placed = state.shardings(state.abstract_state(config), mesh, config)
  rows = jax.tree.map(lambda a: np.concatenate([a, a]), BATCH)
  with jax.set_mesh(mesh):
    make = functools.partial(state.from_params, config=config)
    now = jax.jit(make, out_shardings=placed)(jax.device_get(start().params))
    batch = jax.device_put(rows, sharding.batch_sharding(mesh))
    program = step.jit_step(config, placed)
    for _ in range(count):
      now, _ = program(now, batch, KEY)
  return now


def kinds_of(found):
  """{part of the state: the kinds of memory that its arrays lie in}."""
  parts = {'moments': found.opt_state, 'ema': found.ema}
  return {
    part: {leaf.sharding.memory_kind for leaf in jax.tree.leaves(leaves) if leaf.ndim}
    for part, leaves in parts.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_eight_devices_take_the_steps_of_one(name):
  config = changed(dataclasses.replace(CONFIG, rows=8), METHODS[name])
  one, eight = taken(config, 1), taken(config, 8)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight)):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=2**-7 if 'bfloat16' in name else 1e-5)
  assert kinds_of(eight) == {
    part: {'pinned_host' if part in config.optimizer.host else 'device'} for part in HOST
  }


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_a_run_that_was_stopped_ends_with_the_same_bits(name, tmp_path):
  config = changed(shrink.stage('stage1', 'tiny'), METHODS[name])
  train = lambda: loop.train(config, str(tmp_path / 'run'), jax.devices()[:2])
  whole = train()
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '3')
  chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, s) for s in (train(), whole)))
  assert steps.committed(tmp_path / 'run')[-1] == 3


@pytest.mark.parametrize(
  'how', [{'host': ('moments', 'ema')}, {'model.remat': 'decoder=attention,flow_head=narrow'}]
)
def test_a_step_that_keeps_less_on_the_devices_is_the_same_step(how):
  plain, other = (taken(changed(CONFIG, h), 1, count=1) for h in ({}, how))
  chex.assert_trees_all_close(*(jax.tree.map(np.asarray, s) for s in (plain, other)), atol=1e-6)
  far = {'pinned_host' if 'host' in how else 'device'}
  assert kinds_of(other) == {'moments': far, 'ema': far}


def test_what_lies_in_host_memory_is_fetched_for_the_update_alone():
  config = changed(CONFIG, METHODS['all in host memory'])
  mesh = sharding.make_mesh(fsdp=1, devices=jax.devices()[:1])
  old = state.abstract_state(config)
  placed = state.shardings(old, mesh, config)
  old = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), old, placed)
  with jax.set_mesh(mesh):
    traced = jax.jit(functools.partial(step.train_step, config=config)).trace(old, BATCH, KEY)
  moves = lambda eqns: sum(eqn.primitive.name == 'device_put' for eqn in eqns)
  choice = next(eqn for eqn in traced.jaxpr.eqns if eqn.primitive.name == 'cond')
  assert moves(traced.jaxpr.eqns) == 0
  # An average and two moments of each leaf, there and back.
  assert max(moves(branch.eqns) for branch in choice.params['branches']) == 6 * len(old.ema)


def products(jaxpr, times=1):
  """FLOPs of the products of a matrix with weights in a jaxpr, those of scores left out."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contracted, _), (batched, _) = eqn.params['dimension_numbers']
      left = eqn.invars[0].aval.shape
      depth = math.prod(left[axis] for axis in contracted)
      total += 0 if batched else 2 * times * depth * math.prod(eqn.outvars[0].aval.shape)
    inner = times * eqn.params['length'] if eqn.primitive.name == 'scan' else times
    for value in eqn.params.values():
      value = getattr(value, 'jaxpr', value)
      total += products(value, inner) if hasattr(value, 'eqns') else 0
  return total


@pytest.mark.parametrize(
  'remat', ['narrow', 'attention', 'vision=dots,decoder=narrow,flow_head=attention']
)
def test_what_the_count_says_runs_again_is_what_the_program_repeats(remat):
  def counts(remat):
    config = changed(shrink.real('stage2'), {'model.remat': remat})
    model = dataclasses.replace(config.model, attention='dense')
    config = dataclasses.replace(config, rows=1, model=model)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    program = functools.partial(step.train_step, config=config)
    found = jax.make_jaxpr(program)(*plan.step_arguments(config, mesh)[0])
    return np.array([products(found.jaxpr), flops.train_flops(config).executed])

  found, counted = counts(remat) - counts('dots')
  assert found == pytest.approx(counted, rel=1e-6) and found > 0


def test_a_first_moment_in_bfloat16_and_a_factored_second_take_the_stated_bytes():
  def held(**how):
    config = changed(shrink.real('stage2'), how)
    leaves = tree.flatten(state.abstract_state(config).opt_state).values()
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

  numbers = held() / 8
  assert held(mu_dtype='bfloat16') == pytest.approx(6 * numbers, rel=1e-3)
  assert held(kind='adafactor', mu_dtype='bfloat16') < 2.5 * numbers


def test_an_average_in_bfloat16_moves_by_steps_below_its_rounding():
  config = OptimizerConfig(ema=0.999, ema_dtype='bfloat16')
  ema = {'a': jnp.ones(4096, jnp.bfloat16)}
  update = jax.jit(lambda ema, n: optimizer.update_ema(ema, aim, n, config, KEY))
  aim = {'a': jnp.full(4096, 1.5)}
  for n in range(10_000, 10_100):
    ema = update(ema, jnp.int32(n))
  expected = 1.5 - 0.5 * 0.999**100
  assert ema['a'].dtype == jnp.bfloat16
  assert np.mean(ema['a'].astype(np.float32)) == pytest.approx(expected, abs=2e-3)


def test_an_average_of_every_third_step_decays_as_three_steps_do():
  config = OptimizerConfig(ema=0.9, ema_every=3)
  values = [{'a': jnp.float32(1)}]
  for n in range(300, 307):
    values.append(optimizer.update_ema(values[-1], {'a': jnp.float32(0)}, jnp.int32(n), config))
  found = [float(v['a']) for v in values[1:]]
  np.testing.assert_allclose(found, [0.9**3] * 3 + [0.9**6] * 3 + [0.9**9], rtol=1e-6)
