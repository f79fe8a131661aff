"""A clip gives the frames that a player shows at evenly spaced moments."""

import io
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.clips import shown
from tuna_jax.data.limits import Limits
from tuna_jax.data.media import MediaError, read_video
from tuna_jax.sample.output import Clip

STEP = 20  # grey of frame i is STEP * i; lossy codecs stay within half of it


def film(path, greys=range(10), codec='mpeg4', size=(32, 48), rate=8, at=None, **options):
  """A video whose frame i is grey STEP * greys[i], shown from millisecond at[i]."""
  options = {key.replace('_', '-'): value for key, value in options.items()}
  sar, pixels = options.pop('sar', None), options.pop('pixels', None)
  with av.open(str(path), 'w', options={'movflags': '+faststart'}) as container:
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p'
    if sar:
      stream.codec_context.sample_aspect_ratio = sar
    if at:
      stream.codec_context.time_base = Fraction(1, 1000)
    for i, grey in enumerate(greys):
      picture = np.full((*size, 3), STEP * grey, np.uint8) if pixels is None else pixels
      frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
      if at:
        frame.pts, frame.time_base = at[i], Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return str(path)


def order(source, frames, size='32x48', **more):
  """Which frames a clip gave."""
  return (
    np.rint(read_video(source, size, frames, **more).mean((1, 2, 3)) / STEP).astype(int).tolist()
  )


def colours(folder, count, step=STEP, size=(16, 16)):
  return [Image.new('RGB', size, (step * i,) * 3) for i in range(count)]


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


# ---- animated pictures


def animation(path, images, **options):
  images[0].save(path, save_all=True, append_images=images[1:], **options)
  return str(path)


LOSSLESS = {'webp': {'lossless': True}, 'avif': {'quality': 100}}


@pytest.mark.parametrize('kind', ['gif', 'webp', 'png', 'avif'])
def test_an_animated_picture_is_a_clip(tmp_path, kind):
  path = animation(
    tmp_path / f'a.{kind}', colours(tmp_path, 10), duration=50, **LOSSLESS.get(kind, {})
  )
  assert order(path, 5, '16') == [0, 2, 4, 6, 8]
  assert order(open(path, 'rb').read(), 5, '16') == [0, 2, 4, 6, 8]


@pytest.mark.parametrize('kind', ['gif', 'webp', 'png', 'avif'])
def test_uneven_durations_keep_their_speed(tmp_path, kind):
  durations = [100, 100, 600, 100, 100]
  path = animation(
    tmp_path / f'a.{kind}', colours(tmp_path, 5), duration=durations, **LOSSLESS.get(kind, {})
  )
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
  path = animation(tmp_path / 'a.gif', colours(tmp_path, 3), duration=[0, 100, 100])
  assert order(path, 3, '16') == [0, 1, 2]


def test_the_still_of_an_animated_png_is_not_its_first_frame(tmp_path):
  still = Image.new('RGB', (16, 16), 'white')
  path = animation(
    tmp_path / 'a.png', [still, *colours(tmp_path, 5)], default_image=True, duration=50
  )
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
  for i, image in enumerate(colours(tmp_path, 12)):
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
  images = colours(tmp_path, 5)
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
