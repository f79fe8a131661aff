"""What a VAE makes of pictures is measured, and a bad one is named."""

import numpy as np

from tests.evals.small import generator
from tuna_jax.evals.reconstruct import LOW_DB, Rebuilt, rebuild


def test_a_vae_of_random_weights_is_a_loud_warning():
  pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
  found = rebuild(generator().vae_config, generator().vae_params, pictures)
  assert found.psnr < LOW_DB and f'{found.psnr:.1f} dB' in found.warning
  assert [real.shape == made.shape for real, made in found.pairs] == [True, True]


def test_a_vae_that_fits_is_not():
  assert not Rebuilt(25.0, ()).warning
