"""The mesh, the path table and the anchors; eight simulated devices compute what one computes."""

import dataclasses
import functools
import math
import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from tuna_jax import config, sharding, tree
from tuna_jax.data.segments import Image, Text, Video, layout, pack
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import OptimizerConfig, TrainConfig
from tuna_jax.train.step import train_step

EQUAL = 1e-5  # relative to the largest entry: float32 sums in another order


def abstract(size):
  """Parameters of a named size as ShapeDtypeStructs."""
  return state_lib.abstract_params(config.size(size))


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


@pytest.mark.parametrize('size', ['tiny', '2b', '7b'])
def test_one_row_and_only_one_covers_each_parameter(size):
  for name in tree.names(abstract(size)):
    rows = [pattern for pattern, _ in sharding.RULES if re.fullmatch(pattern, name)]
    assert len(rows) == 1, f'{name}: {rows}'


def test_every_row_selects_something():
  tree.match_tree(abstract('7b'), sharding.RULES)  # raises on dead rows


@pytest.mark.parametrize(
  'size,mesh',
  [
    ('2b', (1, 16, 1, 1)),
    ('2b', (1, 16, 4, 1)),
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


def test_an_anchor_takes_one_position_without_its_axis():
  mesh = sharding.make_mesh(fsdp=2, context=2, tensor=2)
  assert sharding.activation_spec('logits', (4, 8), mesh) == P(('data', 'fsdp'), 'tensor')


def test_an_unknown_anchor_is_named_with_the_nearest():
  with pytest.raises(ValueError, match="no kind 'hiden'; nearest is 'hidden'"):
    sharding.anchor(jnp.zeros(3), 'hiden')


# --- eight devices equal one


def example_batch(rows, length=64, visual=32, images=2):
  """Rows of a drawn picture packed beside a described clip."""
  special, rng = types.SimpleNamespace(boi=300, eoi=301, img_pad=302), np.random.default_rng(3)
  latents = lambda *shape: rng.normal(size=(*shape, 48)).astype(np.float32)

  def row():
    draw = [Text(rng.integers(0, 300, 7)), Image(latents(1, 3, 4), target=True), Text([303])]
    describe = [Video(latents(2, 2, 3)), Text(rng.integers(0, 300, 9), loss=True)]
    return [layout(plan, special, (4, 16)) for plan in (draw, describe)]

  batch, media = pack([row() for _ in range(rows)], (rows, length, visual, images, 48))
  for m in media:
    batch.latents[m.row, m.start : m.start + m.cells] = m.media.reshape(m.cells, -1)
  return batch


SMALL = {
  'num_layers': 2,
  'dim': 64,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 16,
  'mlp_dim': 96,
}


def run_config(**changes):
  """A stage over two layers a tower; Adam's eps is large lest it divide noise by noise."""
  towers = {
    name: dataclasses.replace(getattr(config.TINY, name), **SMALL)
    for name in ('decoder', 'flow_head')
  }
  vision = dataclasses.replace(config.TINY.vision, **{**SMALL, 'num_kv_heads': 4})
  model = dataclasses.replace(config.TINY, vision=vision, **towers)
  optimizer = {'lr': 0.1, 'warmup': 0, 'eps': 1e-3, **changes.pop('optimizer', {})}
  return TrainConfig(
    model=model,
    stage='test',
    steps=2,
    rows=8,
    length=64,
    visual=32,
    images=2,
    optimizer=OptimizerConfig(**optimizer),
    **changes,
  )


STAGES = {
  'all train': run_config(),
  'the decoder is frozen': run_config(
    optimizer={'groups': (('decoder/.*', 0.0), ('.*', 1.0)), 'accumulate': 2}, ntp_coeff=0.0
  ),
}


@pytest.fixture(scope='module')
def start():
  """Parameters and a batch. Zero layers would hide an error in what comes before them."""
  rng = np.random.default_rng(0)
  params = jax.jit(lambda: state_lib.init_params(STAGES['all train'].model, jax.random.key(0)))()
  params = jax.tree.map(
    lambda x: np.asarray(x) + 0.02 * rng.normal(size=x.shape).astype(np.float32), params
  )
  return params, example_batch(8)


@pytest.fixture(scope='module')
def alone(start):
  """stage -> (state, metrics) of one device."""
  params, batch = start

  @functools.cache
  def step(stage):
    c = STAGES[stage]
    state = jax.jit(partial(state_lib.from_params, config=c))(params)
    return jax.device_get(jax.jit(partial(train_step, config=c))(state, batch, jax.random.key(1)))

  return step


@pytest.mark.parametrize(
  'stage,sizes',
  [
    ('all train', (1, 2, 2, 2)),
    pytest.param('all train', (2, 2, 1, 2), marks=pytest.mark.slow),
    pytest.param('all train', (8, 1, 1, 1), marks=pytest.mark.slow),
    pytest.param('all train', (1, 4, 2, 1), marks=pytest.mark.slow),
    pytest.param('the decoder is frozen', (2, 2, 1, 2), marks=pytest.mark.slow),
  ],
)
def test_eight_devices_take_the_step_of_one(start, alone, stage, sizes):
  params, batch = start
  want, want_metrics = alone(stage)
  c, mesh = STAGES[stage], sharding.make_mesh(*sizes)
  state = jax.eval_shape(partial(state_lib.from_params, config=c), params)
  placed = sharding.shardings(state, mesh)
  with jax.set_mesh(mesh):
    state = jax.jit(partial(state_lib.from_params, config=c), out_shardings=placed)(params)
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    step = jax.jit(partial(train_step, config=c), out_shardings=(placed, None))
    got, metrics = step(state, batch, jax.random.key(1))
  np.testing.assert_allclose(metrics['loss'], want_metrics['loss'], rtol=EQUAL)
  np.testing.assert_allclose(metrics['grad_norm'], want_metrics['grad_norm'], rtol=EQUAL)
  want = tree.flatten(want)
  for name, leaf in tree.flatten(got).items():
    if name.startswith('opt_state') and name.endswith('k_proj/bias'):
      continue  # adding one vector to every key changes no softmax: its gradient is rounding
    np.testing.assert_allclose(
      leaf, want[name], atol=EQUAL * np.abs(want[name]).max(), rtol=0, err_msg=name
    )
