"""Every design trains by the three stage files: tokens of four cells or of a patch, masked patches,
noisy context, and what its authors set otherwise."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import shrink
from tests.models import designs
from tuna_jax.batch import empty, to_cells
from tuna_jax.config import DESIGNS, UserError
from tuna_jax.data.segments import Image, Video, layout
from tuna_jax.data.tokenizer import Letters
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.sample.open import open_generator
from tuna_jax.train import encoder, loop, state, step
from tuna_jax.train.config import TrainConfig
from tuna_jax.weights import store

OTHERS = [design for design in DESIGNS if design != 'cascade']
PIXEL = designs.config('pixel')
KEY = jax.random.key(3)


def config(model=PIXEL, **changes) -> TrainConfig:
  sizes = {'rows': 3, 'length': 48, 'visual': 24, 'images': 4}
  return TrainConfig(model, 'stage2', 10, **{**sizes, **changes})


@pytest.mark.parametrize('design', OTHERS)
def test_the_step_of_a_tiny_design_takes_its_rows(design):
  run = shrink.real('stage2', f'tiny-{design}')
  batch = empty(*run.sizes)
  make = functools.partial(step.train_step, config=run)
  made, metrics = jax.eval_shape(make, state.abstract_state(run), batch, KEY)
  assert made.step.shape == () and {'ntp', 'flow'} <= metrics.keys()


@pytest.mark.parametrize('design', OTHERS)
def test_rows_of_a_tiny_design_hold_what_the_world_shows(design):
  run = shrink.real('stage2', f'fast-{design}')
  clip = layout([Video(np.zeros((9, 64, 64, 3), np.uint8))], Letters(), run.model.strides)
  picture = layout([Image(np.zeros((1, 64, 64, 3), np.uint8))], Letters(), run.model.strides)
  assert picture.cells == 16 and clip.cells == (144 if DESIGNS[design].pixels else 48)
  assert clip.cells <= run.visual and clip.length + 40 < run.length
  tasks = {task for _, weights in run.data.phases for task, _ in weights}
  assert ('t2v' in tasks) == (design != 'decoupled') and 'edit' in tasks


def test_the_encoder_of_late_fusion_gives_tokens_of_four_cells(tmp_path):
  model = designs.config('late_fusion')
  store.save(tmp_path / 'vae', model.vae, shrink.randomise(vae_shapes(model.vae), 0))
  run = config(model, vae=str(tmp_path / 'vae'))
  pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64, 3), np.uint8)
  one = jax.devices()[:1]
  cells = encoder.load(run.vae, run.encoder, one)
  tokens = encoder.of_run(run, one)
  assert tokens.digest != cells.digest
  pixels = pixels.repeat(cells.group(pixels.shape[1:]), axis=0)
  found = tokens(pixels)
  assert found.shape[2:] == (2, 2, model.token_dim)
  np.testing.assert_array_equal(to_cells(found, model.patch, model.layout), cells(pixels))


def test_tokens_of_decoupled_hold_pixels_and_latents_and_a_clip_is_refused(tmp_path):
  model = designs.config('decoupled')
  store.save(tmp_path / 'vae', model.vae, shrink.randomise(vae_shapes(model.vae), 0))
  run = config(model, vae=str(tmp_path / 'vae'))
  one = jax.devices()[:1]
  made, cells = encoder.of_run(run, one), encoder.load(run.vae, run.encoder, one)
  shape = (made.group((1, 64, 64, 3)), 1, 64, 64, 3)
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  found = made(pixels)
  assert found.shape[2:] == (2, 2, model.token_dim)
  seen = to_cells(found[..., : model.seen_dim], 32, 'patch')
  np.testing.assert_allclose(seen, pixels / 127.5 - 1.0, atol=1e-6)
  drawn = to_cells(found[..., model.seen_dim :], model.patch, model.layout)
  np.testing.assert_array_equal(drawn, cells(pixels))
  with pytest.raises(UserError, match='a clip of 5 frames: the design .decoupled. takes pictures'):
    made.compile([(5, 64, 64, 3)])


def test_tokens_of_a_design_in_pixels_are_the_picture():
  pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 16, 16, 3)
  found = encoder.of_run(config())(pixels)
  assert found.shape == (1, 1, 8, 8, 12)
  cells = to_cells(found, PIXEL.patch, PIXEL.layout)
  np.testing.assert_allclose(cells, pixels / 127.5 - 1.0, atol=1e-6)
  assert cells.min() == -1 and cells.max() == 1


def test_a_share_of_the_patches_of_each_picture_is_masked():
  batch = designs.batch(PIXEL, ('edit', 'vqa'), ('vqa',), ('edit',))
  draw = jax.jit(step.draw, static_argnums=2)
  run = config(masked=(0.5, 0.5))
  first, second = (np.asarray(draw(batch, jax.random.key(n), run).masked) for n in (0, 1))
  for row, picture in ((0, 1), (0, 2), (0, 3), (1, 1), (2, 2)):
    assert first[row][batch.image[row] == picture].sum() == 3  # of six
  assert not first[batch.image == 0].any() and (first != second).any()
  assert not np.asarray(draw(batch, KEY, config(masked=(-0.7, 0.1))).masked).any()  # of six, none


def test_the_mask_token_learns_where_patches_are_masked():
  batch = designs.batch(PIXEL, ('edit', 'vqa'), ('vqa',), ('edit',))
  run = config(masked=(0.5, 0.5))
  params = shrink.randomise(state.abstract_state(run).params, 0)
  loss = lambda p, run: step.total_loss(
    step.loss_sums(p, batch, step.draw(batch, KEY, run), config=run), {'ntp': 1.0, 'flow': 1.0}, run
  )
  gradient = jax.jit(jax.grad(loss), static_argnums=1)(params, run)
  assert np.abs(gradient['patches']['mask_token']).max() > 0


def test_pictures_asked_about_are_a_little_noisy_and_sources_of_edits_are_not():
  batch = designs.batch(PIXEL, ('edit', 'vqa'), ('vqa',), ('edit',))
  draw = jax.jit(step.draw, static_argnums=2)
  t = np.asarray(draw(batch, KEY, config(context_noise=(1.0, 0.1))).t)
  asked = [t[0, 2], t[1, 0]]
  assert t[0, 0] == t[2, 0] == 1 and len(set(asked)) == 2
  assert all(0.9 <= time < 1 for time in asked)
  plain = draw(batch, KEY, config())
  np.testing.assert_array_equal(plain.t[batch.target], t[batch.target])
  assert (np.asarray(plain.t)[~batch.target] == 1).all()


def test_masking_is_refused_where_there_is_no_mask_token():
  with pytest.raises(UserError, match="'late_fusion' has none"):
    config(designs.config('late_fusion'), masked=(0.0, 0.3))
  with pytest.raises(UserError, match='in order'):
    config(masked=(0.3, -0.7))


def test_published_designs_train_as_their_authors_did():
  showo2, tuna2 = (shrink.real('stage1', size) for size in ('showo2-1.5b', 'tuna-2-7b'))
  assert [name for name, rate in showo2.optimizer.groups if not rate] == ['decoder/.*', 'vision/.*']
  assert showo2.time_shift == pytest.approx(1.786457, abs=1e-6) and showo2.ntp_coeff == 0.2
  assert showo2.data.media.image_size == '432'
  assert tuna2.optimizer.groups == (('.*', 1.0),) and tuna2.masked == (-0.7, 0.3)
  assert (tuna2.time_shift, tuna2.ntp_coeff, tuna2.context_noise) == (1.0, 1.0, (0.1, 0.1))
  assert shrink.real('stage2', 'showo2-1.5b').ntp_coeff == 1.0
  tasks = {
    task for _, weights in shrink.real('stage3', 'tuna-r-7b').data.phases for task, _ in weights
  }
  assert 't2i' in tasks and 't2v' not in tasks


@pytest.mark.slow
@pytest.mark.parametrize('design', OTHERS)
def test_the_stages_hand_a_design_over_and_the_last_draws_and_answers(design, tmp_path):
  before = ''
  for stage in shrink.STAGES:
    real = shrink.real(stage, f'tiny-{design}')
    run = shrink.stage(stage, f'tiny-{design}', visual=160, length=256, init_from=before)
    if run.model.vae is not None and not (tmp_path / 'vae').exists():
      store.save(tmp_path / 'vae', run.model.vae, shrink.randomise(vae_shapes(run.model.vae), 0))
    vae = str(tmp_path / 'vae') if run.model.vae else ''
    before = str(tmp_path / stage)
    assert (run.model.patch, run.model.strides) == (real.model.patch, real.model.strides)
    loop.train(dataclasses.replace(run, vae=vae), before, jax.devices()[:1])
  generator = open_generator(before, batch_size=1)
  drawn = np.asarray(generator.image('a red circle', points=2))
  assert drawn.shape == (64, 64, 3) and drawn.std() > 0
  assert isinstance(generator.text('what is this?', images=[drawn], max_new_tokens=3), str)
