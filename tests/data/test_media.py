"""Pictures and clips become uint8 of a bucket's size."""

import io

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data import media


def png(height, width, colour='red', mode='RGB'):
  out = io.BytesIO()
  Image.new(mode, (width, height), colour).save(out, 'png')
  return out.getvalue()


@pytest.mark.parametrize(
  'height, width, bucket',
  [(500, 500, (512, 512)), (300, 1000, (384, 672)), (1000, 300, (672, 384)), (90, 70, (576, 448))],
)
def test_the_bucket_is_the_nearest_by_log_aspect_ratio(height, width, bucket):
  assert media.choose_bucket(height, width, media.buckets('512')) == bucket


def test_portrait_and_landscape_choose_mirrored_buckets():
  rng = np.random.default_rng(0)
  for height, width in rng.integers(50, 1500, (200, 2)).tolist():
    bucket = media.choose_bucket(height, width, media.buckets('1024'))
    assert media.choose_bucket(width, height, media.buckets('1024')) == bucket[::-1]


@pytest.mark.parametrize('name, size', [('64', (64, 64)), ('48x80', (48, 80))])
def test_a_size_may_be_given_in_pixels(name, size):
  assert media.buckets(name) == (size,)


@pytest.mark.parametrize(
  'name, words', [('1025', 'multiples of 16'), ('vido', "nearest is 'video'"), ('64x', 'expected')]
)
def test_a_wrong_size_class_is_explained(name, words):
  with pytest.raises(ValueError, match=words):
    media.MediaConfig(image_size=name)


@pytest.mark.parametrize('height, width', [(30, 200), (200, 30), (64, 64), (7, 5), (65, 64)])
def test_no_picture_gets_black_bars(height, width):
  pixels = media.read_image(png(height, width, 'white'), '64')
  assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 and pixels.min() == 255


def test_the_centre_is_kept():
  wide = np.zeros((16, 48, 3), np.uint8)
  wide[:, 16:32] = 255
  np.testing.assert_array_equal(media.read_image(wide, '16'), np.full((16, 16, 3), 255))


@pytest.mark.parametrize('shape', [(90, 70), (48, 300), (300, 48), (64, 65), (7, 5)])
def test_scaling_the_kept_part_alone_is_scaling_all_and_cropping(shape):
  y, x = np.indices(shape)
  waves = np.stack([np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)], -1)
  picture, scale = Image.fromarray((127 + 90 * waves).astype(np.uint8)), 64 / min(shape)
  height, width = (max(64, round(n * scale)) for n in shape)
  whole = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), int)
  top, left = (height - 64) // 2, (width - 64) // 2
  found = media.read_image(picture, '64').astype(int)
  assert np.abs(found - whole[top : top + 64, left : left + 64]).max() <= 2  # levels: rounding


def test_a_picture_of_the_right_size_is_unchanged():
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  np.testing.assert_array_equal(media.read_image(pixels, '64'), pixels)


def test_frames_must_be_4k_plus_1():
  with pytest.raises(ValueError, match='frames=14.*13'):
    media.MediaConfig(frames=14)


@pytest.mark.parametrize('frames', [0, -3])
def test_a_clip_has_at_least_one_frame(frames):
  with pytest.raises(ValueError, match='expected 4k'):
    media.MediaConfig(frames=frames)
