"""The cached sampler against the whole sequence run again at every step."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sample import small
from tuna_jax import flow
from tuna_jax.data import tasks
from tuna_jax.data.segments import Image, Video, layout
from tuna_jax.models.tuna import Tuna
from tuna_jax.sample import image as drawing
from tuna_jax.sample.image import Drawing, Guidance
from tuna_jax.sample.prompt import collate, split, strides
from tuna_jax.tools.xla_cpu import quick_jit

TOLERANCE = 1e-5  # of the largest latent, after the whole ODE in float32
CHANNELS = small.CONFIG.vae.latent_channels


def plans(task, prompts, grid, sources=1):
  """Conditional plans, then negative ones, of prompts of different length."""
  tokenizer, rng = small.tokenizer(), np.random.default_rng(7)
  target = (Video if grid[0] > 1 else Image)(np.zeros((*grid, CHANNELS), np.float32), True)
  pictures = [
    [Image(rng.normal(size=(1, 2, 3, CHANNELS)).astype(np.float32)) for _ in range(sources)]
    for _ in prompts
  ]
  if task == 'edit':
    return [
      tasks.editing(tokenizer, s, text, target)
      for texts in (prompts, [''] * len(prompts))
      for s, text in zip(pictures, texts)
    ]
  return [
    tasks.generation(tokenizer, text, target)
    for texts in (prompts, ['blue'] * len(prompts))
    for text in texts
  ]


def naive(all_plans, noise, scale, points, solver='euler'):
  """Every row whole, end tokens and padding included, at every step."""
  examples = [layout(p, small.tokenizer(), strides(small.CONFIG)) for p in all_plans]
  batch = collate(examples, CHANNELS)
  owner = np.maximum(batch.image - 1, 0)
  drawn = (batch.image > 0) & np.take_along_axis(batch.target, owner, axis=1)
  first = drawn.argmax(axis=1)
  cells, rows = noise.shape[1], len(noise)
  index = first[:, None] + np.arange(cells)

  @quick_jit
  def run(params, batch, noise):  # as constants, parameters would be folded for seconds
    def velocity(x, t):
      latents = jax.vmap(lambda l, i, x: l.at[i].set(x))(
        batch.latents, index, jnp.tile(x, (2, 1, 1))
      )
      out = (
        Tuna(small.CONFIG)
        .apply({'params': params}, batch, latents, jnp.where(batch.target, t, 1.0))
        .velocity
      )
      v = jnp.take_along_axis(out, index[..., None], axis=1)
      return flow.guide(v[:rows], v[rows:], scale)

    return flow.solve(velocity, noise, flow.times(points), solver)

  return np.asarray(run(small.params(), batch, noise))


def cached(all_plans, noise, guidance, points, solver='euler'):
  examples, grids = zip(*(split(p, small.tokenizer(), strides(small.CONFIG)) for p in all_plans))
  return np.asarray(
    drawing.sample_latents(
      small.CONFIG,
      small.params(),
      collate(examples, CHANNELS),
      grids[: len(noise)],
      noise,
      Drawing(guidance, points, solver=solver),
    )
  )


def gap(a, b):
  return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize(
  'task, grid, solver',
  [
    ('t2i', (1, 3, 2), 'euler'),
    ('edit', (1, 2, 3), 'euler'),
    ('t2v', (2, 2, 3), 'euler'),
    pytest.param('t2i', (1, 2, 2), 'heun', marks=pytest.mark.slow),
  ],
)
def test_the_cached_sampler_equals_the_naive_one_after_the_whole_ode(task, grid, solver):
  rows = plans(task, ['a red ball', 'make it'], grid)
  noise = np.asarray(drawing.noise([1, 2], int(np.prod(grid)), CHANNELS))
  ours = cached(rows, noise, Guidance(3.0), 50, solver)
  theirs = naive(rows, noise, 3.0, 50, solver)
  assert np.abs(theirs - noise).max() > 0.1  # something was drawn
  assert gap(ours, theirs) < TOLERANCE


def test_three_branches_weigh_text_and_pictures_apart():
  rows = plans('edit', ['a red ball'], (1, 2, 3))
  tokenizer = small.tokenizer()
  target = Image(np.zeros((1, 2, 3, CHANNELS), np.float32), True)
  third = tasks.editing(tokenizer, [], '', target)
  noise = np.asarray(drawing.noise([1], 6, CHANNELS))
  three = [*rows, third]
  # With one scale for both, what stands between the two ends drops out: guidance from nothing at
  # all.
  joint = cached(three, noise, Guidance(3.0, 3.0), 5)
  ends = cached([rows[0], third], noise, Guidance(3.0), 5)
  assert gap(joint, ends) < TOLERANCE
  assert gap(cached(three, noise, Guidance(3.0, 1.5), 5), joint) > 1e-3


def test_outside_the_guidance_interval_the_prompt_stands_alone():
  rows = plans('t2i', ['a red ball'], (1, 3, 2))
  noise = np.asarray(drawing.noise([1], 6, CHANNELS))
  plain = cached(rows[:1], noise, Guidance(1.0), 5)
  assert gap(cached(rows, noise, Guidance(3.0, interval=(0.9999, 1.0)), 5), plain) < TOLERANCE
  assert gap(cached(rows, noise, Guidance(3.0, interval=(0.2, 1.0)), 5), plain) > 1e-3


def test_full_rescale_gives_the_spread_of_the_conditional_velocity():
  rng = np.random.default_rng(0)
  cond, uncond = rng.normal(size=(2, 3, 6, 4)).astype(np.float32)
  out = drawing.combine([cond, uncond], 5.0, 1.0, 1.0)
  np.testing.assert_allclose(np.std(out, axis=(1, 2)), np.std(cond, axis=(1, 2)), rtol=1e-5)
  np.testing.assert_allclose(
    drawing.combine([cond, uncond], 5.0, 1.0, 0.0),
    uncond + 5 * (cond - uncond),
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_smaller_picture_in_a_batch_is_drawn_as_alone():
  large, little = plans('t2i', ['a red ball'], (1, 3, 2)), plans('t2i', ['make it'], (1, 2, 2))
  noise = np.array(drawing.noise([1, 2], 6, CHANNELS))
  examples, grids = zip(
    *(split(p, small.tokenizer(), strides(small.CONFIG)) for p in (large[0], little[0]))
  )
  both = drawing.sample_latents(
    small.CONFIG,
    small.params(),
    collate(examples, CHANNELS),
    grids,
    noise,
    Drawing(Guidance(1.0), 5),
  )
  alone = cached(little[:1], noise[1:, :4], Guidance(1.0), 5)
  assert gap(np.asarray(both)[1:, :4], alone) < TOLERANCE


def test_a_second_prompt_seed_scale_and_shift_compile_nothing():
  rows = plans('t2i', ['a red ball', 'make it'], (1, 3, 2))
  noise = np.asarray(drawing.noise([1, 2], 6, CHANNELS))
  cached(rows, noise, Guidance(3.0), 50)
  with small.compiled() as programs:
    cached(plans('t2i', ['what', 'is this'], (1, 2, 3)), noise + 1, Guidance(2.0), 50)
  assert not programs


def test_noise_depends_on_the_pictures_own_seed_alone():
  both = drawing.noise([3, 4], 6, CHANNELS)
  np.testing.assert_array_equal(drawing.noise([4], 6, CHANNELS)[0], both[1])
  assert np.abs(np.asarray(both[0] - both[1])).max() > 0.1


def test_every_evaluation_is_reported_once():
  rows = plans('t2i', ['a red ball'], (1, 3, 2))
  examples, grids = zip(*(split(p, small.tokenizer(), strides(small.CONFIG)) for p in rows[:1]))
  heard = []
  drawing.sample_latents(
    small.CONFIG,
    small.params(),
    collate(examples, CHANNELS),
    grids,
    drawing.noise([1], 6, CHANNELS),
    Drawing(Guidance(1.0), 4, solver='heun'),
    report=heard.append,
  )
  assert heard == [1, 2, 3, 4, 5]


def test_each_thread_hears_of_its_own_evaluations_alone():
  rows = plans('t2i', ['a red ball'], (1, 3, 2))
  examples, grids = zip(*(split(p, small.tokenizer(), strides(small.CONFIG)) for p in rows[:1]))
  prompts, how = collate(examples, CHANNELS), Drawing(Guidance(1.0), 4)

  def draw(heard):
    noise = drawing.noise([1], 6, CHANNELS)
    return drawing.sample_latents(
      small.CONFIG, small.params(), prompts, grids, noise, how, report=heard
    )

  heard: list[list[int]] = [[], [], []]
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(draw, [one.append for one in heard]))
  assert heard == [[1, 2, 3]] * 3


@pytest.mark.parametrize(
  'fields',
  [{'scale': 0}, {'scale': -2.0}, {'image_scale': 0}, {'interval': (0.5, 0.5)}, {'rescale': 2}],
)
def test_guidance_out_of_range_is_refused_by_name(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    Guidance(**fields)
