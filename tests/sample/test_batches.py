"""Batches of one shape, and what the VAE takes at once."""

import numpy as np

from tuna_jax.sample import batches


def test_batches_of_a_long_list_have_one_shape_and_hold_every_item_once():
  found = list(batches.batches(['x'] * 10, [5] * 10, 4))
  assert [len(rows) for rows, _, _ in found] == [4, 4, 4]
  assert [i for rows, count, _ in found for i in rows[:count]] == list(range(10))


def test_the_vae_takes_as_many_pictures_at_once_as_their_size_allows():
  seen = []

  def tops(pixels):
    seen.append(len(pixels))
    return pixels[:, 0, 0, 0, 0]

  large = np.zeros((3, 1, 1024, 1024, 3), np.uint8)
  little = np.arange(6, dtype=np.uint8)[:, None, None, None, None]
  media = [*large, *little]
  out = batches.map_by_shape(tops, media, [x[..., 0].size for x in media], 4)
  assert seen == [1, 1, 1, 3, 3]  # batches of 4 at most
  assert out == [0, 0, 0, 0, 1, 2, 3, 4, 5]
