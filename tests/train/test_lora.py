"""Adapters: what they are, what they leave alone, and what a run of them writes."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tests.models import small
from tuna_jax import files, sharding, tree
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.models.tuna import Tuna
from tuna_jax.sample.image import Drawing, Guidance
from tuna_jax.sample.open import open_generator
from tuna_jax.train import loop, state, step
from tuna_jax.train.config import OptimizerConfig, TrainConfig
from tuna_jax.weights import lora, steps, storage, store
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


def test_a_frozen_base_is_bit_equal_after_a_sharded_step_and_the_adapters_move():
  config = dataclasses.replace(CONFIG, frozen='int8')
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


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(folder with the base `base` and the run `run`, its config, the state after it)."""
  root = tmp_path_factory.mktemp('lora')
  config = shrink.stage('stage3')
  store.save(root / 'base', config.model, shrink.randomise(tuna_shapes(config.model), 0))
  vae, params = store.load_vae(config.vae)  # its statistics are learned, and no run has them
  vae = dataclasses.replace(vae, latent_mean=(0.5,) * 8, latent_std=(2.0,) * 8)
  store.save(root / 'vae', vae, params)
  adapted = OptimizerConfig(lr=1e-2, warmup=0, groups=ONLY, lora=ROWS, ema=0.0)
  config = dataclasses.replace(
    config,
    rows=2,
    init_from=str(root / 'base'),
    frozen='bfloat16',
    optimizer=adapted,
    vae=str(root / 'vae'),
  )
  return root, config, loop.train(config, str(root / 'run'), jax.devices()[:1])


def test_a_run_saves_adapters_alone_and_resumes(trained):
  root, config, final = trained
  copy = root / 'again'
  shutil.copytree(root / 'run', copy)
  shutil.rmtree(copy / 'checkpoints' / '3')
  found = steps.read_item(copy, 2, 'params', None)
  assert found and all(lora.is_adapter(leaf) for leaf in found)
  again = loop.train(config, str(copy), jax.devices()[:1])
  jax.tree.map(np.testing.assert_array_equal, again, final)


def test_a_run_is_merged_with_its_vae_and_with_how_it_is_asked_and_drawn(
  trained, convert, tmp_path
):
  root, config, _ = trained
  convert('merge', f'--input={root}/run', f'--output={tmp_path}/merged')
  run, merged = (open_generator(path) for path in (root / 'run', tmp_path / 'merged'))
  assert (merged.tasks, merged.media, merged.usual) == (run.tasks, run.media, run.usual)
  assert merged.how('t2i') == run.how('t2i') == Drawing(Guidance(1.5), 16)
  jax.tree.map(np.testing.assert_array_equal, merged.params, run.params)
  jax.tree.map(np.testing.assert_array_equal, merged.vae_params, run.vae_params)
  assert merged.vae_config == run.vae_config != run.config.vae


def test_a_run_opens_as_the_merged_model_beside_its_base_wherever_they_are(trained, tmp_path):
  root, config, final = trained
  shutil.copytree(root / 'run', tmp_path / 'run')
  shutil.copytree(root / 'base', tmp_path / 'base')
  wanted = lora.merged(
    {**store.open_stored(root / 'base').params, **lazies(final.ema)}
    | {
      leaf: lazies({leaf: a})[leaf]
      for leaf, a in tree.flatten(final.params).items()
      if leaf.endswith('lora_scale')
    }
  )
  base = root / 'base'
  base.rename(root / 'elsewhere')
  try:
    stored = store.open_stored(tmp_path / 'run')
    assert stored.params.keys() == wanted.keys() and stored.config == config.model
    for leaf, value in wanted.items():
      np.testing.assert_array_equal(value[()], stored.params[leaf][()])
    with pytest.raises(ValueError, match='its base .*base is not there'):
      store.open_stored(root / 'run')
  finally:
    (root / 'elsewhere').rename(base)
  store.save(tmp_path / 'base', config.model, shrink.randomise(tuna_shapes(config.model), 1))
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '2')
  about = files.read_json(tmp_path / 'run' / 'config.json')
  about['config']['init_from'] = str(tmp_path / 'base')
  store.write_config(tmp_path / 'run', {k: about[k] for k in ('kind', 'config', 'notes')})
  with pytest.raises(ValueError, match='is not the one that its adapters were trained on'):
    store.open_stored(tmp_path / 'run')


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
