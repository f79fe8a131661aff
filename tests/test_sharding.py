"""The mesh, the path table and the anchors; eight simulated devices compute what one computes."""

import dataclasses
import functools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from tests import shrink
from tests.models import small
from tuna_jax import sharding, sizes, tree
from tuna_jax.models import attention
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.tools import plan
from tuna_jax.train import state as state_lib
from tuna_jax.train.step import jit_step, train_step
from tuna_jax.weights import lora, storage

EQUAL = 1e-5  # relative to the largest entry: float32 sums in another order


def abstract(size):
  """Parameters of a named size as ShapeDtypeStructs."""
  return tuna_shapes(sizes.size(size))


def pod(*sizes):
  return AbstractMesh(sizes, sharding.AXES)


# --- mesh


def test_one_axis_may_take_what_is_left():
  assert dict(sharding.make_mesh(data=2, fsdp=-1, tensor=2).shape) == {
    'data': 2,
    'fsdp': 2,
    'context': 1,
    'tensor': 2,
  }


@pytest.mark.parametrize(
  'sizes', [{'fsdp': 3}, {'fsdp': 4}, {'fsdp': -1, 'tensor': 3}, {'fsdp': 16}]
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes):
  with pytest.raises(ValueError, match='multiply to .* there are 8 devices'):
    sharding.make_mesh(**sizes)


def test_open_rows_go_to_fsdp_up_to_what_the_widths_divide_by(monkeypatch):
  sizes = {'data': -1, 'fsdp': -1}
  assert sharding.make_mesh(**sizes).shape['fsdp'] == 8
  assert sharding.make_mesh(**sizes, num_slices=2).shape['fsdp'] == 4
  monkeypatch.setattr(sharding, 'MAX_FSDP', 4)
  mesh = sharding.make_mesh(**sizes)
  assert (mesh.shape['data'], mesh.shape['fsdp']) == (2, 4)


@pytest.mark.parametrize('sizes', [{'fsdp': -1, 'tensor': -1}, {'fsdp': 0}])
def test_sizes_are_positive_and_at_most_one_is_open(sizes):
  with pytest.raises(ValueError, match='at most one is -1'):
    sharding.make_mesh(**sizes)


def test_slices_lie_along_data():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2, num_slices=2)
  ids = np.vectorize(lambda device: device.id)(mesh.devices)
  assert set(ids[0].flat) == {0, 1, 2, 3} and set(ids[1].flat) == {4, 5, 6, 7}
  with pytest.raises(ValueError, match='slices are joined along data'):
    sharding.make_mesh(fsdp=8, num_slices=2)


# --- the path table


@pytest.mark.parametrize('size', ['tiny', '2b', '7b', 'showo2-7b', 'tuna-2-7b'])
def test_one_row_and_only_one_covers_each_parameter(size):
  for name in tree.names(abstract(size)):
    rows = [pattern for pattern, _ in sharding.RULES if re.fullmatch(pattern, name)]
    assert len(rows) == 1, f'{name}: {rows}'


def test_every_row_selects_something():
  every = {**abstract('tuna-2-7b'), **abstract('showo2-7b')}
  every = storage.held(lora.extend(every, (('decoder/.*', 8, 8.0),)), 'int8')
  every['v_row/decoder/embed/embedding'] = jnp.zeros(1)  # of the moments of Adafactor
  tree.match_tree(every, sharding.RULES)  # raises on dead rows


@pytest.mark.parametrize(
  'size,mesh',
  [
    ('2b', (1, 16, 1, 1)),
    ('2b', (1, 16, 4, 1)),
    ('showo2-1.5b', (1, 16, 1, 1)),
    ('showo2-7b', (1, 32, 4, 1)),
    ('tuna-2-7b', (1, 32, 1, 4)),
    ('7b', (2, 128, 1, 1)),
    ('7b', (1, 32, 4, 1)),
    ('7b', (1, 32, 1, 4)),
    ('tiny', (2, 2, 1, 2)),
    ('tiny', (1, 4, 2, 1)),
    ('tiny', (1, 8, 1, 1)),
  ],
)
def test_a_device_holds_its_share_of_parameters_moments_and_average(size, mesh):
  params = abstract(size)
  moments = jax.eval_shape(optax.adamw(1e-3).init, params)
  state = {'params': params, 'ema': params, 'opt_state': moments}
  placed = sharding.shardings(state, pod(*mesh))
  leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(placed)))
  held = sum(math.prod(s.shard_shape(x.shape)) for x, s in leaves)
  ideal = sum(x.size for x, _ in leaves) / math.prod(mesh[1:])
  assert held < 1.1 * ideal


def test_moments_and_averages_follow_their_parameters():
  params, mesh = abstract('tiny'), pod(1, 4, 1, 2)
  chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  own = tree.flatten(sharding.shardings(params, mesh))
  moments = tree.flatten(sharding.shardings(jax.eval_shape(chain.init, params), mesh))
  followed = [n for n in moments if n.endswith('decoder/layers/attn/q_proj/kernel')]
  assert len(followed) == 2
  assert all(moments[n] == own['decoder/layers/attn/q_proj/kernel'] for n in followed)
  assert own['decoder/layers/attn/q_proj/kernel'].shard_shape((5, 192, 192)) == (5, 48, 96)


def test_key_rows_drop_the_tensor_axis_where_it_does_not_divide_and_others_do_not():
  mesh = pod(1, 1, 1, 8)
  leaf = lambda columns: jax.ShapeDtypeStruct((192, columns), jnp.float32)
  place = lambda **kernels: sharding.shardings(
    {'decoder/layers/attn': {n: {'kernel': k} for n, k in kernels.items()}}, mesh
  )
  assert place(k_proj=leaf(28))['decoder/layers/attn']['k_proj']['kernel'].spec[-1] is None
  with pytest.raises(ValueError, match=r'decoder/layers/attn/q_proj/kernel: .* 28 entries'):
    place(q_proj=leaf(28))


def test_a_parameter_without_a_row_is_named_with_the_nearest():
  with pytest.raises(
    ValueError, match=r'decoder/layers/attn/z_proj/kernel: no rule covers it; nearest'
  ):
    sharding.shardings(
      {'decoder/layers/attn/z_proj/kernel': jax.ShapeDtypeStruct((8, 8), jnp.float32)},
      pod(1, 8, 1, 1),
    )


# --- anchors


def test_an_anchor_constrains_on_cpu_and_leaves_out_what_does_not_divide():
  x = jnp.zeros((8, 6, 4))
  assert sharding.anchor(x, 'hidden') is x  # no mesh
  with jax.set_mesh(sharding.make_mesh(fsdp=2, context=4)):
    out = jax.jit(lambda x: sharding.anchor(x, 'hidden'))(x)
  assert out.sharding.shard_shape(x.shape) == (4, 6, 4)


def test_what_is_looked_up_is_laid_out_in_steps_and_ends_like_hidden():
  x = jnp.zeros((8, 6, 4))
  with jax.set_mesh(sharding.make_mesh(fsdp=2, context=2, tensor=2)):
    anchored = jax.jit(sharding.anchor, static_argnums=1)
    lowered, wanted = (anchored.lower(x, kind) for kind in ('looked_up', 'hidden'))
  assert [a.as_text().count('sharding_constraint') for a in (lowered, wanted)] == [3, 1]
  assert lowered.compile().output_shardings == wanted.compile().output_shardings


def test_an_anchor_takes_one_position_without_its_axis():
  mesh = sharding.make_mesh(fsdp=2, context=2, tensor=2)
  assert sharding.activation_spec('logits', (4, 8), mesh) == P(('data', 'fsdp'), 'tensor')


def test_an_unknown_anchor_is_named_with_the_nearest():
  with pytest.raises(ValueError, match="no kind 'hiden'; nearest is 'hidden'"):
    sharding.anchor(jnp.zeros(3), 'hiden')


# --- eight devices equal one


@functools.cache
def stage(name):
  """A stage as it is, two narrow layers per tower.

  The first rate is not 0, and Adam's eps is large so that rounding is not divided by rounding.
  Stage 1 accumulates.
  """
  c = shrink.shrink(shrink.real(name))
  optimizer = dataclasses.replace(
    c.optimizer, lr=0.1, warmup=0, eps=1e-3, accumulate=2 if name == 'stage1' else 1
  )
  visual, images = (small.CELLS, small.IMAGES) if c.visual else (0, 0)
  return dataclasses.replace(
    c, rows=8, length=small.LENGTH, visual=visual, images=images, steps=2, optimizer=optimizer
  )


def inputs(c):
  """Parameters and a batch. Layers that start at zero would hide an error in what comes before
  them.
  """
  examples = (
    (('edit', 'vqa'), ('t2i', 'text'), ('t2v',), ('vqa', 't2i')) if c.visual else (('text',) * 3,)
  )
  rows = [examples[r % len(examples)] for r in range(c.rows)]
  batch = small.batch(*rows, length=c.length, cells=c.visual, images=c.images)
  return shrink.randomise(tuna_shapes(c.model), 0), batch


@functools.cache
def alone(name):
  """(state, metrics) of one device after one step."""
  c = stage(name)
  params, batch = inputs(c)
  state = jax.jit(partial(state_lib.from_params, config=c))(params)
  return jax.device_get(jax.jit(partial(train_step, config=c))(state, batch, jax.random.key(1)))


# data x fsdp x context x tensor. Every stage, every axis; the plain suite compiles one pair of
# programs.
@pytest.mark.parametrize(
  'name,sizes',
  [
    ('stage2', (2, 2, 1, 2)),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('stage2', (8, 1, 1, 1)),
        ('stage2', (1, 4, 2, 1)),
        ('stage2', (1, 2, 4, 1)),
        ('stage1', (1, 2, 2, 2)),
        ('stage1', (1, 4, 2, 1)),
        ('stage3', (2, 2, 1, 2)),
        ('stage3', (1, 4, 2, 1)),
        ('decoder', (2, 2, 1, 2)),
        ('decoder', (1, 4, 2, 1)),
      )
    ),
  ],
)
def test_eight_devices_take_the_step_of_one(name, sizes):
  c, mesh = stage(name), sharding.make_mesh(*sizes)
  params, batch = inputs(c)
  want, want_metrics = alone(name)
  state = jax.eval_shape(partial(state_lib.from_params, config=c), params)
  placed = sharding.shardings(state, mesh)
  with jax.set_mesh(mesh):
    state = jax.jit(partial(state_lib.from_params, config=c), out_shardings=placed)(params)
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    got, metrics = jit_step(c, placed)(state, batch, jax.random.key(1))
  np.testing.assert_allclose(metrics['loss'], want_metrics['loss'], rtol=EQUAL)
  np.testing.assert_allclose(metrics['grad_norm'], want_metrics['grad_norm'], rtol=EQUAL)
  want = tree.flatten(want)
  for leaf_name, leaf in tree.flatten(got).items():
    if leaf_name.startswith('opt_state') and leaf_name.endswith('k_proj/bias'):
      continue  # adding one vector to every key changes no softmax: its gradient is rounding
    np.testing.assert_allclose(
      leaf, want[leaf_name], atol=EQUAL * np.abs(want[leaf_name]).max(), rtol=0, err_msg=leaf_name
    )


def test_the_same_step_lowers_for_several_gpus(monkeypatch):
  monkeypatch.setattr(attention, 'BLOCKWISE_MIN_QUERIES', 1)  # the rows of tests are short
  c = stage('stage2')
  c = dataclasses.replace(
    c, model=dataclasses.replace(c.model, attention='flash', dtype='bfloat16')
  )
  mesh = shrink.gpus((2, 2, 1, 2))
  arguments, placed = plan.step_arguments(c, mesh)
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = jit_step(c, placed).trace(*arguments).lower(lowering_platforms=('cuda',))
  assert 'sharding' in lowered.as_text() and 'omni_dkv' in lowered.as_text()
