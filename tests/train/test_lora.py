"""Adapters: what they are, what they leave alone, and what a run of them writes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small
from tuna_jax import sharding, tree
from tuna_jax.models.tuna import Tuna
from tuna_jax.train import state, step
from tuna_jax.train.config import OptimizerConfig, TrainConfig
from tuna_jax.weights import lora, storage
from tuna_jax.weights.tensors import lazies

MERGED = 1e-5
ROWS = (('(decoder|vision)/layers/.*', 4, 8.0), ('flow_head/layers/attn/.*', 2, 2.0))
ONLY = (('.*/lora_[ab]', 1.0), ('.*', 0.0))
CONFIG = TrainConfig(
  model=small.CONFIG,
  stage='stage3',
  steps=10,
  rows=8,
  length=small.LENGTH,
  visual=small.CELLS,
  images=small.IMAGES,
  optimizer=OptimizerConfig(lr=1e-2, warmup=0, groups=ONLY, lora=ROWS),
)
BATCH = small.batch(*[('edit', 'vqa'), ('t2i', 'text'), ('t2v',), ('vqa', 't2i')] * 2)


def held(config):
  """Random parameters as the run of `config` holds them, adapters random too."""
  leaves = state.as_held(lazies(tree.flatten(small.params(config.model))), config)
  rng = np.random.default_rng(1)
  found = {leaf: np.asarray(leaves[leaf]) for leaf in tree.names(state.shapes(config))}
  for leaf, value in found.items():
    if leaf.endswith(('lora_a', 'lora_b')):
      found[leaf] = rng.normal(size=value.shape).astype(np.float32) * 0.2
  types = tree.flatten(state.shapes(config))
  return tree.unflatten({leaf: jnp.asarray(a, types[leaf].dtype) for leaf, a in found.items()})


def run(config, params):
  t = small.times(BATCH)
  return Tuna(config.model).apply({'params': params}, BATCH, BATCH.latents, t)


def test_merged_equals_unmerged():
  params = held(CONFIG)
  merged = lora.merged(lazies(tree.flatten(params)))
  assert merged.keys() == tree.flatten(small.params()).keys()
  merged = tree.unflatten({leaf: jnp.asarray(a[()]) for leaf, a in merged.items()})
  with_adapters, without = run(CONFIG, params), run(CONFIG, merged)
  base = run(CONFIG, small.params())
  for a, b, c in zip(with_adapters[:2], without[:2], base[:2]):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a, b, atol=MERGED * max(scale, 1))
    assert float(jnp.abs(b - c).max()) > 0.01 * scale


@pytest.mark.parametrize('frozen', ['bfloat16', 'int8'])
def test_a_frozen_base_is_bit_equal_after_a_sharded_step_and_the_adapters_move(frozen):
  config = dataclasses.replace(CONFIG, frozen=frozen)
  mesh = sharding.make_mesh(2, 2, 1, 2)
  before = state.from_params(held(config), config)
  placed = sharding.shardings(before, mesh)
  batch = jax.device_put(BATCH, sharding.batch_sharding(mesh))
  old = jax.tree.map(np.asarray, before.params)
  with jax.set_mesh(mesh):
    after, metrics = step.jit_step(config, placed)(
      jax.device_put(before, placed), batch, jax.random.key(0)
    )
  assert np.isfinite(metrics['loss'])
  new = tree.flatten(after.params)
  for leaf, value in tree.flatten(old).items():
    same = np.array_equal(value, np.asarray(new[leaf]))
    assert same != leaf.endswith(('lora_a', 'lora_b')), leaf
  assert set(after.ema) == {leaf for leaf in new if leaf.endswith(('lora_a', 'lora_b'))}
  kept = set(tree.names(state.own(after.params, config)))
  assert kept == {leaf for leaf in new if lora.is_adapter(leaf)}


def test_int8_is_within_half_a_step_of_every_value():
  leaves = lazies(tree.flatten(small.params()))
  wanted = tree.flatten(storage.held(small.params(), 'int8'))
  found = storage.fitted(leaves, wanted)
  assert found.keys() == wanted.keys()
  quantized = [leaf for leaf, aval in wanted.items() if aval.dtype == jnp.int8]
  assert 'decoder/embed/embedding' in quantized and len(quantized) > 15
  for leaf in quantized:
    axis = -2 if leaf.endswith('kernel') else -1
    by = np.expand_dims(found[f'{leaf}_scale'][()], axis)
    exact = leaves[leaf][()]
    assert (np.abs(found[leaf][()] * by - exact) <= 0.5001 * by).all()
    part = tuple(slice(n // 2, n) for n in exact.shape)
    np.testing.assert_array_equal(found[leaf][part], found[leaf][()][part])


def test_new_adapters_change_nothing_and_scale_by_alpha():
  leaves = state.as_held(lazies(tree.flatten(small.params())), CONFIG)
  assert not leaves['decoder/layers/mlp/up_proj/lora_b'][()].any()
  assert leaves['vision/layers/mlp/fc1/lora_a'][()].std() > 0.01
  np.testing.assert_array_equal(leaves['decoder/layers/mlp/up_proj/lora_scale'][()], [2, 2])
  np.testing.assert_array_equal(leaves['flow_head/layers/attn/q_proj/lora_scale'][()], [1, 1])


def test_adapters_of_no_kernel_and_of_too_high_a_rank_are_refused():
  change = lambda *rows: dataclasses.replace(
    CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, lora=rows)
  )
  with pytest.raises(ValueError, match=r"'decoder/laiers.*' selects no kernel; nearest is"):
    state.shapes(change(('decoder/laiers/attn/q_proj/kernel', 4, 8.0)))
  with pytest.raises(ValueError, match='rank 64 of .* expected at most 32'):
    state.shapes(change(('decoder/.*', 64, 8.0)))
