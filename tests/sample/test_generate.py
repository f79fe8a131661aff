"""The generator end to end, on a tiny random model: strings, arrays and pictures in, text and
pictures out.
"""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from tests.sample import small
from tuna_jax import sharding
from tuna_jax.data.media import MediaConfig, MediaError
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.sample import requests
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.image import Guidance

FEW = {'points': 3, 'guidance': 2.0}
# two batches of `generator`
PROMPTS = ['a red ball', 'make it blue', 'what', 'this', 'is', '', 'red', 'a ball']


@functools.cache
def generator(batch_size=4):
  return Generator(
    small.CONFIG,
    small.params(),
    small.vae_params(),
    small.tokenizer(),
    tasks=TaskConfig(system=None),
    media=MediaConfig('32', '32', 5),
    batch_size=batch_size,
  )


def pixels(height=32, width=32, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_picture_is_the_same_alone_and_in_a_batch_of_many():
  many = generator().image(PROMPTS, seed=7, **FEW)
  assert [p.info['seed'] for p in many] == list(range(7, 15))
  alone = generator().image('make it blue', seed=8, **FEW)
  # Other shapes round other sums: a level of 255 at most.
  assert np.abs(np.asarray(alone).astype(int) - np.asarray(many[1])).max() <= 1
  assert len({p.pixels.tobytes() for p in many}) == 8


def test_a_second_call_with_other_prompts_and_settings_compiles_nothing():
  generator().image(PROMPTS, **FEW)
  others = [f'{n} blue' for n in range(8)]
  with small.compiled() as programs:
    generator().image(others, points=3, guidance=4.0, shift=1.0, negative='red', seed=range(8))
    assert not programs
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert programs  # the listener does hear


@pytest.mark.slow
def test_a_batch_spread_over_devices_draws_and_says_what_one_device_does():
  g, prompts = generator(), PROMPTS[:4]
  mesh = sharding.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
  params = jax.device_put(g.params, sharding.shardings(g.params, mesh))
  spread = Generator(
    g.config, params, g.vae_params, g.tokenizer, tasks=g.tasks, media=g.media, batch_size=4
  )
  with jax.set_mesh(mesh):
    pictures = spread.image(prompts, **FEW)
    answers = spread.text(prompts, max_new_tokens=6)
  for ours, theirs in zip(pictures, g.image(prompts, **FEW)):
    assert (
      np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= 1
    )  # other sums, a level of 255 at most
  assert answers == g.text(prompts, max_new_tokens=6)


def test_an_edit_keeps_the_size_of_its_source():
  out = generator().edit(Image.fromarray(pixels(30, 17)), 'make it blue', **FEW)
  assert out.pixels.shape == (32, 16, 3)


@pytest.mark.parametrize(
  'given, area, size, wanted',
  [
    ((500, 400), '512', None, (496, 400)),
    ((900, 450), '512', None, (704, 368)),
    ((900, 450), '1024', None, (896, 448)),
    ((900, 450), '512', '1024', (1344, 768)),
    ((450, 800), '1024', '512', (384, 672)),
  ],
)
def test_a_source_keeps_its_size_up_to_that_of_its_class_or_takes_the_nearest_bucket(
  given, area, size, wanted
):
  source = requests.read_source(pixels(*given), MediaConfig(image_size=area), size, 16)
  assert source.shape == (1, *wanted, 3)


def test_an_edit_sees_every_source_and_its_instruction():
  sources = [pixels(seed=1), pixels(seed=2)]
  base, swapped, told = generator().edit(
    [sources, sources[::-1], sources],
    ['make it blue', 'make it blue', 'a red ball'],
    seed=[1, 1, 1],
    **FEW,
  )
  assert (base.pixels != swapped.pixels).any()
  assert (base.pixels != told.pixels).any()


def test_a_video_has_the_frames_it_was_asked_for():
  clip = generator().video('a red ball', frames=5, size='16', **FEW)
  assert clip.pixels.shape == (5, 16, 16, 3)


def test_questions_take_pictures_clips_and_conversations():
  g = generator()
  image, clip = pixels(), np.stack([pixels(seed=n) for n in range(6)])
  answers = g.text(
    ['what is this', 'what is this', 'is this blue'],
    [image, pixels(seed=9), [image]],
    max_new_tokens=6,
  )
  assert len(answers) == 3
  assert answers[0] == g.text('what is this', images=[image], max_new_tokens=6)
  turns = [
    {'role': 'user', 'content': [image, 'what is this']},
    {'role': 'assistant', 'content': 'a red ball'},
    {'role': 'user', 'content': 'is it blue'},
  ]
  assert isinstance(g.text(turns, max_new_tokens=6), str)
  assert isinstance(
    g.text('what is this', images=[image, pixels(16, 32), clip], max_new_tokens=6), str
  )
  assert isinstance(g.text('what is this', max_new_tokens=6), str)
  assert ''.join(g.stream('what is this', [image], max_new_tokens=6)) == answers[0]


def test_picture_then_text_then_picture_in_one_conversation():
  g = generator()
  talk = [('user', 'a red ball')]
  first = g.image(talk, **FEW)
  talk += [('assistant', [first]), ('user', 'what is this')]
  talk += [('assistant', g.text(talk, max_new_tokens=4)), ('user', 'make it blue')]
  second = g.image(talk, **FEW)
  other = g.image([*talk[:1], ('assistant', [pixels(seed=5)]), *talk[2:]], **FEW)
  assert (second.pixels != other.pixels).any()  # the picture drawn before is seen


@pytest.mark.parametrize(
  'ask, says',
  [
    (lambda g: g.image('x', guidance=0), 'guidance scale=0'),
    (lambda g: g.image('x', size='40x32'), 'multiples of 16'),
    (lambda g: g.image('x', points=1), 'points=1'),
    (lambda g: g.image('x', solver='eular'), "solver 'eular'"),
    (lambda g: g.image('x', seed=-1), 'seed -1'),
    (lambda g: g.image('x', guidance=Guidance(2.0, image_scale=2.0)), 'image_scale'),
    (lambda g: g.image('x ' * 40_000), 'max_length'),
    (lambda g: g.image(['x', 3]), 'request 1: expected text'),
    (lambda g: g.video('x', frames=6), 'for example 5 or 9'),
    (lambda g: g.edit([], 'x'), 'no source'),
    (lambda g: g.edit([[pixels()]], ['x', 'y']), '2 requests need 2'),
    (lambda g: g.text(''), 'empty question'),
    (lambda g: g.text('x', max_new_tokens=0), 'max_new_tokens=0'),
    (lambda g: g.text([('usr', 'x')]), "role 'usr'.*user"),
    (lambda g: g.text('x <image>'), 'marks'),
  ],
)
def test_what_cannot_be_done_is_said_clearly(ask, says):
  with pytest.raises(ValueError, match=says):
    ask(generator())


def test_an_unreadable_picture_is_named(tmp_path):
  (tmp_path / 'broken.png').write_bytes(b'no picture')
  for path in ('broken.png', 'absent.png'):
    with pytest.raises(MediaError, match=path):
      generator().text('x', images=[str(tmp_path / path)])
