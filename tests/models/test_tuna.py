"""Properties of the whole model: packing, padding, caches, text alone, the head."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.models import small
from tuna_jax import batch as batch_lib
from tuna_jax.batch import Batch
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.models.tuna import Tuna, init_cache, sinusoid
from tuna_jax.weights import fresh

ROUNDING = 2e-5  # of numbers of order 1: float32 sums in another order


def run(batch, t=None, latents=None):
  return small.forward()(
    batch, batch.latents if latents is None else latents, small.times(batch) if t is None else t
  )


def positions(batch, row, segment):
  return np.flatnonzero(batch.segment[row] == segment)


def cells(batch, row, segment):
  return np.flatnonzero((batch.image[row] > 0) & (batch.segment[row][batch.place[row]] == segment))


@pytest.fixture(scope='module')
def packed():
  """Row 0 holds an edit and a question; row 1 the question alone; row 2 the edit alone."""
  batch = small.batch(('edit', 'vqa'), ('vqa',), ('edit',))
  t = small.times(batch)
  t[2, :2] = t[0, :2]
  return batch, t, run(batch, t)


def test_packing_two_examples_equals_running_them_apart(packed):
  batch, _, out = packed
  for segment, row in ((1, 2), (2, 1)):
    here, there = positions(batch, 0, segment), positions(batch, row, 1)
    np.testing.assert_allclose(out.hidden[0, here], out.hidden[row, there], atol=ROUNDING)
    here, there = cells(batch, 0, segment), cells(batch, row, 1)
    assert len(here) == len(there) > 0
    np.testing.assert_allclose(out.velocity[0, here], out.velocity[row, there], atol=ROUNDING)


@pytest.mark.parametrize('segment, other', [(1, 2), (2, 1)])
def test_perturbing_one_packed_example_leaves_the_other_bit_equal(packed, segment, other):
  batch, t, out = packed
  where, mine = positions(batch, 0, segment), cells(batch, 0, segment)
  tokens, latents, t = batch.tokens.copy(), batch.latents.copy(), t.copy()
  tokens[0, where] = 7
  latents[0, mine] += 3.0
  t[0, batch.image[0, mine] - 1] = 0.5
  new = run(batch._replace(tokens=tokens, latents=latents), t)
  same, kept = positions(batch, 0, other), cells(batch, 0, other)
  assert (np.asarray(new.hidden)[0, same] == np.asarray(out.hidden)[0, same]).all()
  assert (np.asarray(new.velocity)[0, kept] == np.asarray(out.velocity)[0, kept]).all()
  assert not np.allclose(new.hidden[0, where], out.hidden[0, where], atol=1e-2)
  assert not np.allclose(new.velocity[0, mine], out.velocity[0, mine], atol=1e-3)


def test_padding_never_matters(packed):
  batch, t, out = packed
  pad, empty = batch.segment == 0, batch.image == 0
  new = run(
    batch._replace(
      tokens=np.where(pad, 9, batch.tokens),
      position=np.where(pad, 5, batch.position),
      latents=np.where(empty[..., None], np.float32(4), batch.latents),
      coords=np.where(empty[..., None], 1, batch.coords),
    ),
    t,
  )
  assert (np.asarray(new.hidden)[~pad] == np.asarray(out.hidden)[~pad]).all()
  assert (np.asarray(new.velocity)[~empty] == np.asarray(out.velocity)[~empty]).all()
  assert np.isfinite(new.hidden).all() and np.isfinite(new.velocity).all()


def test_text_never_sees_what_comes_later_and_a_picture_sees_all_of_itself(packed):
  batch, t, out = packed
  last = cells(batch, 1, 1)[-1]  # the last cell of the question's picture
  latents = batch.latents.copy()
  latents[1, last] += 3.0
  changed = np.abs(np.asarray(run(batch, t, latents).hidden - out.hidden))[1].max(-1) > 0
  first = batch.place[1, 0] - 1  # the time token
  assert not changed[:first].any() and changed[first : positions(batch, 1, 1)[-1] + 1].all()


def test_the_time_of_a_picture_reaches_its_own_velocity(packed):
  batch, t, out = packed
  other = t.copy()
  other[2, 1] = 0.05
  drawn = batch.image[2] == 2
  assert not np.allclose(run(batch, other).velocity[2, drawn], out.velocity[2, drawn], atol=1e-3)


def test_fresh_weights_predict_no_velocity(packed):
  batch, t, _ = packed
  params = fresh.init(tuna_shapes(small.CONFIG), 0)
  out = small.forward().func(params, batch, batch.latents, t)
  assert not np.asarray(out.velocity).any() and np.asarray(out.hidden).any()


def test_a_batch_of_text_alone_has_no_latent_axes():
  wide = small.batch(('text',))
  bare = small.batch(('text',), cells=0, images=0)
  apply = small.forward()
  out = apply(bare, bare.latents, small.times(bare))
  assert out.velocity.shape == (1, 0, small.C)
  live = wide.segment > 0
  np.testing.assert_allclose(out.hidden[live], run(wide).hidden[live], atol=ROUNDING)


def test_a_model_is_not_initialised_by_a_batch_of_text_alone():
  bare = small.batch(('text',), cells=0, images=0)
  with pytest.raises(ValueError, match='initialise Tuna with a batch that has latent tokens'):
    jax.eval_shape(
      Tuna(small.CONFIG).init, jax.random.key(0), bare, bare.latents, small.times(bare)
    )


# ---- caches


def part(batch: Batch, low: int, high: int) -> Batch:
  """Positions [low, high) of a one-row batch as one cached call; spans must not be cut."""
  seq = slice(low, high)
  images = batch.grid.shape[1]
  slot = batch.slot[0, seq]
  own, mine = slot[(slot >= 0) & (slot < images)], slot[slot >= images] - images
  first_image, first_cell = (own[0] if len(own) else 0), (mine[0] if len(mine) else 0)
  vis, img = slice(first_cell, first_cell + len(mine)), slice(first_image, first_image + len(own))
  moved = np.where(
    slot < 0, -1, np.where(slot < images, slot - first_image, slot - images - first_cell + len(own))
  )
  cut = {
    name: getattr(batch, name)[:, seq]
    for name in ('tokens', 'labels', 'label_weight', 'segment', 'position', 'kv_limit', 'task')
  }
  return Batch(
    **cut,
    slot=moved[None].astype(np.int32),
    latents=batch.latents[:, vis],
    coords=batch.coords[:, vis],
    image=batch.image[:, vis] - first_image,
    grid=batch.grid[:, img],
    place=batch.place[:, vis] - low,
    target=batch.target[:, img],
  )


def cached(batch, t, cuts, flow):
  """(hidden, velocity, last cache) of calls over [0, cuts[0]), [cuts[0], cuts[1]), ... joined."""
  apply = small.forward(flow=flow)
  cache = init_cache(small.CONFIG, 1, small.LENGTH, flow=flow)
  hidden, velocity, image = [], [], 0
  for low, high in zip((0, *cuts), cuts):
    piece = part(batch, low, high)
    m = piece.grid.shape[1]
    out = apply(piece, piece.latents, t[:, image : image + m], cache)
    hidden, velocity, cache, image = (
      [*hidden, out.hidden],
      [*velocity, out.velocity],
      out.cache,
      image + m,
    )
  joined = None if not flow else np.concatenate(velocity, axis=1)
  return np.concatenate(hidden, axis=1), joined, cache


def test_writing_token_by_token_equals_the_full_pass():
  batch = small.batch(('vqa',))
  n = len(positions(batch, 0, 1))
  start = batch.place[0, batch.image[0] > 0].max() + 2  # text after eoi
  full = run(batch)
  hidden, _, cache = cached(
    batch, small.times(batch), (start, *range(start + 1, n + 1)), flow=False
  )
  np.testing.assert_allclose(hidden[0], full.hidden[0, :n], atol=ROUNDING)
  assert int(cache.index) == n and cache.flow is None


@pytest.mark.parametrize('kind', ['t2i', 'edit', 't2v'])
def test_drawing_after_a_cached_prefix_equals_the_full_pass(kind):
  batch = small.batch((kind,))
  t, full = small.times(batch), run(batch)
  drawn = np.flatnonzero(batch.target[0])[0] + 1
  where = batch.place[0, batch.image[0] == drawn]
  start, end = int(where.min()) - 1, int(where.max()) + 1
  hidden, velocity, _ = cached(batch, t, (start, end), flow=True)
  np.testing.assert_allclose(hidden[0], full.hidden[0, :end], atol=ROUNDING)
  n = velocity.shape[1]
  np.testing.assert_allclose(velocity[0], full.velocity[0, :n], atol=ROUNDING)


def test_a_cache_without_the_flow_head_is_refused_where_it_is_needed():
  batch = small.batch(('text',), cells=0, images=0)
  cache = init_cache(small.CONFIG, 1, small.LENGTH, flow=False)
  with pytest.raises(ValueError, match='made without the flow head'):
    jax.eval_shape(small.forward(), batch, batch.latents, small.times(batch), cache)


# ---- the language head and the time embedding


@pytest.mark.parametrize('tied', [True, False])
def test_logits_come_from_the_right_table_and_padding_is_never_chosen(tied):
  decoder = dataclasses.replace(small.CONFIG.decoder, tied=tied, vocab_size=380)
  config = dataclasses.replace(small.CONFIG, decoder=decoder)
  params = small.params(config)
  hidden = np.random.default_rng(0).normal(size=(2, decoder.dim)).astype(np.float32)
  logits = np.asarray(Tuna(config).apply({'params': params}, hidden, method='logits'))
  assert logits.shape == (2, 384) and logits.dtype == np.float32
  head = (
    params['decoder']['embed']['embedding'].T if tied else params['decoder']['lm_head']['kernel']
  )
  np.testing.assert_allclose(logits[:, :380], hidden @ head[:, :380], atol=ROUNDING)
  assert (logits[:, 380:] == np.finfo(np.float32).min).all()
  assert ('lm_head' in params['decoder']) is not tied


def test_the_time_embedding_has_the_published_sinusoid():
  found = np.asarray(sinusoid(np.float32(0.5), 256))  # docs/architecture.md 4
  np.testing.assert_allclose(found[:4], [0.87758255, 0.89369327, 0.90771854, 0.91991955], atol=1e-6)
  np.testing.assert_allclose(
    found[128:132], [0.47942555, 0.44867843, 0.41957963, 0.39210716], atol=1e-6
  )
  np.testing.assert_allclose(found[-1], 5.3730379e-05, rtol=1e-4)


def test_the_parameters_do_not_depend_on_the_batch():
  wide = batch_lib.empty(2, 12, 8, 3, small.C)
  t = np.ones((2, 3), np.float32)
  found = jax.eval_shape(Tuna(small.CONFIG).init, jax.random.key(0), wide, wide.latents, t)[
    'params'
  ]
  assert found == tuna_shapes(small.CONFIG)
