"""The encoder on the devices of a host gives the latents of `encode_pixels`."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from tests import shrink
from tuna_jax import tree
from tuna_jax.config import VaeConfig
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.vae import encode_pixels
from tuna_jax.train import encoder
from tuna_jax.train.config import EncoderConfig
from tuna_jax.weights import store

ROUNDING = 2e-5  # of float32, in another order
BFLOAT16 = 0.03  # of the spread of latents, root mean square: 8 bits through some 20 layers
SETTINGS = EncoderConfig(group_mb=0.05)  # four pictures of 64x64 on a device


@pytest.fixture(scope='module')
def folder():
  return f'{shrink.assets()}/vae'


@pytest.fixture(scope='module')
def whole(folder):
  """uint8 [n, F, H, W, 3] -> latents, with all parameters of the VAE and whole clips."""
  config, params = store.load_vae(folder)
  run = jax.jit(lambda params, pixels: encode_pixels(config, params, pixels))
  return lambda pixels: np.asarray(run(params, pixels))


def media(count, frames, seed=0, side=64):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, frames, side // 16, side // 16, 3), dtype=np.uint8)
  return coarse.repeat(16, axis=2).repeat(16, axis=3)


@pytest.mark.parametrize('frames', [1, 5, 13])
def test_groups_over_eight_devices_give_the_latents_of_the_whole_vae(folder, whole, frames):
  made = encoder.load(folder, SETTINGS, jax.devices())
  pixels = media(made.group((frames, 64, 64, 3)), frames)
  assert len(pixels) == (32 if frames == 1 else 8)
  np.testing.assert_allclose(made(pixels), whole(pixels), atol=ROUNDING)


def test_bfloat16_stays_near_float32(folder, whole):
  made = encoder.load(folder, dataclasses.replace(SETTINGS, dtype='bfloat16'), jax.devices()[:1])
  pixels = media(made.group((9, 64, 64, 3)), 9)
  wanted, found = whole(pixels), made(pixels)
  assert found.dtype == np.float32
  error = np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()
  assert 0 < error < BFLOAT16


def test_the_decoder_is_not_read(folder, tmp_path):
  config, leaves = store.open_vae(folder)
  kept = {n: a for n, a in leaves.items() if n.partition('/')[0] in encoder.PARTS}
  store.save(tmp_path / 'vae', config, tree.unflatten(kept))
  one = encoder.load(tmp_path / 'vae', SETTINGS, jax.devices()[:1])
  assert one.digest == encoder.load(folder, SETTINGS, jax.devices()[:2]).digest


def test_programs_do_not_depend_on_the_length_of_a_clip():
  needed = [set(encoder.programs(VaeConfig(), 4, (f, 384, 672, 3))) for f in (13, 49, 121)]
  assert needed[0] == needed[1] == needed[2] and len(needed[0]) == 2


def test_groups_are_sized_by_bytes():
  count = lambda shape: encoder.group(VaeConfig(), EncoderConfig(group_mb=3.0), 8, shape)
  assert count((1, 512, 512, 3)) == 8 * 4 and count((1, 1024, 1024, 3)) == 8
  assert count((13, 384, 672, 3)) == count((121, 384, 672, 3)) == 8


def test_a_digest_follows_parameters_statistics_and_type(folder):
  config, leaves = store.open_vae(folder)
  params = {part: {} for part in encoder.PARTS}
  params |= tree.unflatten({n: leaves[n][()] for n in leaves if n.partition('/')[0] in params})
  first = encoder.digest(config, params, 'float32')
  assert encoder.digest(config, params, 'float32') == first
  std = tuple(1.5 for _ in range(config.latent_channels))
  other = dataclasses.replace(config, latent_mean=std, latent_std=std)
  params['quant']['bias'] = params['quant']['bias'] + 1e-3
  changed = [
    encoder.digest(config, params, 'float32'),
    encoder.digest(config, params, 'bfloat16'),
    encoder.digest(other, params, 'float32'),
  ]
  assert len({first, *changed}) == 4


def test_every_shape_that_a_run_draws_is_compiled():
  data = DataConfig(phases=((0.0, (('t2i', 1.0), ('t2v', 0.0))),))
  assert len(encoder.shapes_of(data, ('t2i', 't2v'))) == 5  # the sizes of class 512
  data = DataConfig(phases=((0.0, (('t2i', 1.0), ('t2v', 1.0))),))
  assert (13, 384, 672, 3) in encoder.shapes_of(data, ('t2i', 't2v'))
  assert not encoder.shapes_of(DataConfig(), ('text',))


def test_the_next_batch_is_encoded_while_a_step_runs():
  calls = threading.Semaphore(0)

  def encode(pixels):
    calls.release()
    return pixels[:, ::4, ::16, ::16] / np.float32(255)

  data = DataConfig(phases=((0.0, (('t2i', 1.0),)),), size=1000, prefetch=1, latent_cache_mb=0)
  data = dataclasses.replace(data, media=dataclasses.replace(data.media, image_size='64'))
  tokenizer = Tokenizer.train(['a red ball'], 300)
  run = Pipeline(
    data, tokenizer, encode=encode, group=99, strides=(4, 16), sizes=(2, 256, 64, 4, 3), seed=0
  )
  next(run)
  # The step of batch 0 runs now; nothing asks for batch 1, and yet it is encoded.
  assert all(calls.acquire(timeout=60) for _ in range(2))
  assert run.counts()['batches'] == 1
  run.close()
