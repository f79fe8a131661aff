"""The vision tower: each frame for itself, positions resized as published."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import shrink
from tests.models import small
from tuna_jax.models.vision import Vision, cubic_weights, position_weights


@pytest.fixture(scope='module')
def run():
  batch = small.batch(('t2v', 'vqa'))
  module = Vision(small.CONFIG)
  params = shrink.randomise(
    jax.eval_shape(
      module.init, jax.random.key(0), batch.latents, batch.coords, batch.image, batch.grid
    ),
    3,
  )
  apply = jax.jit(module.apply)

  def call(latents=batch.latents):
    return np.asarray(apply(params, latents, batch.coords, batch.image, batch.grid))

  call.batch = batch
  return call


@pytest.mark.parametrize('image, frame', [(1, 0), (1, 2), (2, 0)])
def test_a_frame_attends_to_itself_alone(run, image, frame):
  batch = run.batch
  own = (batch.image[0] == image) & (batch.coords[0, :, 0] == frame)
  latents = batch.latents.copy()
  latents[0, np.flatnonzero(own)[0]] += 2  # one cell reaches every cell of its frame, and no other
  changed = (run(latents) != run())[0].any(-1)
  assert (changed == own).all()


def test_equal_frames_at_equal_places_look_equal(run):
  batch = run.batch
  latents = batch.latents.copy()
  clip = np.flatnonzero(batch.image[0] == 1).reshape(3, 4)
  latents[0, clip[1]] = latents[0, clip[0]]
  y = run(latents)[0]
  np.testing.assert_allclose(y[clip[1]], y[clip[0]], atol=1e-5)  # no temporal position
  assert not np.allclose(y[clip[2]], y[clip[0]], atol=1e-2)


def test_pictures_of_a_row_do_not_see_each_other_through_the_tokens_of_dinov3():
  vision = dataclasses.replace(small.CONFIG.vision, encoder='dinov3', final_norm=True, head_dim=8)
  config = dataclasses.replace(small.CONFIG, vision=vision)
  latents = np.random.default_rng(0).normal(size=(1, 12, config.token_dim)).astype(np.float32)
  places = np.indices((1, 2, 3)).reshape(3, -1).T
  coords, grid = np.concatenate([places, places])[None], np.int32([[[1, 2, 3], [1, 2, 3]]])
  image = np.repeat(np.int32([[1, 2]]), 6, axis=1)
  module = Vision(config)
  shapes = jax.eval_shape(module.init, jax.random.key(0), latents, coords, image, grid)
  apply, params = jax.jit(module.apply), shrink.randomise(shapes, 3)
  both = np.asarray(apply(params, latents, coords, image, grid))
  image[:, 6:], grid[:, 1:] = 0, 0  # the second picture becomes padding
  alone = np.asarray(apply(params, latents, coords, image, grid))
  np.testing.assert_allclose(both[:, :6], alone[:, :6], atol=1e-5)
  params['params']['cls_token'] = -params['params']['cls_token']
  assert np.abs(apply(params, latents, coords, image, grid) - alone)[:, :6].max() > 1e-4


def test_a_grid_of_the_tables_own_size_takes_the_table_as_it_is():
  weights = cubic_weights(np.arange(32), np.full(32, 32), 32)
  np.testing.assert_array_equal(weights, np.eye(32))


def test_the_cubic_taps_are_the_published_ones():
  # From 32 to 64 cells, output 3 lies at 1.25: taps 0..3 (docs/architecture.md 3).
  weights = np.asarray(cubic_weights(np.array([3]), np.array([64]), 32))[0]
  np.testing.assert_allclose(
    weights[:4], [-0.10546875, 0.87890625, 0.26171875, -0.03515625], atol=1e-7
  )
  assert not weights[4:].any()


@pytest.mark.parametrize('size', [1, 3, 4, 7, 64])
def test_a_constant_table_stays_constant_at_every_size(size):
  np.testing.assert_allclose(
    np.asarray(cubic_weights(np.arange(size), np.full(size, size), 5)).sum(-1), 1, atol=1e-6
  )


def test_rows_and_columns_are_not_confused():
  coords = np.array([[[0, 1, 2]]])
  weights = np.asarray(position_weights(coords, np.array([[[4, 4]]]), 4)).reshape(4, 4)
  assert weights[1, 2] == 1 and weights.sum() == 1
