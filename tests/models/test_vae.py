"""The causal VAE: causality, strides, chunks of a clip, latent statistics."""

import dataclasses
import functools

import chex
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
ROUNDING = 1e-5  # of numbers of order 1, summed in another order
BFLOAT16 = 2e-2  # relative to the largest latent; bfloat16 keeps 8 bits


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


def pixels(frames):
  return np.random.default_rng(3).integers(0, 256, (2, frames, 32, 16, 3), np.uint8)


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
  first = jax.tree.map(lambda x: x[:, :1], encode(video))
  chex.assert_trees_all_close(encode(video[:, :1]), first, atol=ROUNDING)
  chex.assert_trees_all_close(decode(latents[:, :1]), decode(latents)[:, :1], atol=ROUNDING)


def test_frames_shrink_by_4_and_sides_by_16_and_come_back(video, latents):
  chex.assert_shape(encode(video), (1, 3, 1, 2, CONFIG.latent_channels))
  assert decode(latents).shape == video.shape


@pytest.mark.parametrize('frames, latent', [(1, 1), (13, 4), (81, 21)])
def test_the_published_size_has_the_published_shapes(frames, latent):
  vae, params = WanVae(VaeConfig()), vae_shapes(VaeConfig())
  clip = jax.ShapeDtypeStruct((1, frames, 384, 672, 3), 'float32')
  found = jax.eval_shape(lambda p, x: vae.apply({'params': p}, x), params, clip)
  assert found[1].mean.shape == (1, latent, 24, 42, 48) and found[0].shape == clip.shape


@pytest.mark.parametrize('frames', [1, 5, 9, 13])
def test_a_clip_encoded_in_chunks_equals_the_whole(frames):
  clip = pixels(frames)
  whole = jax.jit(functools.partial(vae_lib.encode_pixels, CONFIG))(PARAMS, clip)
  chunks = list(vae_lib.encode_stream(CONFIG, PARAMS, clip))
  assert [c.shape[1] for c in chunks] == [1] * (1 + frames // 4)
  chex.assert_trees_all_close(np.concatenate(chunks, axis=1), whole, atol=ROUNDING)


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_latents_decoded_in_chunks_equal_the_whole(count):
  z = np.random.default_rng(2).normal(size=(2, count, 2, 1, CONFIG.latent_channels))
  z, carry, chunks = z.astype(np.float32), None, []
  for i in range(count):
    frames, carry = jitted('decode_chunk')(z[:, i : i + 1], carry)
    chunks.append(frames)
  assert [c.shape[1] for c in chunks] == [1, 4, 4, 4][:count]
  chex.assert_trees_all_close(np.concatenate(chunks, axis=1), decode(z), atol=ROUNDING)
  streamed = np.concatenate(list(vae_lib.decode_stream(CONFIG, PARAMS, z)), axis=1)
  assert np.abs(streamed - vae_lib.to_uint8(decode(z)).astype(int)).max() <= 1


def test_wan21_gives_in_chunks_what_it_gives_at_once():
  config = dataclasses.replace(CONFIG, residual=False)
  params = shrink.randomise(vae_shapes(config), 0)
  clip = pixels(9)
  whole = jax.jit(functools.partial(vae_lib.encode_pixels, config))(params, clip)
  assert whole.shape == (2, 3, 4, 2, config.latent_channels)  # 8 pixels per cell
  chunks = np.concatenate(list(vae_lib.encode_stream(config, params, clip)), axis=1)
  chex.assert_trees_all_close(chunks, whole, atol=ROUNDING)
  shown = jax.jit(functools.partial(vae_lib.decode_pixels, config))(params, whole)
  streamed = np.concatenate(list(vae_lib.decode_stream(config, params, whole)), axis=1)
  assert shown.shape == clip.shape
  assert np.abs(streamed - np.asarray(shown).astype(int)).max() <= 1


def test_frames_of_a_chunk_may_be_more_than_four(video):
  mean, carry = [], None
  for start, stop in ((0, 1), (1, 9)):
    moments, carry = jitted('encode_chunk')(video[:, start:stop], carry)
    mean.append(moments.mean)
  chex.assert_trees_all_close(np.concatenate(mean, axis=1), encode(video).mean, atol=ROUNDING)


@pytest.mark.parametrize(
  'stream, frames',
  [
    (vae_lib.encode_stream, lambda n: pixels(4 * n - 3)),
    (vae_lib.decode_stream, lambda n: np.ones((2, n, 2, 1, CONFIG.latent_channels), np.float32)),
  ],
  ids=['encode', 'decode'],
)
def test_what_is_alive_in_a_stream_does_not_grow_with_the_clip(stream, frames):
  params = jax.device_put(PARAMS)

  def most_alive(count):
    before, most = _alive(), 0
    for chunk in stream(CONFIG, params, frames(count)):
      chunk.block_until_ready()
      most = max(most, _alive() - before)
    return most

  most_alive(2)  # compiles
  assert most_alive(3) == most_alive(7) > 0


def _alive():
  return sum(a.nbytes for a in jax.live_arrays())


def test_the_encoder_runs_without_the_decoder_and_in_bfloat16():
  clip = pixels(5)
  part = {name: PARAMS[name] for name in ('encoder', 'quant')}
  encode_part = jax.jit(functools.partial(vae_lib.encode_pixels, CONFIG))
  exact = encode_part(part, clip)
  rough = encode_part(jax.tree.map(lambda a: a.astype(jnp.bfloat16), part), clip)
  assert rough.dtype == exact.dtype == np.float32
  chex.assert_trees_all_close(rough, exact, atol=BFLOAT16 * np.abs(exact).max())


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
  with pytest.raises(ValueError, match=message):
    vae_lib.encode_stream(CONFIG, PARAMS, np.zeros(shape, np.uint8))


def test_stills_and_clips_have_the_same_parameters():
  def shapes(frames):
    video = jax.ShapeDtypeStruct((1, frames, 16, 16, 3), 'float32')
    return jax.eval_shape(WanVae(CONFIG).init, jax.random.key(0), video)

  assert shapes(1) == shapes(5)


@pytest.mark.parametrize('mean', [WAN_MEAN, WAN_STD], ids=['wan', 'tuna'])
def test_normalising_and_its_inverse(mean):
  config = VaeConfig(latent_mean=mean)
  z = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
  back = vae_lib.denormalize(config, vae_lib.normalize(config, z))
  np.testing.assert_allclose(back, z, atol=ROUNDING)
  np.testing.assert_allclose(vae_lib.normalize(config, np.float32(mean)), 0, atol=ROUNDING)


def test_official_statistics_are_the_std_twice():
  z = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
  official = vae_lib.normalize(VaeConfig(latent_mean=WAN_STD), z)
  plain = vae_lib.normalize(VaeConfig(), z)  # docs/architecture.md 2.5: z + mean / std - 1
  shifted = plain + np.float32(WAN_MEAN) / np.float32(WAN_STD) - 1
  np.testing.assert_allclose(official, shifted, atol=ROUNDING)


def test_no_statistics_leave_latents_as_they_are():
  z = np.ones((2, CONFIG.latent_channels))
  assert vae_lib.normalize(CONFIG, z) is z and vae_lib.denormalize(CONFIG, z) is z


def test_the_posterior_is_drawn_in_raw_latents_unless_official():
  moments = vae_lib.Moments(jnp.zeros((1, 48)), jnp.full((1, 48), 2 * np.log(3.0)))
  draw = functools.partial(vae_lib.posterior_sample, VaeConfig(), moments, jnp.ones((1, 48)))
  mean, std = np.float32(WAN_MEAN), np.float32(WAN_STD)
  np.testing.assert_allclose(draw()[0], (3 - mean) / std, rtol=ROUNDING)
  np.testing.assert_allclose(draw('official')[0], 3 - mean / std, rtol=ROUNDING)


def test_bytes_survive_the_way_to_floats_and_back():
  every = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(vae_lib.to_uint8(vae_lib.to_float(every)), every)
  np.testing.assert_array_equal(vae_lib.to_uint8(jnp.array([-9.0, 9.0])), [0, 255])
