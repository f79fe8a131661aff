"""The same picture gives the same pixels, whichever way it comes and whatever its file holds."""

import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.data.made import encoded, halves
from tuna_jax.data.media import MediaConfig, MediaError, read_image
from tuna_jax.sample import requests

CONFIG = MediaConfig('64', '64', 9)


def ramp(dtype, top, shape=(64, 64)):
  return np.linspace(0, top, shape[0] * shape[1]).reshape(shape).astype(dtype)


def oriented(value):
  exif = Image.Exif()
  exif[0x0112] = value
  return exif


# ---- orientation


def corners(pixels):
  return [tuple((pixels[y, x] > 127).tolist()) for y in (8, -8) for x in (8, -8)]


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
@pytest.mark.parametrize('value', range(1, 9))
def test_pictures_stand_as_exif_says(kind, value):
  names = {'red': (255, 0, 0), 'lime': (0, 255, 0), 'blue': (0, 0, 255), 'white': (255, 255, 255)}
  seen = np.repeat(
    np.repeat(np.array(list(names.values()), np.uint8).reshape(2, 2, 3), 24, 0), 48, 1
  )
  undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # from seen to stored, by Image.Transpose
  stored = Image.fromarray(seen)
  stored = stored.transpose(Image.Transpose(undo[value])) if value > 1 else stored
  options = {} if kind == 'TIFF' else {'quality': 95}
  data = encoded(stored, kind, exif=oriented(value), **options)
  pixels = read_image(data, '512', (48, 96))
  assert corners(pixels) == corners(seen)


@pytest.mark.parametrize(
  'exif',
  [b'Exif\0\0', b'Exif\0\0MM\0*\0\0\0\x08\xff\xff', b'Exif\0\0II*\0\xff\xff\xff\xff', b'\xff' * 40],
)
def test_damaged_exif_never_costs_the_pixels(exif):
  pixels = read_image(encoded(halves(), 'JPEG', exif=exif), '32x64')
  assert pixels[16, 8, 0] > 240 and pixels[16, 56, 2] > 240


@pytest.mark.parametrize('value', [0, 9, 77])
def test_an_unknown_orientation_turns_nothing(value):
  assert read_image(encoded(halves(), 'PNG', exif=oriented(value)), '32x64')[16, 8, 0] == 255


# ---- ranges and modes


@pytest.mark.parametrize(
  'dtype, top, name',
  [
    (np.uint16, 65535, 'a.png'),
    (np.uint16, 65535, 'a.tif'),
    (np.dtype('>u2'), 65535, 'a.tif'),
    (np.int32, 65535, 'a.tif'),
    (np.int32, 255, 'a.tif'),
    (np.int32, 1_000_000, 'a.tif'),
    (np.float32, 1, 'a.tif'),
    (np.float32, 255, 'a.tif'),
    (np.float32, 65535, 'a.tif'),
    (np.float32, 12.5, 'a.tif'),
    (np.int32, 4095, 'a.tif'),
    (np.float32, 1e6, 'a.tif'),
  ],
)
def test_deep_pictures_are_mapped_by_their_range(tmp_path, dtype, top, name):
  Image.fromarray(ramp(dtype, top)).save(tmp_path / name)
  wanted = np.linspace(0, 255, 64 * 64).reshape(64, 64)
  pixels = read_image(str(tmp_path / name), '64')
  assert np.abs(pixels - wanted[..., None]).max() <= 1


@pytest.mark.parametrize(
  'dtype, values, wanted',
  [
    (np.float32, (0, 0.25), (0, 64)),
    (np.float32, (50, 100), (50, 100)),
    (np.int32, (3, 9), (3, 9)),
    (np.int32, (2570, 25700), (10, 100)),
    (np.float32, (7, 7), (0, 0)),
  ],
)
def test_a_picture_that_does_not_fill_its_range_keeps_its_brightness(
  tmp_path, dtype, values, wanted
):
  Image.fromarray(np.repeat(np.array([values], dtype), 8, 1).repeat(16, 0)).save(tmp_path / 'a.tif')
  pixels = read_image(str(tmp_path / 'a.tif'), '16')
  assert (pixels[0, 0, 0], pixels[0, -1, 0]) == wanted


def test_signed_values_are_stretched_from_their_minimum_to_their_maximum(tmp_path):
  Image.fromarray(ramp(np.float32, 4) - 2).save(tmp_path / 'a.tif')
  pixels = read_image(str(tmp_path / 'a.tif'), '64')
  assert (pixels.min(), pixels.max()) == (0, 255) and abs(pixels.mean() - 127.5) < 1


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_picture_that_is_not_finite_is_named(tmp_path, bad):
  values = ramp(np.float32, 1)
  values[30, 30] = bad
  Image.fromarray(values).save(tmp_path / 'a.tif')
  with pytest.raises(MediaError, match=r'a\.tif: .*not finite'):
    read_image(str(tmp_path / 'a.tif'), '64')


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
  Image.fromarray(np.full((64, 64), 200, np.uint16)).save(tmp_path / 'a.png')
  (tmp_path / 'a.pgm').write_bytes(b'P5 64 64 65535\n' + b'\0\xc8' * 4096)
  assert read_image(str(tmp_path / 'a.png'), '64').max() == 1
  assert read_image(str(tmp_path / 'a.pgm'), '64').max() == 1


@pytest.mark.parametrize(
  'mode, fill, wanted',
  [
    ('RGBA', (255, 0, 0, 128), (255, 127, 127)),
    ('RGBA', (0, 0, 0, 0), (255, 255, 255)),
    ('LA', (0, 51), (204, 204, 204)),
    ('1', 1, (255, 255, 255)),
    ('L', 77, (77, 77, 77)),
  ],
)
def test_transparent_pictures_lie_on_white(mode, fill, wanted):
  pixels = read_image(encoded(Image.new(mode, (40, 40), fill), 'PNG'), '16')
  assert np.abs(pixels.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize('mode', ['P', 'L', 'RGB'])
def test_a_transparent_colour_shows_white(mode):
  image = Image.new('RGB', (32, 32), 'black').convert(mode)
  index = {'P': image.getpixel((0, 0)), 'L': 0, 'RGB': (0, 0, 0)}[mode]
  assert read_image(encoded(image, 'PNG', transparency=index), '16').min() == 255


def test_the_colour_of_transparent_pixels_does_not_bleed():
  pixels = np.zeros((64, 64, 4), np.uint8)
  pixels[:, :32] = (255, 255, 255, 255)  # white beside transparent black: all white when seen
  assert read_image(encoded(Image.fromarray(pixels), 'PNG'), '16').min() >= 254


def test_cmyk_of_adobe_and_of_tiff_are_the_same_red():
  image = Image.new('CMYK', (64, 64), (0, 255, 255, 0))
  for kind in ('JPEG', 'TIFF'):
    pixels = read_image(encoded(image, kind), '16')
    assert pixels[..., 0].min() > 245 and pixels[..., 1:].max() < 12


@pytest.mark.parametrize('kind', ['AVIF', 'WEBP', 'JPEG2000', 'BMP', 'PPM', 'TGA', 'QOI', 'ICO'])
def test_other_formats_are_read(kind):
  pixels = read_image(encoded(halves(64, 64), kind), '64')
  assert pixels[32, 8, 0] > 230 and pixels[32, 56, 2] > 230


# ---- colour profiles


def swapped_profile():
  """An RGB profile whose red and blue primaries are exchanged: red in it is blue in sRGB."""
  data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
  table = {bytes(data[132 + 12 * i :][:4]): 132 + 12 * i for i in range(data[131])}
  red, blue = table[b'rXYZ'], table[b'bXYZ']
  data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
    data[blue + 4 : blue + 12],
    data[red + 4 : red + 12],
  )
  return bytes(data)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
def test_a_colour_profile_is_converted_to_srgb(kind):
  data = encoded(Image.new('RGB', (64, 64), (255, 0, 0)), kind, icc_profile=swapped_profile())
  assert np.abs(read_image(data, '16').astype(int) - (0, 0, 255)).max() < 12


def test_a_colour_profile_leaves_transparency_alone():
  image = Image.new('RGBA', (32, 32), (255, 0, 0, 128))
  pixels = read_image(encoded(image, 'PNG', icc_profile=swapped_profile()), '16')
  assert np.abs(pixels.astype(int) - (127, 127, 255)).max() < 6


@pytest.mark.parametrize('profile', [b'broken', swapped_profile()[:200], b'\0' * 500])
def test_a_damaged_profile_is_as_none(profile):
  data = encoded(Image.new('RGB', (64, 64), (255, 0, 0)), 'PNG', icc_profile=profile)
  assert read_image(data, '16')[0, 0].tolist() == [255, 0, 0]


def test_a_profile_of_another_mode_is_as_none():
  data = encoded(Image.new('L', (64, 64), 90), 'PNG', icc_profile=swapped_profile())
  assert read_image(data, '16')[0, 0].tolist() == [90, 90, 90]


# ---- one reader for paths, bytes, PIL pictures and arrays


def samples(folder):
  photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8))
  photo.save(folder / 'phone.jpg', exif=oriented(6), quality=60)
  Image.new('CMYK', (64, 64), (0, 255, 255, 0)).save(folder / 'cmyk.jpg')
  # Pillow 12 does not read what it writes of this mode without compression.
  Image.new('YCbCr', (64, 64)).save(folder / 'ycbcr.tif', compression='tiff_deflate')
  Image.new('LAB', (64, 64)).save(folder / 'lab.tif')
  Image.new('F', (64, 64), 100.0).save(folder / 'float.tif')
  Image.new('RGBA', (64, 64), (255, 0, 0, 128)).save(folder / 'alpha.png')
  halves().convert('P').save(folder / 'palette.gif')
  Image.fromarray(ramp(np.uint16, 65535)).save(folder / 'grey16.png')
  return sorted(os.listdir(folder))


def test_a_path_its_bytes_and_its_pil_picture_are_one_picture(tmp_path):
  for name in samples(tmp_path):
    path = tmp_path / name
    for read in (
      lambda source: requests.read_source(source, CONFIG, None, 16),
      lambda source: requests.read(source, CONFIG, 4),
    ):
      wanted = read(str(path))
      for source in (path, path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(read(source), wanted, err_msg=f'{name} {type(source)}')


@pytest.mark.parametrize(
  'mode', ['1', 'L', 'LA', 'La', 'PA', 'RGBX', 'RGBa', 'HSV', 'YCbCr', 'LAB']
)
def test_pil_pictures_of_every_mode_are_read(mode):
  assert requests.read(Image.new(mode, (30, 30)), CONFIG, 4).shape == (1, 64, 64, 3)


def test_reading_a_pil_picture_leaves_it_as_it_was(tmp_path):
  halves(1600, 1200).save(tmp_path / 'a.jpg')
  image = Image.open(tmp_path / 'a.jpg')
  read_image(image, '16')
  assert image.size == (1600, 1200) and image.getpixel((3, 3))[0] > 240


@pytest.mark.parametrize(
  'pixels, wanted',
  [
    (np.full((8, 8), 90, np.uint8), 90),
    (np.full((8, 8, 1), 90, np.uint8), 90),
    (np.full((8, 8, 3), 90, np.uint8), 90),
    (np.array([[[0, 51]]], np.uint8), 204),
    (np.array([[[0, 0, 0, 51]]], np.uint8), 204),
    (np.full((8, 8, 3), 0.2, np.float32), 51),
    (np.full((8, 8), 0.2, np.float16), 51),
    (np.full((8, 8), 1.0002, np.float32), 255),
    (np.full((8, 8, 3), 51 * 257, np.uint16), 51),
    (np.ones((8, 8), bool), 255),
  ],
)
def test_arrays_grey_and_transparent_floats_and_16_bits(pixels, wanted):
  read = read_image(pixels, '16')
  assert read.shape == (16, 16, 3) and (read == wanted).all()


@pytest.mark.parametrize(
  'pixels, words',
  [
    (np.zeros((0, 5, 3), np.uint8), 'expected at least 1x1'),
    (np.zeros((5, 5, 7), np.uint8), r'found uint8 \[5, 5, 7\]'),
    (np.zeros(5, np.uint8), r'found uint8 \[5\]'),
    (np.zeros((5, 5, 3), np.int64), 'found int64'),
    (np.full((5, 5, 3), 200.0), 'must be 0 to 1, found 200 to 200'),
    (np.full((5, 5, 3), -0.1), 'must be 0 to 1'),
    (np.full((5, 5, 3), np.nan), 'must be 0 to 1'),
    (np.full((5, 5), 'x', object), 'found object'),
  ],
)
def test_other_arrays_are_refused_by_name(pixels, words):
  with pytest.raises(MediaError, match=words):
    read_image(pixels, '16')


@pytest.mark.parametrize('source', [None, 3, ['a.png'], {}])
def test_what_is_no_picture_is_named(source):
  with pytest.raises(MediaError, match='expected a path'):
    read_image(source, '16')
