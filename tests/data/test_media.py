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


def film(path, frames=10, size=(32, 48)):
  """A real mpeg4 file whose frame i is grey 20 i."""
  import av

  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=8)
    stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p'
    for i in range(frames):
      picture = np.full((*size, 3), 20 * i, np.uint8)
      for packet in stream.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)
  return path


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
  found = media.fit(picture, (64, 64)).astype(int)
  assert np.abs(found - whole[top : top + 64, left : left + 64]).max() <= 2  # levels: rounding


def test_a_picture_of_the_right_size_is_unchanged():
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  np.testing.assert_array_equal(media.read_image(pixels, '64'), pixels)


def test_transparent_shows_white():
  assert media.read_image(png(16, 16, (0, 0, 0, 0), 'RGBA'), '16').min() == 255


def test_a_phone_s_rotation_is_applied(tmp_path):
  picture, exif = Image.new('RGB', (32, 16)), Image.Exif()
  exif[0x0112] = 6  # turn a quarter clockwise to view
  picture.save(tmp_path / 'p.jpg', exif=exif)
  assert media.open_picture(tmp_path / 'p.jpg').size == (16, 32)


def test_frames_spread_evenly_and_repeat_in_a_short_clip():
  assert media.frame_indices(27, 9) == [0, 3, 6, 9, 12, 15, 18, 21, 24]
  assert media.frame_indices(3, 5) == [0, 0, 1, 1, 2]


def test_frames_must_be_4k_plus_1():
  with pytest.raises(ValueError, match='frames=14.*13'):
    media.MediaConfig(frames=14)


def test_a_video_file_gives_the_chosen_frames(tmp_path):
  clip = media.read_video(film(tmp_path / 'c.mp4'), '32x48', 5)
  assert clip.shape == (5, 32, 48, 3)
  np.testing.assert_allclose(clip.mean((1, 2, 3)), [0, 40, 80, 120, 160], atol=6)  # lossy coding


def test_a_directory_of_frames_is_a_clip(tmp_path):
  for i in range(9):
    Image.new('L', (16, 16), 10 * i).save(tmp_path / f'{i:03}.png')
  assert media.read_video(str(tmp_path), '16', 5)[:, 0, 0, 0].tolist() == [0, 10, 30, 50, 70]


@pytest.mark.parametrize('kind', ['gif', 'webp'])
def test_an_animated_picture_is_a_clip(tmp_path, kind):
  frames = [Image.new('RGB', (16, 16), (50 * i,) * 3) for i in range(5)]
  options = {'lossless': True} if kind == 'webp' else {}
  frames[0].save(tmp_path / f'a.{kind}', save_all=True, append_images=frames[1:], **options)
  assert media.read_video(tmp_path / f'a.{kind}', '16', 5)[:, 0, 0, 0].tolist() == [
    0,
    50,
    100,
    150,
    200,
  ]


@pytest.mark.parametrize(
  'name, content', [('gone.png', None), ('broken.png', png(16, 16)[:40]), ('text.png', b'hello')]
)
def test_an_unreadable_picture_names_its_file(tmp_path, name, content):
  if content:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(media.MediaError, match=name):
    media.read_image(str(tmp_path / name), '64')


@pytest.mark.parametrize('name', ['gone.mp4', 'broken.mp4', 'broken.gif'])
def test_an_unreadable_clip_names_its_file(tmp_path, name):
  if 'broken' in name:
    (tmp_path / name).write_bytes(b'hello')
  with pytest.raises(media.MediaError, match=name):
    media.read_video(str(tmp_path / name), '16', 5)


def test_an_empty_directory_is_no_clip(tmp_path):
  with pytest.raises(media.MediaError, match='no frames'):
    media.read_video(str(tmp_path), '16', 5)
