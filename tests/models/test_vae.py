"""The causal VAE: causality, strides, shapes, latent statistics."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tuna_jax.config import WAN_MEAN, WAN_STD, VaeConfig
from tuna_jax.models import vae as vae_lib
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.models.vae import WanVae

CONFIG = shrink.vae(VaeConfig())
PARAMS = shrink.randomise(vae_shapes(CONFIG), 0)
ROUNDING = 1e-5  # of numbers of order 1


@functools.cache
def jitted(method):
  return jax.jit(functools.partial(WanVae(CONFIG).apply, {'params': PARAMS}, method=method))


def encode(video):
  return jax.tree.map(np.asarray, jitted('encode')(video))


def decode(latents):
  return np.asarray(jitted('decode')(latents))


@pytest.fixture(scope='module')
def video():
  return np.random.default_rng(1).uniform(-1, 1, (1, 9, 16, 32, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def latents():
  return (
    np.random.default_rng(2).normal(size=(1, 3, 1, 2, CONFIG.latent_channels)).astype(np.float32)
  )


@pytest.mark.parametrize('frame, first_changed', [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_later_frame_never_changes_an_earlier_latent(video, frame, first_changed):
  other = video.copy()
  other[:, frame] *= -1
  for a, b in zip(encode(video), encode(other)):
    assert (a[:, :first_changed] == b[:, :first_changed]).all()
    assert not np.allclose(a[:, first_changed], b[:, first_changed], atol=1e-4)


@pytest.mark.parametrize('latent, first_changed', [(1, 1), (2, 5)])
def test_a_later_latent_never_changes_an_earlier_frame(latents, latent, first_changed):
  other = latents.copy()
  other[:, latent] += 1
  a, b = decode(latents), decode(other)
  assert (a[:, :first_changed] == b[:, :first_changed]).all()
  assert not np.allclose(a[:, first_changed], b[:, first_changed], atol=1e-4)


def test_a_picture_is_the_first_frame_of_a_clip(video, latents):
  for one, all_ in zip(encode(video[:, :1]), encode(video)):
    np.testing.assert_allclose(one, all_[:, :1], atol=ROUNDING)
  np.testing.assert_allclose(decode(latents[:, :1]), decode(latents)[:, :1], atol=ROUNDING)


def test_frames_shrink_by_4_and_sides_by_16_and_come_back(video, latents):
  moments = encode(video)
  assert moments.mean.shape == moments.logvar.shape == (1, 3, 1, 2, CONFIG.latent_channels)
  assert decode(latents).shape == video.shape


@pytest.mark.parametrize('frames, latent', [(1, 1), (13, 4), (81, 21)])
def test_the_published_size_has_the_published_shapes(frames, latent):
  vae, params = WanVae(VaeConfig()), vae_shapes(VaeConfig())
  clip = jax.ShapeDtypeStruct((1, frames, 384, 672, 3), 'float32')
  found = jax.eval_shape(lambda p, x: vae.apply({'params': p}, x), params, clip)
  assert found[1].mean.shape == (1, latent, 24, 42, 48) and found[0].shape == clip.shape


@pytest.mark.parametrize(
  'shape, message',
  [
    ((1, 4, 16, 16, 3), r'4 frames: expected 4k \+ 1'),
    ((1, 1, 24, 16, 3), 'height 24 is not a multiple of 16'),
    ((1, 1, 16, 40, 3), 'width 40 is not a multiple of 16'),
  ],
)
def test_clips_that_do_not_divide_are_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(jitted('encode'), np.zeros(shape, np.float32))


def test_stills_and_clips_have_the_same_parameters():
  def names(frames):
    video = jax.ShapeDtypeStruct((1, frames, 16, 16, 3), 'float32')
    return jax.eval_shape(WanVae(CONFIG).init, jax.random.key(0), video)

  assert names(1) == names(5)


@pytest.mark.parametrize('mean', [WAN_MEAN, WAN_STD], ids=['wan', 'tuna'])
def test_normalising_and_its_inverse(mean):
  config = VaeConfig(latent_mean=mean)
  z = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
  np.testing.assert_allclose(
    vae_lib.denormalize(config, vae_lib.normalize(config, z)), z, atol=ROUNDING
  )
  np.testing.assert_allclose(vae_lib.normalize(config, np.float32(mean)), 0, atol=ROUNDING)


def test_official_statistics_are_the_std_twice():
  z = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
  official = vae_lib.normalize(VaeConfig(latent_mean=WAN_STD), z)
  plain = vae_lib.normalize(VaeConfig(), z)  # docs/architecture.md 2.5: z + mean / std - 1
  np.testing.assert_allclose(
    official, plain + np.float32(WAN_MEAN) / np.float32(WAN_STD) - 1, atol=ROUNDING
  )


def test_no_statistics_leave_latents_as_they_are():
  z = np.ones((2, CONFIG.latent_channels))
  assert vae_lib.normalize(CONFIG, z) is z and vae_lib.denormalize(CONFIG, z) is z


def test_the_posterior_is_drawn_in_raw_latents_unless_official():
  config = dataclasses.replace(VaeConfig())
  moments = vae_lib.Moments(jnp.zeros((1, 48)), jnp.full((1, 48), 2 * np.log(3.0)))
  noise = jnp.ones((1, 48))
  mean, std = np.float32(WAN_MEAN), np.float32(WAN_STD)
  np.testing.assert_allclose(
    vae_lib.posterior_sample(config, moments, noise)[0], (3 - mean) / std, rtol=1e-5
  )
  np.testing.assert_allclose(
    vae_lib.posterior_sample(config, moments, noise, 'official')[0], 3 - mean / std, rtol=1e-5
  )


def test_a_black_picture_has_a_finite_gradient():
  def loss(x):
    return vae_lib.ChanNorm().apply({'params': {'scale': jnp.ones(4)}}, x).sum()

  assert np.isfinite(jax.grad(loss)(jnp.zeros((1, 1, 1, 1, 4)))).all()


def test_patches_are_cut_column_first():
  x = np.arange(4 * 3).reshape(1, 1, 2, 2, 3)
  y = vae_lib.patchify(x)[0, 0, 0, 0]
  for c, r, q in np.ndindex(3, 2, 2):
    assert y[4 * c + 2 * r + q] == x[0, 0, q, r, c]
  np.testing.assert_array_equal(vae_lib.unpatchify(vae_lib.patchify(x)), x)


def test_bytes_survive_the_way_to_floats_and_back():
  pixels = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(vae_lib.to_uint8(vae_lib.to_float(pixels)), pixels)
  np.testing.assert_array_equal(vae_lib.to_uint8(jnp.array([-9.0, 9.0])), [0, 255])
