"""Initial values: their distributions, and that a slice is the same however it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.small import small_config
from tuna_jax import tree
from tuna_jax.config import VaeConfig
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.models.vae import WanVae
from tuna_jax.weights import fresh

CONFIG = small_config(tied=False)
SHAPES = tree.flatten(tuna_shapes(CONFIG))
SMALL_VAE = VaeConfig(4, 4, 4, (1, 2, 2, 2), 1, 1, latent_mean=(), latent_std=())


def values(leaf, aval=None, seed=0):
  return fresh.fresh(leaf, SHAPES[leaf] if aval is None else aval, seed)[()]


@pytest.mark.parametrize(
  'leaf, spread',
  [
    ('connector/fc1/kernel', lambda shape: shape[-2] ** -0.5),  # 1 / sqrt(inputs), layer by layer
    ('decoder/layers/mlp/up_proj/kernel', lambda shape: shape[-2] ** -0.5),
    ('decoder/embed/embedding', lambda shape: 4 * shape[-1] ** -0.5),
    ('vision/position_embed/embedding', lambda shape: 1.0),
    ('decoder/layers/mlp/down_proj/kernel', lambda shape: 0.0),
    ('vision/layers/attn/out_proj/kernel', lambda shape: 0.0),
    ('flow_head/layers/adaln/kernel', lambda shape: 0.0),
    ('flow_head/final/linear/kernel', lambda shape: 0.0),
    ('decoder/layers/attn/q_proj/bias', lambda shape: 0.0),
  ],
)
def test_the_spread_of_a_leaf(leaf, spread):
  found = values(leaf)
  want = spread(found.shape)
  assert abs(found.mean()) <= 6 * want / np.sqrt(found.size)
  assert abs(found.std() - want) <= 6 * want / np.sqrt(found.size)
  assert found.shape == SHAPES[leaf].shape and found.dtype == np.float32


def test_every_leaf_has_an_initial_value_and_scales_are_one():
  for shapes in (SHAPES, tree.flatten(vae_shapes(SMALL_VAE))):
    for leaf, aval in shapes.items():
      found = values(leaf, aval)
      assert np.isfinite(found).all() and (found == 1).all() == leaf.endswith('/scale')


def test_a_fresh_vae_sees_the_frames_of_a_clip_apart():
  params = fresh.init(vae_shapes(SMALL_VAE), 0)
  clip = np.random.default_rng(0).uniform(-1, 1, (1, 5, 16, 16, 3)).astype(np.float32)
  encode = jax.jit(lambda x: WanVae(SMALL_VAE).apply({'params': params}, x, method='encode').mean)
  earlier_changed = np.concatenate([-clip[:, :1], clip[:, 1:]], axis=1)
  a, b = encode(clip), encode(earlier_changed)
  np.testing.assert_allclose(a[:, 1], b[:, 1], atol=1e-6)
  assert not np.allclose(a[:, 0], b[:, 0], atol=1e-3) and np.asarray(a).std() > 0.01


@pytest.mark.parametrize(
  'leaf, shape',
  [
    ('flow_head/layers/mlp/up_proj/kernel', (2, 700, 1100)),  # several blocks of a layer
    ('decoder/embed/embedding', (900, 64)),
    ('encoder/level_0/block_0/conv1/kernel', (3, 3, 3, 20, 600)),
    ('patches/mask_token', (700,)),
    ('decoder/norm/scale', (9,)),
  ],
)
def test_a_slice_is_a_slice_of_the_whole(leaf, shape):
  value = fresh.fresh(leaf, jax.ShapeDtypeStruct(shape, jnp.float32), 3)
  for index in (tuple(slice(n // 3, n - n // 5) for n in shape), (slice(1, 2),), (slice(2, 2),)):
    np.testing.assert_array_equal(value[index], value[()][index])


def test_seeds_leaves_layers_and_blocks_draw_different_values():
  aval = jax.ShapeDtypeStruct((2, 600, 600), jnp.float32)
  q, k = (f'flow_head/layers/attn/{name}_proj/kernel' for name in 'qk')
  drawn = np.stack([values(q, aval), values(k, aval), values(q, aval, seed=1)])
  starts = drawn[:, :, ::512, ::512].ravel()  # the first number of each block
  assert len(np.unique(starts)) == starts.size
