"""Animated pictures, folders of frames and sequences are clips, by their time."""

import os
import struct

import numpy as np
import pytest
from PIL import Image

from tests.data.made import STEP, animation, colours, order
from tuna_jax.data.media import MediaError, read_video
from tuna_jax.sample.output import Clip

# ---- animated pictures


LOSSLESS = {'webp': {'lossless': True}, 'avif': {'quality': 100}}


@pytest.mark.parametrize('kind', ['gif', 'webp', 'png', 'avif'])
def test_an_animated_picture_is_a_clip(tmp_path, kind):
  path = animation(tmp_path / f'a.{kind}', colours(10), duration=50, **LOSSLESS.get(kind, {}))
  assert order(path, 5, '16') == [0, 2, 4, 6, 8]
  assert order(open(path, 'rb').read(), 5, '16') == [0, 2, 4, 6, 8]


@pytest.mark.parametrize('kind', ['gif', 'webp', 'png', 'avif'])
def test_uneven_durations_keep_their_speed(tmp_path, kind):
  durations = [100, 100, 600, 100, 100]
  path = animation(tmp_path / f'a.{kind}', colours(5), duration=durations, **LOSSLESS.get(kind, {}))
  assert order(path, 10, '16') == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4]


@pytest.mark.parametrize('fps', [1, 8, 12, 15, 24, 30, 60, 120])
def test_our_own_gif_comes_back_frame_for_frame(tmp_path, fps):
  greys = np.array([0, 0, 40, 80, 80, 80, 120, 160, 160], np.uint8)
  clip = np.broadcast_to(greys[:, None, None, None], (9, 16, 16, 3))
  Clip(np.ascontiguousarray(clip), fps, {}).save(tmp_path / 'a.gif')
  np.testing.assert_array_equal(read_video(str(tmp_path / 'a.gif'), '16', 9), clip)


def test_our_own_mp4_comes_back_frame_for_frame(tmp_path):
  clip = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None] * STEP, (9, 32, 32, 3))
  Clip(np.ascontiguousarray(clip), 12, {}).save(tmp_path / 'a.mp4')
  assert order(str(tmp_path / 'a.mp4'), 9, '32') == list(range(9))


def test_frames_of_no_duration_are_shown_as_browsers_do(tmp_path):
  path = animation(tmp_path / 'a.gif', colours(3), duration=[0, 100, 100])
  assert order(path, 3, '16') == [0, 1, 2]


def test_the_still_of_an_animated_png_is_not_its_first_frame(tmp_path):
  still = Image.new('RGB', (16, 16), 'white')
  path = animation(tmp_path / 'a.png', [still, *colours(5)], default_image=True, duration=50)
  assert order(path, 5, '16') == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('kind', ['webp', 'png'])
def test_an_animation_stands_as_exif_says(tmp_path, kind):
  exif = Image.Exif()
  exif[0x0112] = 6
  images = [Image.new('RGB', (64, 32), (40 * i, 0, 0)) for i in range(3)]
  path = animation(tmp_path / f'a.{kind}', images, exif=exif, duration=50)
  assert read_video(path, '512', 5).shape == (5, 672, 384, 3)


def test_a_gif_is_composed_as_its_disposal_says(tmp_path):
  frames = []
  for i in range(3):
    frame = Image.new('P', (16, 16), 0)
    frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    frame.paste(i + 1, (4 * i, 0, 4 * i + 4, 16))
    frames.append(frame)
  for disposal, kept in ((1, [1, 2, 3]), (2, [1, 1, 1])):
    path = animation(
      tmp_path / 'a.gif', frames, transparency=0, disposal=disposal, duration=100, optimize=False
    )
    bars = [
      [x[8, 4 * i + 2].tolist() != [255] * 3 for i in range(4)] for x in read_video(path, '16', 3)
    ]
    assert [sum(bar) for bar in bars] == kept, (disposal, bars)


def test_a_still_picture_is_a_clip_of_one_frame_repeated(tmp_path):
  for kind in ('png', 'gif', 'jpg'):
    Image.new('RGB', (16, 16), (STEP,) * 3).save(tmp_path / f'a.{kind}')
    assert order(str(tmp_path / f'a.{kind}'), 5, '16') == [1] * 5


def test_a_gif_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
  head = b'GIF89a' + struct.pack('<HH', 60000, 60000) + b'\0\0\0,'
  (tmp_path / 'a.gif').write_bytes(
    head + struct.pack('<HHHH', 0, 0, 60000, 60000) + b'\0\x02\x02\x44\x01\0;'
  )
  with pytest.raises(MediaError, match=r'a\.gif: '):
    read_video(str(tmp_path / 'a.gif'), '64', 5)


@pytest.mark.parametrize('kind', ['gif', 'webp', 'png'])
def test_an_animation_that_is_cut_off_is_refused_by_name(tmp_path, kind):
  noise = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8)
  path = animation(tmp_path / f'a.{kind}', [Image.fromarray(x) for x in noise], duration=50)
  data = open(path, 'rb').read()
  for share in (0.1, 0.5, 0.9):
    (tmp_path / f'cut.{kind}').write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match='cut'):
      read_video(str(tmp_path / f'cut.{kind}'), '16', 5)


# ---- folders and sequences


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(tmp_path):
  for i, image in enumerate(colours(12)):
    image.save(tmp_path / f'frame_{i + 1}.png')
  (tmp_path / '._frame_1.png').write_bytes(b'not a picture')
  (tmp_path / '.hidden.jpg').write_bytes(b'not a picture')
  (tmp_path / 'notes.txt').write_bytes(b'not a picture')
  assert order(str(tmp_path), 13, '16') == [0, 0, *range(1, 12)]


def test_numbers_within_names_count_before_the_letters_behind_them(tmp_path):
  names = ['a2b.png', 'a10a.png', 'A11.png', 'a٣.png', 'b.png', '9999.png', '10000.png']
  for name in names:
    Image.new('RGB', (16, 16), (STEP * names.index(name),) * 3).save(tmp_path / name)
  assert order(str(tmp_path), 7, '16') == [5, 6, 0, 3, 1, 2, 4]


def test_an_empty_folder_is_no_clip(tmp_path):
  with pytest.raises(MediaError, match='no frames'):
    read_video(str(tmp_path), '16', 5)


def test_a_frame_that_is_a_link_stays_below_the_root(tmp_path):
  (tmp_path / 'root' / 'clip').mkdir(parents=True)
  Image.new('RGB', (16, 16)).save(tmp_path / 'private.png')
  os.symlink(tmp_path / 'private.png', tmp_path / 'root' / 'clip' / '1.png')
  with pytest.raises(MediaError, match='leaves the root'):
    read_video(str(tmp_path / 'root' / 'clip'), '16', 5, root=str(tmp_path / 'root'))


def test_sequences_of_paths_bytes_and_arrays_are_clips(tmp_path):
  images = colours(5)
  for i, image in enumerate(images):
    image.save(tmp_path / f'{i}.png')
  paths = [str(tmp_path / f'{i}.png') for i in range(5)]
  arrays = np.stack([np.asarray(image) for image in images])
  for source in (
    paths,
    [open(p, 'rb').read() for p in paths],
    images,
    arrays,
    arrays / np.float32(255),
  ):
    assert order(source, 5, '16') == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  'source, words',
  [
    (np.zeros((5, 16, 16), np.uint8), 'a clip must be'),
    ([], 'no frames'),
    (np.zeros((0, 4, 4, 3), np.uint8), 'no frames'),
    (5, 'expected a path'),
    ([['a.png']], 'expected a path'),
    ('gone.mp4', 'gone.mp4: .*No such file'),
    ('https://example.com/a.mp4', 'download it'),
  ],
)
def test_what_is_no_clip_is_named(source, words):
  with pytest.raises(MediaError, match=words):
    read_video(source, '16', 5)
