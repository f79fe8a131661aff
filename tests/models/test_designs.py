"""What holds for every design: raster runs and patches, packing, the head's own width, the path."""

import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from tests.models import designs, small
from tuna_jax.config import DESIGNS
from tuna_jax.models.tuna import Tuna
from tuna_jax.models.vision import patches
from tuna_jax.tools.xla_cpu import quick_jit

ROUNDING = 2e-5  # of numbers of order 1: float32 sums in another order


@pytest.mark.parametrize('side', [1, 2, 3])
def test_raster_runs_become_the_patch_of_each_token_whatever_stands_beside_them(side):
  rng, channels, tokens, wanted, coords, image, grid = (
    np.random.default_rng(0),
    3,
    [],
    [],
    [],
    [],
    [],
  )
  for number, (frames, rows, columns) in enumerate(((1, 2, 3), (2, 3, 1), (1, 1, 4)), 1):
    cells = rng.normal(size=(frames, rows * side, columns * side, channels)).astype(np.float32)
    tokens.append(cells.reshape(frames * rows * columns, -1))
    wanted.append(rearrange(cells, 'f (i r) (j q) c -> (f i j) (r q c)', r=side, q=side))
    coords.append(np.indices((frames, rows, columns)).reshape(3, -1).T)
    image += [number] * len(tokens[-1])
    grid.append((frames, rows, columns))
  found = patches(
    jnp.asarray(np.concatenate([*tokens, np.zeros((2, channels * side**2))])[None], jnp.float32),
    jnp.asarray(np.concatenate([*coords, np.zeros((2, 3), int)])[None]),
    jnp.asarray([*image, 0, 0])[None],
    jnp.asarray(grid)[None],
    side,
  )
  np.testing.assert_array_equal(found[0, :-2], np.concatenate(wanted))


@pytest.mark.parametrize('design', DESIGNS)
def test_packing_two_examples_equals_running_them_apart(design):
  config = designs.config(design)
  batch = designs.batch(config, ('edit', 'vqa'), ('vqa',), ('edit',))
  t = small.times(batch)
  t[2, :2] = t[0, :2]
  out = small.forward(config)(batch, batch.latents, t)
  for segment, row in ((1, 2), (2, 1)):
    here, there = (np.flatnonzero(batch.segment[r] == s) for r, s in ((0, segment), (row, 1)))
    np.testing.assert_allclose(out.hidden[0, here], out.hidden[row, there], atol=ROUNDING)
    here, there = (
      np.flatnonzero((batch.image[r] > 0) & (batch.segment[r][batch.place[r]] == s))
      for r, s in ((0, segment), (row, 1))
    )
    assert len(here) == len(there) > 0
    np.testing.assert_allclose(out.velocity[0, here], out.velocity[row, there], atol=20 * ROUNDING)


@pytest.mark.parametrize('design', DESIGNS)
def test_every_token_of_a_picture_is_drawn_and_seen(design):
  config = designs.config(design)
  batch = designs.batch(config, ('edit',))
  t = small.times(batch)
  before = small.forward(config)(batch, batch.latents, t)
  assert before.velocity.shape == (*batch.latents.shape[:2], config.drawn_dim)
  latents = batch.latents.copy()
  latents[0, 0, 0] += 1.0  # one cell of the source picture
  after = small.forward(config)(batch, latents, t)
  target = np.flatnonzero(batch.image[0] == 2)
  assert (np.abs(after.velocity - before.velocity)[0, target].max(axis=-1) > 0).all()


def test_a_masked_token_hides_its_patch():
  config = designs.config('pixel')
  batch = designs.batch(config, ('vqa',))
  t, masked = small.times(batch), np.zeros(batch.image.shape, bool)
  masked[0, 2] = True
  run = quick_jit(
    lambda params, latents: (
      Tuna(config).apply({'params': params}, batch, latents, t, flow=False, masked=masked).hidden
    )
  )
  hidden = run(small.params(config), batch.latents)
  latents = batch.latents.copy()
  # Token 2 shows the right third of the upper row of 2 x 2 patches: cells 4, 5, 10, 11 in raster
  # order.
  cells = latents.reshape(len(latents), -1, config.channels)
  cells[0, [4, 5, 10, 11]] += 1.0
  np.testing.assert_array_equal(run(small.params(config), latents), hidden)
  cells[0, 3] += 1.0
  assert (np.asarray(run(small.params(config), latents)) != np.asarray(hidden)).any()


def test_visual_tokens_made_earlier_stand_for_the_picture():
  config = designs.config('late_fusion')
  batch = designs.batch(config, ('vqa',))
  t, params = small.times(batch), small.params(config)
  where = (batch.coords, batch.image, batch.grid)

  @quick_jit
  def run(params, latents, blank):
    model, variables = Tuna(config), {'params': params}
    made = model.apply(variables, latents, *where, method='features')
    whole = model.apply(variables, batch, latents, t, flow=False).hidden
    return whole, model.apply(variables, batch, blank, t, flow=False, features=made).hidden

  whole, given = run(params, batch.latents, np.zeros_like(batch.latents))
  np.testing.assert_allclose(given, whole, atol=ROUNDING)


def test_a_network_that_gives_the_picture_itself_has_the_velocity_that_leads_there():
  config = designs.config('pixel')
  batch = designs.batch(config, ('edit',))
  t = small.times(batch)
  params = small.params(config)
  zeros = {k: np.zeros_like(v) for k, v in params['flow_head']['final']['linear'].items()}
  final = {**params['flow_head']['final'], 'linear': zeros}  # the picture is black everywhere
  params = {**params, 'flow_head': {**params['flow_head'], 'final': final}}
  run = quick_jit(lambda p: Tuna(config).apply({'params': p}, batch, batch.latents, t).velocity)
  target = np.flatnonzero(batch.image[0] == 2)
  wanted = -batch.latents[0, target] / (1 - t[0, 1])
  np.testing.assert_allclose(run(params)[0, target], wanted, rtol=1e-6)


def test_decoupled_sees_a_clean_picture_as_pixels_and_a_drawn_one_as_latents():
  config = designs.config('decoupled')
  batch = designs.batch(config, ('edit',))
  t, forward = small.times(batch), small.forward(config)
  before = forward(batch, batch.latents, t)
  source, target = (np.flatnonzero(batch.image[0] == n) for n in (1, 2))

  def moved(tokens, numbers):
    latents = batch.latents.copy()
    latents[0, tokens, numbers] += 1.0
    return np.abs(forward(batch, latents, t).velocity - before.velocity)[0, target].max() > 0

  pixels, drawn = slice(config.seen_dim), slice(config.seen_dim, None)
  assert moved(source, pixels) and moved(target, drawn)
  assert not moved(source, drawn) and not moved(target, pixels)
