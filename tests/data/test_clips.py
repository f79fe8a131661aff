"""A clip gives the frames that a player shows at evenly spaced moments."""

import io
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.made import STEP, film, order
from tuna_jax.data.clips import shown
from tuna_jax.data.limits import Limits
from tuna_jax.data.media import MediaError, read_video

# ---- moments


@pytest.mark.parametrize('total', [1, 3, 9, 13, 27, 100, 999])
@pytest.mark.parametrize('count', [1, 5, 9, 13, 49])
def test_moments_spread_evenly_and_repeat_in_a_short_clip(total, count):
  picked = [k for k, times in shown(range(total), total, count) for _ in range(times)]
  assert picked == [i * total // count for i in range(count)]


def test_a_frame_is_taken_as_often_as_it_is_seen():
  assert shown([0, 80, 90], 100, 5) == [(0, 4), (1, 1)]


# ---- video files


@pytest.mark.parametrize(
  'name, codec',
  [
    *(('a.mp4', 'libx264'), ('a.mkv', 'libx264'), ('a.avi', 'libx264'), ('a.mov', 'mpeg4')),
    *(('a.avi', 'mpeg4'), ('a.ts', 'libx264'), ('a.webm', 'libvpx-vp9'), ('a.h264', 'libx264')),
    *(('a.webm', 'libvpx'), ('a.flv', 'flv'), ('a.mpg', 'mpeg1video')),
  ],
)
def test_every_container_gives_the_frames_shown(tmp_path, name, codec):
  path = film(tmp_path / name, [0, 4, 8, 2, 6, 10, 1, 5, 9, 3, 7, 11], codec, rate=25)
  assert order(path, 5) == [0, 8, 6, 5, 3]
  assert order(path, 1) == [0]


def test_a_film_may_come_as_bytes_and_under_any_name(tmp_path):
  path = film(tmp_path / 'a.mp4')
  os.rename(path, tmp_path / 'a %d #1?.clip')
  assert order(str(tmp_path / 'a %d #1?.clip'), 5) == [0, 2, 4, 6, 8]
  assert order((tmp_path / 'a %d #1?.clip').read_bytes(), 5) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv'])
def test_frames_far_apart_are_sought_and_are_the_same(tmp_path, name, monkeypatch):
  greys = [(7 * i) % 12 for i in range(300)]
  path = film(tmp_path / name, greys, 'libx264', g='10', bf='3')
  converted, convert = [], av.VideoFrame.to_image
  monkeypatch.setattr(av.VideoFrame, 'to_image', lambda f: converted.append(1) or convert(f))
  assert order(path, 5) == [greys[i * 300 // 5] for i in range(5)]
  assert len(converted) == 5
  assert order(path, 49) == [greys[i * 300 // 49] for i in range(49)]


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv'])
def test_a_variable_frame_rate_keeps_its_speed(tmp_path, name):
  long_last, long_first = [*range(0, 90, 10), 900], [0, *range(900, 990, 10)]
  assert order(film(tmp_path / name, codec='libx264', at=long_last), 5) == [0, 8, 8, 8, 8]
  assert order(film(tmp_path / name, codec='libx264', at=long_first), 5) == [0, 0, 0, 0, 0]


def with_matrix(path, a, b, c, d):
  data = bytearray(open(path, 'rb').read())
  at = data.find(b'tkhd') + 4
  at += 40 if data[at] == 0 else 52
  data[at : at + 36] = struct.pack('>9i', *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
  open(path, 'wb').write(data)
  return path


@pytest.mark.parametrize(
  'matrix',
  [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
  + [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
)
def test_a_clip_stands_as_its_display_matrix_says(tmp_path, matrix):
  pixels = np.full((48, 96, 3), 40, np.uint8)
  pixels[:16, :32] = 220  # the stored corner up left
  path = with_matrix(
    film(tmp_path / 'a.mp4', range(5), 'libx264', (48, 96), pixels=pixels), *matrix
  )
  a, b, c, d = matrix
  x, y = a * -1 + c * -1, b * -1 + d * -1  # where the corner (-1, -1) is seen
  clip = read_video(path, '96x48' if a == 0 else '48x96', 5)[0].mean(-1)
  height, width = clip.shape
  seen = clip[(y + 1) // 2 * (height - 8) :, (x + 1) // 2 * (width - 8) :][:8, :8].mean()
  others = [clip[v : v + 8, u : u + 8].mean() for v in (0, height - 8) for u in (0, width - 8)]
  assert seen > 180 and sum(value > 100 for value in others) == 1


def test_the_bucket_of_a_turned_clip_is_that_of_its_seen_shape(tmp_path):
  path = with_matrix(film(tmp_path / 'a.mp4', range(5), 'libx264', (48, 96)), 0, 1, -1, 0)
  assert read_video(path, '512', 5).shape == (5, 672, 384, 3)


@pytest.mark.parametrize('sar, shape', [(Fraction(2, 1), (384, 672)), (Fraction(1, 2), (672, 384))])
def test_pixels_that_are_not_square_count_as_wide_as_they_are_seen(tmp_path, sar, shape):
  path = film(tmp_path / 'a.mp4', range(5), 'libx264', (64, 64), sar=sar)
  assert read_video(path, '512', 5).shape == (5, *shape, 3)


def test_pixels_that_are_not_square_are_not_cropped_to_the_wrong_shape(tmp_path):
  pixels = np.full((64, 64, 3), 20, np.uint8)
  pixels[:, :8] = pixels[:, -8:] = 230  # bars at the sides: kept by the shape 1:2
  path = film(tmp_path / 'a.mp4', range(5), 'libx264', (64, 64), sar=Fraction(2, 1), pixels=pixels)
  clip = read_video(path, '32x64', 1)[0]
  assert clip[:, :4].min() > 150 and clip[:, -4:].min() > 150 and clip[:, 16:-16].max() < 90


def with_cover(path, first):
  """A film whose cover art is the first or the second stream."""
  cover = io.BytesIO()
  Image.new('RGB', (640, 480), 'red').save(cover, 'JPEG')
  with av.open(str(path), 'w') as container:

    def add_cover():
      stream = container.add_stream('mjpeg', rate=1)
      stream.width, stream.height, stream.pix_fmt = 640, 480, 'yuvj420p'
      stream.disposition = av.stream.Disposition.attached_pic
      return stream

    art = add_cover() if first else None
    stream = container.add_stream('libx264', rate=8)
    stream.height, stream.width, stream.pix_fmt = 32, 48, 'yuv420p'
    art = art or add_cover()
    packet = av.Packet(cover.getvalue())
    packet.stream, packet.pts, packet.dts = art, 0, 0
    container.start_encoding()
    container.mux(packet)
    for i in range(10):
      picture = np.full((32, 48, 3), STEP * i, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')))
    container.mux(stream.encode())
  return str(path)


@pytest.mark.parametrize('first', [True, False])
def test_cover_art_is_not_the_film(tmp_path, first):
  assert order(with_cover(tmp_path / 'a.mp4', first), 5) == [0, 2, 4, 6, 8]


def sound(path, codec):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=16000)
    samples = np.zeros((1, 1152), np.float32 if codec == 'aac' else np.int16)
    for _ in range(4):
      frame = av.AudioFrame.from_ndarray(
        samples,
        format='fltp' if codec == 'aac' else 's16p' if codec == 'libmp3lame' else 's16',
        layout='mono',
      )
      frame.sample_rate = 16000
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return str(path)


@pytest.mark.parametrize(
  'name, codec', [('a.mp4', 'aac'), ('a.mp3', 'libmp3lame'), ('a.wav', 'pcm_s16le')]
)
def test_a_sound_is_named_as_one(tmp_path, name, codec):
  with pytest.raises(MediaError, match=rf'{name}: a sound without a video stream'):
    read_video(sound(tmp_path / name, codec), '64', 5)


@pytest.mark.parametrize(
  'content, words',
  [
    (b'hello', 'not a readable video'),
    (b'', 'empty file'),
    (b'#EXTM3U\n#EXTINF:1,\nother.mp4\n', 'not a readable video'),
    (b"ffconcat version 1.0\nfile 'other.mp4'\n", 'not a readable video'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (b'<html>404</html>', 'web page'),
    (bytes(range(256)) * 40, 'not a readable video'),
  ],
)
def test_what_is_no_video_is_named(tmp_path, content, words):
  film(tmp_path / 'other.mp4')
  (tmp_path / 'a.mp4').write_bytes(content)
  with pytest.raises(MediaError, match=rf'a\.mp4: .*{words}'):
    read_video(str(tmp_path / 'a.mp4'), '64', 5)


@pytest.mark.parametrize(
  'name, codec', [('a.mp4', 'libx264'), ('a.mkv', 'libx264'), ('a.avi', 'mpeg4')]
)
@pytest.mark.parametrize('share', [0.02, 0.4, 0.8, 0.97])
def test_a_video_that_is_cut_off_is_refused_by_name(tmp_path, name, codec, share):
  data = open(film(tmp_path / name, codec=codec), 'rb').read()
  (tmp_path / 'cut').write_bytes(data[: int(len(data) * share)])
  with pytest.raises(MediaError, match='cut: '):
    read_video(str(tmp_path / 'cut'), '64', 5)


def test_limits_of_clips_are_settings(tmp_path):
  path = film(tmp_path / 'a.mp4')
  for limits in (Limits(pixels=99), Limits(frames=9), Limits(seconds=1), Limits(aspect=1.2)):
    with pytest.raises(MediaError, match=r'a\.mp4: .*limits\.'):
      read_video(path, '64', 5, limits=limits)
