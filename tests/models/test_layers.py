"""Stacks are loops: scanning and rematerialising change nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tests.models import small
from tuna_jax.models import layers, rope
from tuna_jax.models.decoder import DecoderBlock
from tuna_jax.models.layers import Span

ROUNDING = 1e-5
DECODER = small.CONFIG.decoder
X = np.random.default_rng(0).normal(size=(2, 12, DECODER.dim)).astype(np.float32)


def span():
  index = np.tile(np.arange(12, dtype=np.int32), (2, 1))
  segment = np.ones_like(index)
  return Span(
    rope.decoder_rotary(index, DECODER.head_dim, DECODER.rope_theta), index, segment, segment
  )


def tower(remat):
  return layers.stack(DecoderBlock, DECODER.num_layers, remat, None, config=small.CONFIG)


@pytest.fixture(scope='module')
def params():
  return shrink.randomise(
    jax.eval_shape(tower('none').init, jax.random.key(0), X, span(), None)['params'], 0
  )


def test_scanned_layers_equal_a_loop_over_them(params):
  def layer(i):
    return {'params': jax.tree.map(lambda p: p[i], params)}

  x = X
  for i in range(DECODER.num_layers):
    x, _ = DecoderBlock(small.CONFIG).apply(layer(i), x, span())
  np.testing.assert_allclose(
    tower('none').apply({'params': params}, X, span(), None)[0], x, atol=ROUNDING
  )


@pytest.mark.parametrize('remat', ['dots', 'block', 'offload'])
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(params, remat):
  def gradient(remat):
    @jax.jit
    @jax.grad
    def run(params):
      return jnp.sum(jnp.square(tower(remat).apply({'params': params}, X, span(), None)[0]))

    return run(params)

  chex.assert_trees_all_close(gradient('none'), gradient(remat), rtol=1e-4, atol=1e-4)


def test_remat_changes_no_parameter_name(params):
  for remat in ('none', 'dots', 'block', 'offload'):
    found = jax.eval_shape(tower(remat).init, jax.random.key(0), X, span(), None)['params']
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_the_norm_takes_its_statistics_in_float32():
  x = jnp.full((1, 512), 300.0, jnp.bfloat16)  # the sum of squares is past what bfloat16 resolves
  y = layers.RMSNorm(1e-6).apply({'params': {'scale': jnp.ones(512)}}, x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y.astype(np.float32), 1.0)


def test_modulation_of_nothing_is_the_identity():
  np.testing.assert_array_equal(layers.modulate(X, jnp.zeros(()), jnp.zeros(())), X)
  np.testing.assert_allclose(
    layers.modulate(X, jnp.float32(1), jnp.float32(2)), X * 3 + 1, rtol=1e-6
  )


def test_bfloat16_compute_keeps_float32_parameters():
  block = layers.SwiGLU(8, 'bfloat16')
  params = block.init(jax.random.key(0), X)['params']
  assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  assert block.apply({'params': params}, X).dtype == jnp.bfloat16
