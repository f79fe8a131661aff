"""One reader of a picture, whichever way it comes: path, encoded bytes, PIL picture or array.

    open     header, size as seen (EXIF orientation), limits   before anything is decoded
    decode   JPEG at 1/1 to 1/8                                no smaller than twice the target
    scale    the largest centred box of the target's shape     so the cost follows the target
    colour   range to 0..255, ICC profile to sRGB, transparent on white

Ranges: 16-bit values are divided by 257. 32-bit integers and floats take the smallest of 0..1
(floats only), 0..255 and 0..65535 that holds all values of the picture. Where none does, or values
beyond the first range fill less than a sixteenth of another, the picture's own minimum and maximum
become 0 and 255. numpy only.
"""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from tuna_jax import files
from tuna_jax.data.limits import LIMITS, Limits, MediaError, read

Size = tuple[int, int]  # (height, width)

# Formats whose decoders run inside this process. Left out: EPS and WMF, which start or need other
# programs, and those that PIL only recognises.
FORMATS = (
  *('PNG', 'JPEG', 'MPO', 'WEBP', 'GIF', 'AVIF', 'HEIF', 'TIFF', 'BMP', 'DIB', 'JPEG2000', 'PPM'),
  *('ICO', 'ICNS', 'TGA', 'PCX', 'DCX', 'SGI', 'DDS', 'PSD', 'QOI', 'SUN', 'XBM', 'MSP', 'IM'),
)
_T = Image.Transpose
# EXIF orientation -> what turns the stored picture into the seen one; 5 to 8 lie on their side.
_TURNS = {
  2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM,
  5: _T.TRANSPOSE, 6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90,
}  # fmt: skip
_DEEP = ('I', 'F', 'I;16', 'I;16L', 'I;16B', 'I;16N')
_SCALED = ('L', 'LA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', *_DEEP)  # others become RGB(A) first


class Picture:
  """An opened picture. height, width: as seen; width is a float where pixels are not square."""

  def __init__(self, image: Image.Image, orientation: int = 1, aspect: float = 1.0):
    """orientation: as in EXIF. aspect: width over height of one stored pixel."""
    self._image, self._orientation, self._aspect = image, orientation, aspect
    seen = (image.height, image.width * aspect)
    self.height, self.width = seen[::-1] if orientation > 4 else seen

  def fit(self, size: Size) -> np.ndarray:
    """uint8 [H, W, 3]: the largest centred box of that shape, scaled (bicubic, antialiased)."""
    image = self._image
    height, width = size[::-1] if self._orientation > 4 else size
    scale = 2 * max(width / image.width, height / image.height)
    if isinstance(image, ImageFile.ImageFile) and image.format in ('JPEG', 'MPO') and image.tile:
      image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    image.load()
    whole = image
    if image.mode not in _SCALED or ('transparency' in image.info and image.mode not in _DEEP):
      image = _without_palette(image)
    image = image.resize((width, height), Image.Resampling.BICUBIC, self._kept(width, height))
    if image.mode in _DEEP:
      image = _to_grey(image, whole)
    image = _to_rgb(image, whole.info.get('icc_profile'))
    turn = _TURNS.get(self._orientation)
    return np.asarray(image if turn is None else image.transpose(turn))

  def _kept(self, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of the stored picture that is scaled: whole pixels of the picture when scaled."""
    wide, tall = self._image.width * self._aspect, self._image.height
    scale = max(width / wide, height / tall)
    wide, tall = max(width, round(wide * scale)), max(height, round(tall * scale))
    left, top = (wide - width) // 2, (tall - height) // 2
    x, y = self._image.width / wide, self._image.height / tall  # stored pixels per scaled pixel
    right, bottom = (left + width) * x, (top + height) * y
    return left * x, top * y, min(right, self._image.width), min(bottom, self._image.height)


def open_picture(source, limits: Limits = LIMITS) -> Picture:
  """source: a path, encoded bytes, a PIL picture, or an array [h, w], [h, w, 1 to 4]: uint8, bool,
  uint16, or floats from 0 to 1. Raises MediaError, or what the decoder raises.
  """
  if isinstance(source, Image.Image):
    image = source
    if isinstance(image, ImageFile.ImageFile):
      if image.format not in FORMATS:
        raise MediaError(f'{image.format} pictures are not read')
      if image.format in ('JPEG', 'MPO') and image.tile and image.fp and not image.tell():
        image = _reopened(image, limits)  # to be decoded as the same file is by its path
  elif isinstance(source, np.ndarray):
    return Picture(_of_array(source, limits))
  else:
    image = open_image(read(source, limits))
  limits.check_pixels(*image.size)
  tags = image.tag_v2 if image.format == 'TIFF' else {}
  if 50706 in tags or (330 in tags and tags.get(254, 0) & 1):
    raise MediaError('a raw photo, of which only the thumbnail is readable; develop it first')
  if image.format not in ('JPEG', 'MPO'):
    image.load()  # PNG keeps EXIF behind the pixels, TIFF turns itself
  return Picture(image, orientation_of(image))


def open_image(data: bytes) -> Image.Image:
  """Encoded bytes as an unloaded PIL picture. Raises MediaError where no format of ours fits."""
  try:
    return Image.open(io.BytesIO(data), formats=_formats())
  except UnidentifiedImageError:
    what = files.impostor(data)
    if not what and data[4:12] in (b'ftypheic', b'ftypheix', b'ftypmif1', b'ftypmsf1'):
      what = "HEIC, which needs the package 'pillow-heif'" if 'HEIF' not in _formats() else ''
    raise MediaError(f'not a readable picture ({what or "of no known format"})') from None


@functools.cache
def _formats() -> tuple[str, ...]:
  try:
    import pillow_heif  # optional: HEIC is under patents

    pillow_heif.register_heif_opener()
  except ImportError:
    pass
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def orientation_of(image: Image.Image) -> int:
  """The orientation, 1 to 8, that EXIF says; 1, which turns nothing, where EXIF is damaged."""
  try:
    found = image.getexif().get(0x0112)
    return found if found in _TURNS else 1
  except Exception:  # any: the pixels are whole
    return 1


def _reopened(image: ImageFile.ImageFile, limits: Limits) -> Image.Image:
  at = image.fp.tell()
  image.fp.seek(0)
  data = image.fp.read(limits.bytes + 1)
  image.fp.seek(at)
  return open_image(read(data, limits))


def _of_array(pixels: np.ndarray, limits: Limits) -> Image.Image:
  found = f'{pixels.dtype} {list(pixels.shape)}'
  if pixels.ndim == 3 and pixels.shape[2] == 1:
    pixels = pixels[..., 0]
  if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] not in (2, 3, 4)):
    raise MediaError(f'a picture must be [height, width, 1 to 4] or [height, width], found {found}')
  limits.check_pixels(*pixels.shape[1::-1])
  if pixels.dtype == np.uint16:
    pixels = (pixels + 128.0) // 257
  elif np.issubdtype(pixels.dtype, np.floating):
    low, high = np.min(pixels), np.max(pixels)
    if not (low > -0.001 and high < 1.001):  # rounding may leave the range; true for NaN too
      raise MediaError(f'a picture of floats must be 0 to 1, found {low:g} to {high:g} in {found}')
    pixels = np.clip(np.rint(pixels.astype(np.float32) * 255), 0, 255)
  elif pixels.dtype == bool:
    pixels = pixels * 255
  elif pixels.dtype != np.uint8:
    raise MediaError(f'a picture must be uint8, uint16, bool or floats from 0 to 1, found {found}')
  return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))


def _without_palette(image: Image.Image) -> Image.Image:
  see_through = 'transparency' in image.info or image.mode in ('PA', 'La', 'RGBa')
  if image.mode == 'P' and image.palette is not None:
    see_through |= image.palette.mode == 'RGBA'
  return image.convert({'1': 'L', 'La': 'LA'}.get(image.mode, 'RGBA' if see_through else 'RGB'))


def _to_grey(image: Image.Image, whole: Image.Image) -> Image.Image:
  """uint8 from a deep picture; `whole` tells the range."""
  values = np.asarray(image).astype(np.float32)
  tags = whole.tag_v2 if whole.format == 'TIFF' else {}
  if image.mode != 'F' and (image.mode != 'I' or whole.format == 'PPM'):
    low, high = 0, 4095 if tags.get(258) == (12,) else 65535
  else:
    low, high = whole.getextrema()
    if not (math.isfinite(high - low) and np.isfinite(values).all()):
      raise MediaError('the picture holds values that are not finite')
    ranges = ((0, 1), (16, 255), (4096, 65535)) if image.mode == 'F' else ((0, 255), (4096, 65535))
    fits = [top for least, top in ranges if low >= 0 and least <= high <= top]
    low, high = (0, fits[0]) if fits else (low, high)
  values = np.clip(np.rint((values - low) * (255 / max(high - low, 1e-30))), 0, 255)
  if tags.get(262) == 0 and image.mode.startswith('I;16'):
    values = 255 - values  # TIFF may say that 0 is white; PIL looks at this in 8 bits only
  return Image.fromarray(values.astype(np.uint8))


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
  alpha = image.getchannel('A') if image.mode in ('LA', 'RGBA') else None
  if alpha is not None:
    image = image.convert(image.mode[:-1])
  if profile and len(profile) < 1 << 23 and image.mode in ('L', 'RGB', 'CMYK'):
    try:
      image = _to_srgb(profile, image.mode).apply(image)
    except Exception:  # a damaged profile, or one of another mode: as if there were none
      pass
  image = image.convert('RGB')
  if alpha is not None and alpha.getextrema() != (255, 255):
    image = Image.composite(image, Image.new('RGB', image.size, 'white'), alpha)
  return image


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
  source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
  return ImageCms.buildTransform(source, ImageCms.createProfile('sRGB'), mode, 'RGB')
