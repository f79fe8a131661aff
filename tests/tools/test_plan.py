"""What `plan` says without a compiler; the budgets that need one are in test_budgets.py."""

import dataclasses

import jax
import pytest

from tests import shrink
from tuna_jax import chips, sharding, sizes
from tuna_jax.tools import compiled, plan, plan_table
from tuna_jax.train import flops
from tuna_jax.train.config import OptimizerConfig, TrainConfig


def run(size='7b', **changes):
  defaults = {'stage': 'stage2', 'steps': 1, 'rows': 1, 'length': 2048, 'visual': 1024, 'images': 1}
  return TrainConfig(**{'model': sizes.size(size), **defaults, **changes})


@pytest.mark.parametrize(
  'given,wanted',
  [
    ('v6e:16x16', 'v6e:16x16'),
    ('v6e-256', 'v6e:16x16'),
    ('v5litepod-16', 'v5e:4x4'),
    ('v5p-256', 'v5p:4x4x8'),
    ('tpu7x-8', 'tpu7x:2x2x1'),
  ],
)
def test_familiar_names_become_dimensions(given, wanted):
  assert chips.topology_name(given) == wanted


@pytest.mark.parametrize(
  'name,said', [('v6f:4x4', "nearest is 'v6e'"), ('v5p-7', 'v5p-8'), ('pod', 'CHIP:DIMS')]
)
def test_an_unknown_topology_is_answered_with_known_ones(name, said):
  with pytest.raises(ValueError, match=said):
    chips.topology_name(name)


@pytest.mark.parametrize('size,useful,executed', [('2b', 51e12, 65e12), ('7b', 145e12, 183e12)])
def test_flops_of_one_row_are_those_counted_by_hand(size, useful, executed):
  work = flops.train_flops(run(size))
  assert work.useful == pytest.approx(useful, rel=0.06)
  assert work.executed == pytest.approx(executed, rel=0.04)


def test_frozen_weights_cost_no_gradient_of_their_own():
  frozen = OptimizerConfig(groups=(('decoder/.*', 0.0), ('.*', 1.0)))
  every, some = flops.train_flops(run()), flops.train_flops(run(optimizer=frozen))
  kernels = every.by_part['decoder'] - some.by_part['decoder']
  assert 0.25 < kernels / every.by_part['decoder'] < 1 / 3  # attention has no weights
  assert some.by_part['flow_head'] == every.by_part['flow_head']


def test_remat_adds_work_but_nothing_useful():
  none = run(model=dataclasses.replace(sizes.TUNA_7B, remat='none'))
  assert flops.train_flops(none).useful == flops.train_flops(run()).useful
  assert flops.train_flops(none).executed < flops.train_flops(run()).executed


def test_accumulation_leaves_the_work_of_a_step():
  twice = run(rows=2, optimizer=OptimizerConfig(accumulate=2))
  assert flops.train_flops(twice) == flops.train_flops(run(rows=2))


def test_refusals_give_the_bytes_needed_and_available():
  message = (
    'Ran out of memory in memory space hbm. Used 33.10G of 15.75G hbm. '
    'Exceeded hbm capacity by 17.35G.'
  )
  assert plan.sizes_in(message) == (int(33.10 * 2**30), int(15.75 * 2**30))


def test_advice_names_fields_of_the_config():
  mesh = sharding.make_mesh(data=4, fsdp=2)
  memory = {'parameters': 2**30, 'ema': 2**30, 'gradients': 2**30, 'optimizer': 2**31}
  said = '\n'.join(plan.advice(run(rows=64), mesh, memory, 30 * 2**30, 16 * 2**30))
  for field in ('optimizer.accumulate=4', 'rows=16', 'model.remat=offload', 'mesh.fsdp=4'):
    assert f'--config.{field}' in said
  assert 'larger topology' not in said
  assert 'accumulate' not in '\n'.join(plan.advice(run(rows=8), mesh, memory, None, 16 * 2**30))
  assert plan.advice(run(rows=64), mesh, memory, None, 5 * 2**30)[0].startswith('a larger topology')


def test_rows_must_divide_over_the_mesh():
  mesh = sharding.make_mesh(data=4, fsdp=2)
  with pytest.raises(ValueError, match='rows=12 does not divide over data x fsdp x accumulate = 8'):
    plan.step_arguments(run('tiny', rows=12), mesh)


def test_arguments_are_the_state_batch_and_key_of_the_loop():
  mesh = sharding.make_mesh()
  (state, batch, key), placed = plan.step_arguments(run('tiny', rows=8), mesh)
  assert jax.tree.structure(state) == jax.tree.structure(placed)
  assert batch.latents.shape == (8, 1024, 16) and jax.dtypes.issubdtype(
    key.dtype, jax.dtypes.prng_key
  )


def test_a_plan_is_made_of_an_answer_that_is_kept():
  config = shrink.real('stage2', '2b')
  config = dataclasses.replace(
    config, rows=16, encoder=dataclasses.replace(config.encoder, online=False)
  )
  record = compiled.Answers('/nowhere', exact=False).find(compiled.step_of(config, 'v5e:4x4'))
  result = plan.plan(config, 'v5e:4x4', answer=compiled.answer_of(record))
  assert result.fits and result.mesh['fsdp'] == 16 and result.hosts == record['hosts']
  assert sum(result.memory.values()) == result.peak_bytes == record['peak']
  assert 0 < result.roofline['links fsdp'] < result.roofline['step'] <= result.roofline['estimate']
  said = plan_table.table(result)
  assert 'FITS' in said and 'all-gather' in said
  refused = compiled.answer_of({**record, 'reason': 'too much', 'peak': 20 << 30})
  result = plan.plan(config, 'v5e:4x4', answer=refused)
  assert not result.fits and 'offload' in '\n'.join(result.advice)
  assert 'DOES NOT FIT: too much' in plan_table.table(result)
