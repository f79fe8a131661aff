"""FLOPs counted by hand against the compiler's count of small programs without loops, and the
ratios they give.
"""

import dataclasses

import jax
import numpy as np
import pytest
from tuna_jax.configs import compare

from tests import shrink
from tests.sample import small
from tuna_jax.config import DESIGNS, TOWERS, UserError
from tuna_jax.data.segments import Image, Text, layout
from tuna_jax.data.tokenizer import Letters
from tuna_jax.models.flops import layer_weights, matrices
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.models.tuna import Tuna, init_cache
from tuna_jax.sample import flops
from tuna_jax.sample import image as drawing
from tuna_jax.sample.prompt import collate, split, strides
from tuna_jax.sizes import TUNA_2B, TUNA_7B
from tuna_jax.tools import bench_sample
from tuna_jax.train import flops as train_flops

# The compiler counts norms, rotations and softmax too; at this width they are a few per cent.
ABOVE = 1.10


@pytest.mark.parametrize('model', [TUNA_2B, TUNA_7B, compare.model('13', '1.5b')])
def test_the_weights_of_a_layer_are_those_of_its_matrices(model):
  for name in TOWERS:
    layers = f'{name}/layers/'
    traced = sum(size for leaf, (*_, size) in matrices(model).items() if leaf.startswith(layers))
    assert layer_weights(model, name) * getattr(model, name).num_layers == traced


def one_layer():
  """One layer a tower: a loop of one trip, whose body the compiler counts once. Wide, so that
  products dominate.
  """
  wide = {
    'num_layers': 1,
    'dim': 256,
    'num_heads': 4,
    'num_kv_heads': 2,
    'head_dim': 64,
    'mlp_dim': 512,
  }
  return dataclasses.replace(
    bench_sample.SMALL,
    vision=dataclasses.replace(bench_sample.SMALL.vision, **{**wide, 'num_kv_heads': 4}, grid=4),
    attention='dense',
    decoder=dataclasses.replace(bench_sample.SMALL.decoder, **wide),
    flow_head=dataclasses.replace(bench_sample.SMALL.flow_head, **wide),
  )


def counted(fn, *args):
  return jax.jit(fn).lower(*args).cost_analysis()['flops']


def prompts():
  rng = np.random.default_rng(0)
  target = Image(np.zeros((1, 8, 8, 48), np.float32), True)
  source = Image(rng.normal(size=(1, 8, 8, 48)).astype(np.float32))
  plan = [Text((0,)), source, Text(tuple(range(4, 40))), target, Text((0,))]
  return plan, collate([split(plan, Letters, strides(bench_sample.SMALL))[0]], 48, 112)


def test_a_whole_evaluation_counts_what_the_compiler_counts():
  config = one_layer()
  plan, _ = prompts()
  batch = collate([layout(plan, Letters, strides(config))], 48, 192)
  model = Tuna(config)

  def run(params, latents, t):
    out = model.apply({'params': params}, batch, latents, t)
    return out.velocity, model.apply({'params': params}, out.hidden, method='logits')

  args = (
    tuna_shapes(config),
    jax.ShapeDtypeStruct((1, 128, 48), 'float32'),
    jax.ShapeDtypeStruct((1, 2), 'float32'),
  )
  shape = flops.Target(prefix=112, cells=64, sources=64, padded=192, images=2, branches=1)
  # Pictures share a row: the tower scores both against both and masks; a TPU or GPU kernel skips
  # what is masked.
  ours = flops.naive(config, shape, 1) + _across(config, 2, 64)
  assert 1 <= counted(run, *args) / ours < ABOVE


def test_a_cached_step_counts_what_the_compiler_counts():
  config = one_layer()
  _, batch = prompts()
  batch = jax.tree.map(lambda a: np.repeat(a, 2, axis=0), batch)
  target = drawing.target_batch(batch, np.int32([[1, 8, 8]] * 2), 64)
  cache = jax.eval_shape(lambda: init_cache(config, 2, 112 + 65, flow=True))

  def run(params, x, t, cache):
    return Tuna(config).apply({'params': params}, target, x, t, cache).velocity

  args = (
    tuna_shapes(config),
    jax.ShapeDtypeStruct((1, 64, 48), 'float32'),
    jax.ShapeDtypeStruct((2, 1), 'float32'),
    cache,
  )
  shape = flops.Target(prefix=112, cells=64, sources=64, images=2)
  assert 1 <= counted(run, *args) / flops.step(config, shape) < ABOVE


def _across(config, frames, cells):
  """Attention of each picture to the others."""
  inner = config.vision.num_heads * config.vision.head_dim
  return config.vision.num_layers * 4 * (frames * cells) * (frames - 1) * cells * inner


@pytest.mark.parametrize('config, t2i, edit', [(TUNA_2B, 10.0, 3.0), (TUNA_7B, 9.0, 3.0)])
def test_sampling_at_512_needs_a_tenth_of_the_flops_and_a_third_for_edits(config, t2i, edit):
  draw = flops.Target(prefix=64, cells=1024)
  change = flops.Target(prefix=1027 + 61, cells=1024, sources=1024, images=2, padded=3072)
  assert flops.naive(config, draw, 49) / flops.cached(config, draw, 49) > t2i
  assert flops.naive(config, change, 49) / flops.cached(config, change, 49) > edit


def test_the_bench_runs_all_three_forms_to_the_same_latents():
  result = bench_sample.sample(small.CONFIG, 'edit', side=32, points=3, prompt_tokens=5, padded=48)
  for form in ('trimmed', 'cached'):
    assert result[form]['max_abs_difference'] < 1e-5 * result['largest_latent']
    assert result[form]['seconds'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('design', DESIGNS)
@pytest.mark.parametrize('task', bench_sample.TASKS)
def test_the_bench_runs_every_design_to_the_same_picture(design, task):
  config = bench_sample.named(f'small-{design}')
  result = bench_sample.sample(config, task, side=64, points=3, prompt_tokens=5, padded=80)
  for form in ('trimmed', 'cached'):
    assert result[form]['max_abs_difference'] < 2e-5 * result['largest_latent']


def test_the_official_length_follows_the_design():
  lengths = {
    ('2b', 't2i', 512): 8192, ('2b', 'edit', 512): 3072, ('showo2-1.5b', 't2i', 432): 1024,
    ('showo2-1.5b', 't2i', 512): 1280, ('showo2-7b', 't2i', 1024): 4352,
    ('tuna-2-7b', 't2i', 512): 2048, ('tuna-r-7b', 't2i', 1024): 5120,
    ('tuna-2-7b', 'edit', 512): 4096,
  }  # fmt: skip
  for (size, task, side), length in lengths.items():
    assert bench_sample.padded_length(bench_sample.named(size), task, side) == length
  with pytest.raises(UserError, match='unknown size'):
    bench_sample.named('small-pixels')


def test_the_decode_bench_finds_the_same_tokens():
  assert bench_sample.decode(small.CONFIG, rows=2, prompt_tokens=7, new_tokens=4)['same']


def test_traffic_and_softmax_of_a_step_follow_rows_passes_and_type():
  config = shrink.real('stage2', '2b')
  once = dataclasses.replace(config, model=dataclasses.replace(config.model, remat='none'))
  twice = dataclasses.replace(config, rows=2 * config.rows)
  whole = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype='float32'))
  for count in (train_flops.activation_bytes, train_flops.softmax_operations):
    assert count(twice) == 2 * count(config)
    assert count(once) == pytest.approx(count(config) * 3 / 4)
  assert train_flops.activation_bytes(whole) == 2 * train_flops.activation_bytes(config)
  heads = config.model.decoder.num_heads * config.model.decoder.num_layers
  causal = config.rows * config.length**2 / 2 * heads  # scores of the decoder alone
  assert train_flops.softmax_operations(config) > 4 * train_flops.SOFTMAX * causal
