"""The judge of drawn pictures: by caption, whether captions repeat or not."""

import numpy as np

from tuna_jax.evals.nearest import Judge, nearest_own


def test_the_nearest_picture_is_the_own_one_in_spite_of_noise():
  rng = np.random.default_rng(0)
  gallery = rng.integers(0, 200, (5, 64, 64, 3)).astype(np.uint8)
  noisy = [(x + rng.integers(0, 40, x.shape)).astype(np.uint8) for x in gallery]
  judge = Judge(gallery, list('abcde'))
  assert judge(noisy) == judge.of_own() == list('abcde')


def test_another_picture_of_the_same_caption_is_right():
  rng = np.random.default_rng(0)
  light = lambda: (200 + rng.integers(-40, 40, (32, 32, 3))).astype(np.uint8)
  dark = lambda: (60 + rng.integers(-40, 40, (32, 32, 3))).astype(np.uint8)
  pictures = [light() for _ in range(6)] + [dark() for _ in range(6)]
  judge = Judge(pictures, ['Day'] * 6 + ['night'] * 6)
  assert judge([light(), dark()]) == ['day', 'night']


def test_a_true_picture_is_judged_by_the_others_of_its_caption():
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 255, (40, 32, 32, 3)).astype(np.uint8)
  captions = ['a', 'b'] * 20  # which say nothing about the pictures
  judge = Judge(pictures, captions)
  assert judge(pictures) == captions
  assert 0.2 < np.mean([a == b for a, b in zip(judge.of_own(), captions)]) < 0.8


def test_an_edit_is_its_own_only_if_no_other_source_of_its_instruction_becomes_nearer():
  real = [np.full((32, 32, 3), shade, np.uint8) for shade in (10, 60, 200, 190)]
  groups = ['darker', 'darker', 'lighter', 'lighter']
  drawn = [real[0] + 5, real[0] + 5, real[2], real[2]]
  assert nearest_own(drawn, real, groups) == [True, False, True, False]
  assert nearest_own([real[3], *real[1:]], real, groups) == [False, True, True, True]
