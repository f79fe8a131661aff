"""The tiny VAE's training: stills and clips, measured latents, a directory that others load."""

import dataclasses
import functools
import importlib
import json
import os
import signal

import jax
import numpy as np
import pytest
from tuna_jax.configs import vae as vae_config

from tests import shrink
from tuna_jax import stopping
from tuna_jax.data.media import MediaConfig
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.models.vae import encode_pixels
from tuna_jax.toy import train_vae, world
from tuna_jax.train import guard
from tuna_jax.weights import fresh, store


def config(**changes):
  real = vae_config.from_config_dict(importlib.import_module('tuna_jax.configs.vae').get_config())
  data = dataclasses.replace(
    real.data, size=50, media=MediaConfig(image_size='64', video_size='64', frames=5)
  )
  return dataclasses.replace(
    real,
    model=shrink.vae(real.model),
    data=data,
    steps=2,
    stills=2,
    clips=1,
    clips_from=0.0,
    clip_share=0.5,
    measured=32,
    **changes,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('vae')
  return workdir, *train_vae.train_vae(config(), str(workdir))


def test_it_ends_with_a_directory_that_loads(trained):
  workdir, model, params = trained
  found, loaded = store.load_vae(str(workdir))
  assert found == model
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])['step'] == 2


def test_its_latents_are_measured_on_the_training_data(trained):
  _, model, params = trained
  media = train_vae.Media(config().data, config().seed)
  pixels = [media.batch(0, 32, False), media.batch(0, 8, True)]
  cells = []
  for x in pixels:
    latents = jax.jit(functools.partial(encode_pixels, model))(params, x)
    cells.append(np.asarray(latents).reshape(-1, model.latent_channels))
  cells = np.concatenate(cells)
  np.testing.assert_allclose(cells.mean(0), 0, atol=1e-2)
  np.testing.assert_allclose(cells.std(0), 1, atol=1e-2)


def test_a_finished_vae_is_not_trained_again(trained):
  workdir, model, _ = trained
  before = (workdir / 'metrics.jsonl').read_text()
  assert train_vae.train_vae(config(), str(workdir))[0] == model
  assert (workdir / 'metrics.jsonl').read_text() == before


def test_reconstruction_gives_pixels_of_the_same_shape(trained):
  _, model, params = trained
  pixels = train_vae.Media(config().data, 0).batch(0, 2, False)
  found = train_vae.reconstruct(model, params, pixels)
  assert found.dtype == np.uint8 and found.shape == pixels.shape


def test_pixels_are_a_function_of_seed_and_step():
  one, two = train_vae.Media(config().data, 0), train_vae.Media(config().data, 0)
  two.batch(0, 2, True)
  np.testing.assert_array_equal(one.batch(3, 2, False), two.batch(3, 2, False))
  assert (one.batch(3, 2, False) != one.batch(4, 2, False)).any()
  assert one.batch(0, 2, True).shape == (2, world.FRAMES, 64, 64, 3)
  assert one.batch(0, 2, False).shape == (2, 1, 64, 64, 3)


def test_the_busiest_stills_are_kept():
  media = train_vae.Media(config().data, 0)
  many, few = media.batch(5, 6, False), media.batch(5, 2, False, 3)
  spread = sorted((x.std() for x in many), reverse=True)
  np.testing.assert_allclose([x.std() for x in few], spread[:2])


def test_a_mixture_without_pictures_is_refused():
  data = dataclasses.replace(config().data, phases=((0.0, (('text', 1.0),)),))
  with pytest.raises(ValueError, match='shapes: no source of pictures'):
    train_vae.Media(data, 0)


def test_a_vae_that_was_stopped_goes_on_to_the_same_weights(trained, tmp_path, monkeypatch):
  _, model, params = trained
  draw = train_vae.Media.batch

  def stop_before_the_second_step(media, step, *rest):
    if step:
      os.kill(os.getpid(), signal.SIGTERM)
    return draw(media, step, *rest)

  with (
    monkeypatch.context() as patch,
    pytest.raises(stopping.Stopped, match='stopped at step 1 of 2; the same command'),
  ):
    patch.setattr(train_vae.Media, 'batch', stop_before_the_second_step)
    train_vae.train_vae(config(), str(tmp_path))
  assert not (tmp_path / 'config.json').exists()
  found, again = train_vae.train_vae(config(), str(tmp_path))
  assert found == model and not (tmp_path / 'stopped').exists()
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_an_update_of_the_vae_that_is_not_finite_is_not_kept_and_many_end_the_training(
  tmp_path, monkeypatch
):
  start, update = train_vae._program(dataclasses.replace(config(), steps=1))
  state = start(fresh.init(vae_shapes(config().model), 0))
  before = jax.tree.map(np.array, state)
  pixels = np.zeros((config().stills, 1, 64, 64, 3), np.uint8)
  state, _, kept = update(state, float('nan'), pixels, jax.random.key(0))
  assert not kept
  jax.tree.map(np.testing.assert_array_equal, state, before)
  with pytest.raises(guard.Diverged, match='updates=2 in a row up to step 2 were not finite'):
    bad = dataclasses.replace(config(), lr=float('nan'), updates=2, steps=9)
    train_vae.train_vae(bad, str(tmp_path / 'a'))
  with pytest.raises(guard.Diverged, match='the update of the last step was not finite'):
    train_vae.train_vae(dataclasses.replace(bad, steps=1), str(tmp_path / 'b'))
  assert not list(tmp_path.glob('*/config.json'))


def test_a_vae_training_goes_on_with_what_it_began_alone(trained, tmp_path, monkeypatch):
  draw = train_vae.Media.batch

  def stop(media, step, *rest):
    if step:
      os.kill(os.getpid(), signal.SIGHUP)
    return draw(media, step, *rest)

  with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
    patch.setattr(train_vae.Media, 'batch', stop)
    train_vae.train_vae(config(), str(tmp_path))
  with pytest.raises(ValueError, match='this training began otherwise .seed 0 -> 1.'):
    train_vae.train_vae(dataclasses.replace(config(), seed=1), str(tmp_path))
