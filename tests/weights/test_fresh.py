"""Fresh leaves have the model's own initial distribution, however they are asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.small import small_config
from tuna_jax import batch as batches
from tuna_jax import tree
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.models.tuna import Tuna
from tuna_jax.weights.fresh import fresh

CONFIG = small_config(tied=False)


def test_every_leaf_has_the_spread_that_the_model_itself_starts_from():
  batch = batches.empty(1, 2, 1, 1, 48)
  own = jax.jit(Tuna(CONFIG).init)(jax.random.key(0), batch, batch.latents, jnp.zeros((1, 1)))[
    'params'
  ]
  for name, value in tree.flatten(own).items():
    ours = fresh(name, value, 0)[()]
    assert ours.shape == value.shape and ours.dtype == np.float32
    want, found = np.asarray(value), ours
    assert (
      abs(want.mean() - found.mean()) < 6 * (want.std() + found.std()) / np.sqrt(want.size) + 1e-7
    ), name
    assert abs(want.std() - found.std()) <= 6 * want.std() / np.sqrt(want.size), name
    assert np.abs(found).max() <= np.abs(want).max() * 1.5, name


@pytest.mark.parametrize(
  'leaf', ['flow_head/layers/mlp/down_proj/kernel', 'connector/fc1/kernel', 'decoder/norm/scale']
)
def test_a_slice_is_a_slice_of_the_whole(leaf):
  aval = tree.flatten(tuna_shapes(CONFIG))[leaf]
  if leaf.startswith('flow_head'):
    aval = jax.ShapeDtypeStruct((2, 700, 64), jnp.float32)  # several blocks of rows
  value = fresh(leaf, aval, 3)
  index = tuple(slice(n // 3, n - n // 5) for n in value.shape)
  np.testing.assert_array_equal(value[index], value[()][index])


def test_seeds_leaves_layers_and_blocks_draw_different_values():
  aval = jax.ShapeDtypeStruct((2, 600, 8), jnp.float32)
  a = fresh('flow_head/layers/attn/q_proj/kernel', aval, 0)[()]
  b = fresh('flow_head/layers/attn/k_proj/kernel', aval, 0)[()]
  c = fresh('flow_head/layers/attn/q_proj/kernel', aval, 1)[()]
  rows = np.concatenate([x.reshape(-1, 8) for x in (a, b, c)])
  assert len(np.unique(rows, axis=0)) == len(rows)
