"""Layers of the VAE."""

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.models import vae_layers


def test_a_black_picture_has_a_finite_gradient():
  def loss(x):
    return vae_layers.ChanNorm().apply({'params': {'scale': jnp.ones(4)}}, x).sum()

  assert np.isfinite(jax.grad(loss)(jnp.zeros((1, 1, 1, 1, 4)))).all()


def test_patches_are_cut_column_first():
  x = np.arange(4 * 3).reshape(1, 1, 2, 2, 3)
  y = vae_layers.patchify(x)[0, 0, 0, 0]
  for c, r, q in np.ndindex(3, 2, 2):
    assert y[4 * c + 2 * r + q] == x[0, 0, q, r, c]
  np.testing.assert_array_equal(vae_layers.unpatchify(vae_layers.patchify(x)), x)
