"""Pictures and answers of every design, through the one generator."""

import dataclasses

import numpy as np
import pytest

from tests import shrink
from tests.models import designs
from tests.sample import small
from tuna_jax.config import DESIGNS
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.segments import Image, layout
from tuna_jax.data.tasks import conversation
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sample import showo2
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.image import Drawing
from tuna_jax.sample.prompt import collate, strides
from tuna_jax.sample.text import generate_text


def generator(design, **changes):
  config = designs.config(design)
  if config.vae is not None:
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, residual=False))
  config = dataclasses.replace(config, **changes)
  vae = config.vae and shrink.randomise(vae_shapes(config.vae), 1)
  params = shrink.randomise(tuna_shapes(config), 0)
  media = MediaConfig(image_size='32x48')
  return Generator(config, params, vae, small.tokenizer(), batch_size=2, media=media)


def pixels(made):
  size = (16, 32) if made.config.vae is None else (32, 48)
  return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize('design', DESIGNS)
def test_a_design_draws_and_edits_pictures_of_the_size_asked_for(design):
  made = generator(design)
  source = pixels(made)
  drawn = made.image(['a red ball', ''], size=source.shape[:2], points=3)
  assert [picture.pixels.shape for picture in drawn] == [source.shape] * 2
  alone = made.image('a red ball', size=source.shape[:2], points=3)
  np.testing.assert_allclose(alone.pixels.astype(int), drawn[0].pixels.astype(int), atol=1)
  edited = made.edit(source, 'make it blue', size=source.shape[:2], points=2)
  assert edited.pixels.shape == source.shape


@pytest.mark.parametrize('design', [name for name, row in DESIGNS.items() if row.pixels])
def test_a_picture_of_pixels_comes_back_as_it_was(design):
  made = generator(design)
  picture = pixels(made)
  np.testing.assert_array_equal(made.decode(made.encode([picture[None]]))[0][0], picture)


@pytest.mark.parametrize(
  'design, scale, grid',
  [('late_fusion', 7.5, (50, 3.0, 'euler')), ('pixel_encoder', 4.0, (51, 1.0, 'heun'))],
)
def test_what_is_not_asked_for_is_as_published_for_the_design(design, scale, grid):
  made, picture = generator(design), {'size': (32, 32), 'points': 3}
  assert made.image('a ball', **picture).info['guidance']['scale'] == scale
  how = Drawing.of(design, 't2i')
  assert (how.points, how.shift, how.solver) == grid
  asked = Drawing.of(design, 'edit', 2.0, 9, 2.0, 'euler')
  assert (asked.guidance.scale, asked.points, asked.shift, asked.solver) == (2.0, 9, 2.0, 'euler')


@pytest.mark.parametrize('compat', ['clean', 'official'])
def test_show_o2_is_asked_as_it_was_trained_or_as_its_scripts_ask(compat):
  made = generator('late_fusion', compat=compat)
  picture = Image(made.encode([pixels(made)[None]])[0])
  if compat == 'official':
    plan = showo2.question(made.tokenizer, picture, 'what is this')
  else:
    turns = [('user', '<image>\nwhat is this')]
    plan = conversation(made.tokenizer, turns, [picture], system=showo2.SYSTEM, header=True)
  example = layout(plan, made.tokenizer, strides(made.config))
  if compat == 'official':
    example = showo2.shift_span(example, example.cells)
    eoi = int(np.flatnonzero(example.tokens == made.tokenizer.eoi)[0])
    assert example.kv_limit[eoi - 1] == eoi  # the span has moved by one
  prompts = collate([example], made.config.token_dim)
  count = {'eos': made.tokenizer.eos, 'max_new_tokens': 6}
  wanted = generate_text(made.config, made.params, prompts, **count)[0]
  found = made.text('what is this', images=pixels(made), max_new_tokens=6)
  assert found == made.tokenizer.decode(wanted)
