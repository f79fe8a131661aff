"""The cached sampler against the whole sequence run again at every step."""


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
from tuna_jax.sample.image import Guidance
from tuna_jax.sample.prompt import collate, split, strides

TOLERANCE = 1e-5  # of the largest latent, after the whole ODE in float32
CHANNELS = small.CONFIG.vae.latent_channels


def plans(task, prompts, grid, sources=1):
  """Conditional plans, then negative ones, of prompts of different length."""
  tokenizer, rng = small.tokenizer(), np.random.default_rng(7)
  target = (Video if grid[0] > 1 else Image)(np.zeros((*grid, CHANNELS), np.float32), True)
  pictures = [[Image(rng.normal(size=(1, 2, 3, CHANNELS)).astype(np.float32)) for _ in range(sources)] for _ in prompts]
  if task == 'edit':
    return [tasks.editing(tokenizer, s, text, target)
            for texts in (prompts, [''] * len(prompts)) for s, text in zip(pictures, texts)]
  return [tasks.generation(tokenizer, text, target) for texts in (prompts, ['blue'] * len(prompts)) for text in texts]


def naive(all_plans, noise, scale, points, solver='euler'):
  """Every row whole, end tokens and padding included, at every step."""
  examples = [layout(p, small.tokenizer(), strides(small.CONFIG)) for p in all_plans]
  batch = collate(examples, CHANNELS)
  owner = np.maximum(batch.image - 1, 0)
  drawn = (batch.image > 0) & np.take_along_axis(batch.target, owner, axis=1)
  first = drawn.argmax(axis=1)
  cells, rows = noise.shape[1], len(noise)
  index = first[:, None] + np.arange(cells)

  @jax.jit
  def velocity(x, t):
    latents = jax.vmap(lambda l, i, x: l.at[i].set(x))(jnp.asarray(batch.latents), index, jnp.tile(x, (2, 1, 1)))
    times = jnp.where(batch.target, t, 1.0)
    out = Tuna(small.CONFIG).apply({'params': small.params()}, batch, latents, times).velocity
    v = jnp.take_along_axis(out, index[..., None], axis=1)
    return flow.guide(v[:rows], v[rows:], scale)

  return np.asarray(flow.solve(velocity, jnp.asarray(noise), flow.times(points), solver))


def cached(all_plans, noise, guidance, points, solver='euler'):
  examples, grids = zip(*(split(p, small.tokenizer(), strides(small.CONFIG)) for p in all_plans))
  return np.asarray(drawing.sample_latents(
      small.CONFIG, small.params(), collate(examples, CHANNELS), grids[:len(noise)], noise, guidance=guidance,
      points=points, solver=solver))


def gap(a, b):
  return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize('task, grid, solver', [
    ('t2i', (1, 3, 2), 'euler'), ('edit', (1, 2, 3), 'euler'), ('t2v', (2, 2, 3), 'euler'), ('t2i', (1, 2, 2), 'heun')])
def test_the_cached_sampler_equals_the_naive_one_after_the_whole_ode(task, grid, solver):
  rows = plans(task, ['a red ball', 'make it'], grid)
  noise = np.asarray(drawing.noise([1, 2], int(np.prod(grid)), CHANNELS))
  ours = cached(rows, noise, Guidance(3.0), 50, solver)
  theirs = naive(rows, noise, 3.0, 50, solver)
  assert np.abs(theirs - noise).max() > 0.1  # something was drawn
  assert gap(ours, theirs) < TOLERANCE
