"""Pictures that cannot be used are refused by name, and before they cost anything."""

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.data.made import encoded, halves
from tuna_jax.data import media
from tuna_jax.data.limits import Limits
from tuna_jax.data.media import MediaConfig, MediaError, read_image
from tuna_jax.mappings import checked
from tuna_jax.sample import requests

CONFIG = MediaConfig('64', '64', 9)


# ---- names


@pytest.mark.parametrize(
  'name', ['a b.png', 'a#b.png', '100%25.png', 'what?.png', 'ü 猫.png', '~a.png']
)
def test_every_character_of_a_name_stands_for_itself(tmp_path, name):
  halves().save(tmp_path / name)
  assert read_image(str(tmp_path / name), '64').shape == (64, 64, 3)


@pytest.mark.parametrize('url', ['https://example.com/a.png', 'http://example.com/a.png'])
def test_the_web_is_not_read(url):
  for read in (lambda: read_image(url, '64'), lambda: requests.read(url, CONFIG, 4)):
    with pytest.raises(MediaError, match=f'{url}.*download it'):
      read()


# ---- cost and refusals


@pytest.mark.parametrize('size', [(1, 6000), (6000, 1), (2, 2000), (1, 60000)])
def test_extreme_shapes_are_refused_by_name_or_cost_nothing(size):
  data, began = encoded(Image.new('RGB', size), 'PNG'), time.monotonic()
  with pytest.raises(MediaError, match='limits.aspect'):
    read_image(data, '512')
  pixels = media.read_image(data, '512', limits=Limits(aspect=1e6))
  assert pixels.shape == ((672, 384, 3) if size[1] > size[0] else (384, 672, 3))
  assert time.monotonic() - began < 2


def test_a_large_jpeg_costs_what_its_bucket_costs(monkeypatch):
  decoded, load = [], Image.Image.resize
  monkeypatch.setattr(
    Image.Image, 'resize', lambda self, *a, **k: decoded.append(self.size) or load(self, *a, **k)
  )
  read_image(encoded(Image.new('RGB', (4096, 4096), 'red'), 'JPEG'), '64')
  assert decoded == [(512, 512)]


def chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bomb(width, height):
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
  return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


@pytest.mark.parametrize('side', [9000, 13000, 60000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(side):
  with pytest.raises(MediaError, match=f'{side}x{side} pixels|decompression bomb|exceeds limit'):
    read_image(bomb(side, side), '64')


def test_limits_are_settings(tmp_path):
  halves().save(tmp_path / 'a.png')
  for limits in (Limits(pixels=100), Limits(bytes=50), Limits(aspect=1.5)):
    with pytest.raises(MediaError, match=r'a\.png: .*limits\.'):
      read_image(str(tmp_path / 'a.png'), '64', limits=limits)
  with pytest.raises(ValueError, match='pixels=0: expected at least 1'):
    checked(Limits(pixels=0))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF', 'BMP', 'GIF'])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, kind):
  photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
  data = encoded(photo, kind)
  for share in (0.02, 0.5, 0.9):
    (tmp_path / 'cut').write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match='cut: not a readable picture'):
      read_image(str(tmp_path / 'cut'), '64')


@pytest.mark.parametrize(
  'content, words',
  [
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n', 'EPS'),
    (b'\xc5\xd0\xd3\xc6' + b'\0' * 50, 'EPS'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'git lfs pull'),
    (b'<!DOCTYPE html><html></html>', 'web page'),
    (b'<svg xmlns="x"/>', 'SVG'),
    (b'%PDF-1.7', 'PDF'),
    (b'\0\0\0\x18ftypheic' + b'\0' * 20, 'pillow-heif|no known format'),
    (b'\xff\x0a\xfa\x7f', 'JPEG XL'),
    (b'', 'empty file'),
    (b'hello', 'no known format'),
  ],
)
def test_what_is_no_picture_of_ours_is_said(tmp_path, content, words):
  (tmp_path / 'a.png').write_bytes(content)
  with pytest.raises(MediaError, match=rf'a\.png: .*{words}'):
    read_image(str(tmp_path / 'a.png'), '64')


def test_the_thumbnail_of_a_raw_photo_is_not_the_photo(tmp_path):
  for tags in ({50706: b'\1\4\0\0'}, {254: 1, 330: 8}):
    Image.new('RGB', (64, 64)).save(tmp_path / 'photo.tif', tiffinfo=tags)
    with pytest.raises(MediaError, match=r'photo\.tif: a raw photo'):
      read_image(str(tmp_path / 'photo.tif'), '64')


def test_a_format_that_starts_other_programs_is_refused_as_pil_picture_too():
  image = Image.open(
    io.BytesIO(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n')
  )
  with pytest.raises(MediaError, match='EPS pictures are not read'):
    read_image(image, '64')


def test_pipes_devices_and_folders_are_no_pictures(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  for path in (tmp_path / 'pipe.png', '/dev/zero', tmp_path):
    with pytest.raises(MediaError, match='not a regular file|Is a directory'):
      read_image(str(path), '64')


def test_settings_in_a_picture_do_not_fill_the_memory():
  info = PngImagePlugin.PngInfo()
  info.add_text('x', 'y' * 2_000_000, zip=True)
  with pytest.raises(MediaError, match='not a readable picture'):
    read_image(encoded(halves(), 'PNG', pnginfo=info), '64')
