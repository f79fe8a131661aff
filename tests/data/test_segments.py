"""Plans, examples and packed rows."""

import numpy as np
import pytest

from tuna_jax import batch as batch_lib
from tuna_jax.data.segments import Image, Text, Video, fullest, layout, pack
from tuna_jax.data.tokenizer import Letters

SPECIAL = Letters()
STRIDES = (4, 16)
SIZES = (2, 64, 24, 4, 5)


def picture(height=32, width=32, frames=1):
  return np.zeros((frames, height, width, 3), np.uint8)


def example(*plan, task=0):
  return layout(plan, SPECIAL, STRIDES, task)


def two_rows():
  """An edit and a text in row 0; a clip and a question in row 1."""
  edit = example(
    Text((10,)), Image(picture()), Text((11, 12)), Image(picture(), True), Text((13,)), task=4
  )
  text = example(Text((20, 21)), Text((22, 23), True), task=3)
  clip = example(Text((30, 31)), Video(picture(frames=9), True), Text((32,)), task=5)
  question = example(
    Text((40,)), Image(picture(16, 48)), Text((41, 42)), Text((43, 44), True), task=2
  )
  return [[edit, text], [clip, question]]


def test_a_span_is_the_time_token_and_the_cells_between_boi_and_eoi():
  e = example(Text((10,)), Image(picture(16, 32)), Text((11,)))
  assert e.tokens.tolist() == [10, 1, 3, 3, 3, 2, 11]
  assert e.slot.tolist() == [-1, -1, 0, 1, 2, -1, -1]
  assert e.place.tolist() == [3, 4]
  assert e.kv_limit.tolist() == [0, 1, 4, 4, 4, 5, 6]
  assert e.coords.tolist() == [[0, 0, 0], [0, 0, 1]]
  assert (e.length, e.cells, e.images) == (7, 2, 1)


def test_a_label_is_the_next_token_with_that_token_s_weight():
  e = example(Text((10, 11)), Text((12, 13), (0.5, 2.0)), Text((14,)))
  assert e.labels.tolist() == [11, 12, 13, 14, 0]
  assert e.label_weight.tolist() == [0, 0.5, 2.0, 0, 0]


def test_latents_and_pixels_lay_out_alike():
  pixels = example(Text((10,)), Video(picture(32, 48, 5), True))
  latents = example(Text((10,)), Video(np.zeros((2, 2, 3, 48), np.float32), True))
  for name in ('tokens', 'slot', 'coords', 'grid', 'place', 'kv_limit'):
    np.testing.assert_array_equal(getattr(pixels, name), getattr(latents, name))


@pytest.mark.parametrize(
  'media, words',
  [
    (picture(32, 40), '32x40'),
    (picture(frames=8), '8 frames'),
    (np.zeros((1, 16, 16, 4), np.uint8), '3 channels'),
  ],
)
def test_media_that_do_not_divide_are_refused(media, words):
  with pytest.raises(ValueError, match=words):
    example(Video(media))


def test_an_image_of_several_frames_is_refused():
  with pytest.raises(ValueError, match='use Video'):
    example(Image(picture(frames=5)))


def test_packing_keeps_every_token_and_cell():
  rows = two_rows()
  batch = batch_lib.check(pack(rows, SIZES).batch)
  for r, examples in enumerate(rows):
    for n, e in enumerate(examples, 1):
      mine = batch.segment[r] == n
      np.testing.assert_array_equal(batch.tokens[r][mine], e.tokens)
      np.testing.assert_array_equal(batch.labels[r][mine], e.labels)
      np.testing.assert_array_equal(batch.label_weight[r][mine], e.label_weight)
      np.testing.assert_array_equal(batch.position[r][mine], np.arange(e.length))
      assert set(batch.task[r][mine]) == {e.task}
    used = sum(e.length for e in examples)
    assert np.all(batch.segment[r, used:] == 0)
    np.testing.assert_array_equal(
      batch.coords[r, : sum(e.cells for e in examples)],
      np.concatenate([e.coords for e in examples]),
    )


def test_slot_and_place_invert_each_other():
  packed = pack(two_rows(), SIZES)
  batch, m = packed.batch, SIZES[3]
  for r in range(SIZES[0]):
    for v in np.flatnonzero(batch.image[r]):
      assert batch.slot[r, batch.place[r, v]] == m + v
    latent = np.flatnonzero(batch.slot[r] >= m)
    np.testing.assert_array_equal(batch.place[r, batch.slot[r, latent] - m], latent)
    time = batch.slot[r][(batch.slot[r] >= 0) & (batch.slot[r] < m)]
    np.testing.assert_array_equal(time, np.arange(len(time)))


def test_a_cell_s_image_and_grid_agree_with_its_coordinates():
  batch = pack(two_rows(), SIZES).batch
  for r in range(SIZES[0]):
    for image, grid in enumerate(batch.grid[r], 1):
      mine = batch.coords[r][batch.image[r] == image]
      assert len(mine) == np.prod(grid)
      if len(mine):
        np.testing.assert_array_equal(mine.max(0) + 1, grid)


def test_kv_limit_is_the_brute_force_omni_mask():
  batch = pack(two_rows(), SIZES).batch
  length, m = SIZES[1], SIZES[3]
  for r in range(SIZES[0]):
    span = np.full(length, -1)  # image number of each span position, time token included
    for p in range(length):
      slot = batch.slot[r, p]
      if slot >= m:
        span[p] = batch.image[r, slot - m] - 1
      elif slot >= 0:
        span[p] = slot
    index = np.arange(length)
    causal = index[None] <= index[:, None]
    same_span = (span[:, None] == span[None]) & (span[:, None] >= 0)
    same_segment = batch.segment[r][:, None] == batch.segment[r][None]
    brute = (causal | same_span) & same_segment
    mask = (index[None] <= batch.kv_limit[r][:, None]) & same_segment
    np.testing.assert_array_equal(mask, brute)


def test_labels_never_cross_examples():
  batch = pack(two_rows(), SIZES).batch
  last = np.diff(batch.segment, axis=1, append=0) != 0
  assert np.all(batch.label_weight[last] == 0)
  inside = ~last & (batch.segment > 0)
  np.testing.assert_array_equal(
    batch.labels[:, :-1][inside[:, :-1]], batch.tokens[:, 1:][inside[:, :-1]]
  )


def test_perturbing_one_example_leaves_the_arrays_of_the_other():
  rows = two_rows()
  before = pack(rows, SIZES).batch
  rows[0][1] = example(Text((50, 51, 52, 53), True), task=3)
  after = pack(rows, SIZES).batch
  first = before.segment[0] == 1
  for name in ('tokens', 'labels', 'label_weight', 'position', 'kv_limit', 'slot', 'task'):
    np.testing.assert_array_equal(getattr(before, name)[0][first], getattr(after, name)[0][first])


def test_targets_are_marked_in_order():
  batch = pack(two_rows(), SIZES).batch
  assert batch.target.tolist() == [[False, True, False, False], [True, False, False, False]]


def test_media_are_placed_where_their_cells_are():
  packed = pack(two_rows(), SIZES)
  assert [(p.row, p.start, p.cells) for p in packed.media] == [
    (0, 0, 4),
    (0, 4, 4),
    (1, 0, 12),
    (1, 12, 3),
  ]


def test_an_overfull_row_names_itself():
  with pytest.raises(ValueError, match='row 1.*V=15'):
    pack(two_rows(), (2, 64, 14, 4, 5))


@pytest.mark.parametrize('seed', range(20))
def test_the_fullest_set_fits_and_no_other_fills_more_positions(seed):
  rng = np.random.default_rng(seed)
  cells = rng.choice([0, 16, 20], 9)
  needs = [(int(v + rng.integers(1, 30)), int(v), int(v > 0)) for v in cells]
  room = (70, 1000, 9)
  every = [[i for i in range(9) if bits >> i & 1] for bits in range(2**9)]
  total = lambda chosen: np.array([needs[i] for i in chosen]).reshape(-1, 3).sum(0)
  best = max(int(total(chosen)[0]) for chosen in every if (total(chosen) <= room).all())
  assert total(fullest(needs, room))[0] == best
  tight = (70, 40, 2)
  assert (total(fullest(needs, tight)) <= tight).all()
  assert fullest(needs, (0, 40, 2)) == [] == fullest([], room)
