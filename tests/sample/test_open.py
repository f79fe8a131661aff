"""A generator from what training and conversions write."""

import jax
import numpy as np
import pytest

from tests.sample import small
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.image import Drawing, Guidance, Usual
from tuna_jax.sample.open import open_generator
from tuna_jax.weights import storage, store

OPTIONS = {'media': MediaConfig('32', '32', 5), 'tasks': TaskConfig(system=None)}


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  """A weights directory with all that a generator needs."""
  root = tmp_path_factory.mktemp('stored') / 'w'
  store.save(str(root), small.CONFIG, small.params())
  store.save(str(root / 'vae'), small.VAE, small.vae_params())
  small.tokenizer().save(root)
  return root


def test_a_weights_directory_draws_what_its_parameters_draw(stored):
  direct = Generator(small.CONFIG, small.params(), small.vae_params(), small.tokenizer(), **OPTIONS)
  how = {'points': 3, 'size': '16'}
  np.testing.assert_array_equal(
    open_generator(stored, **OPTIONS).image('a red ball', **how), direct.image('a red ball', **how)
  )


def test_what_a_model_of_ones_own_draws_with_is_remembered_and_may_be_changed(stored):
  own = open_generator(stored, usual=Usual(guidance=1.5, points=16), **OPTIONS)
  assert own.how('t2v') == Drawing(Guidance(1.5), 16, 3.0)
  assert own.how('t2i', 4.0, points=3, shift=1.0) == Drawing(Guidance(4.0), 3, 1.0)
  assert open_generator(stored, **OPTIONS).how('t2v') == Drawing(Guidance(6.0), 50, 3.0)


@pytest.mark.parametrize('dtype,most', [('bfloat16', 6), ('int8', 12)])
def test_parameters_held_in_fewer_bits_draw_nearly_the_same(stored, dtype, most):
  how = {'points': 3, 'size': '32', 'guidance': 1.0}
  found = open_generator(stored, dtype=dtype, **OPTIONS)
  exact = open_generator(stored, **OPTIONS)
  kinds = {str(a.dtype) for a in jax.tree.leaves((found.params, found.vae_params))}
  assert kinds == {'bfloat16'} | ({'int8', 'float32'} if dtype == 'int8' else set())
  difference = np.asarray(found.image('a red ball', **how), np.int32) - exact.image(
    'a red ball', **how
  )
  assert 0 < np.abs(difference).mean() < most  # of 255


def test_a_cpu_makes_layers_in_bfloat16_float32_one_at_a_time():
  layers, size = 8, 128
  kernels = jax.ShapeDtypeStruct((layers, size, size), 'bfloat16')
  x = jax.ShapeDtypeStruct((4, size), 'bfloat16')
  run = lambda kernels, x: jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

  compiled = jax.jit(run, compiler_options=storage.LAYERWISE).lower(kernels, x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * size**2


@pytest.mark.parametrize(
  'option,said',
  [
    ({'dtyp': 'int8'}, "takes no 'dtyp'; nearest is 'dtype'"),
    ({'batchsize': 2}, "takes no 'batchsize'; nearest is 'batch_size'"),
    ({'dtype': 'fp16'}, 'expected one of'),
    ({'dtype': 8}, 'open_generator: dtype=8: expected text, found int'),
    ({'step': '3'}, "open_generator: step='3': expected a whole number, found str"),
    ({'ema': None}, 'open_generator: ema=None: expected bool, found None'),
    ({'tasks': 'x'}, "Generator: tasks='x': expected TaskConfig, found str"),
  ],
)
def test_an_option_that_is_none_is_named_with_the_nearest(stored, option, said):
  with pytest.raises(ValueError, match=said):
    open_generator(stored, **option)


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
