"""A generator from what training and conversions write."""

import numpy as np
import pytest

from tests.sample import small
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.open import open_generator
from tuna_jax.weights import store

OPTIONS = {'media': MediaConfig('32', '32', 5), 'tasks': TaskConfig(system=None)}


def test_a_weights_directory_draws_what_its_parameters_draw(tmp_path):
  store.save(str(tmp_path / 'w'), small.CONFIG, small.params())
  store.save(str(tmp_path / 'w/vae'), small.VAE, small.vae_params())
  small.tokenizer().save(tmp_path / 'w')
  direct = Generator(small.CONFIG, small.params(), small.vae_params(), small.tokenizer(), **OPTIONS)
  how = {'points': 3, 'size': '16'}
  np.testing.assert_array_equal(
    open_generator(tmp_path / 'w', **OPTIONS).image('a red ball', **how),
    direct.image('a red ball', **how),
  )


def test_what_a_weights_directory_lacks_is_named(tmp_path):
  store.save(str(tmp_path / 'w'), small.CONFIG, {'x': np.zeros(1)})
  with pytest.raises(ValueError, match='no vae'):
    open_generator(tmp_path / 'w')
  store.save(str(tmp_path / 'v'), small.VAE, small.vae_params())
  with pytest.raises(ValueError, match='VAE alone'):
    open_generator(tmp_path / 'v')
  with pytest.raises(ValueError, match='no tokenizer'):
    open_generator(tmp_path / 'w', vae=tmp_path / 'v')
  with pytest.raises(ValueError, match=r'no config\.json'):
    open_generator(tmp_path / 'absent')
