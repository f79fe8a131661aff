"""Pictures and clips from files to uint8 [F, H, W, 3] of a bucket's size.

Resizing covers the bucket and crops the centre, so no picture gets black bars (docs/architecture.md
B15); the bucket is the nearest by log aspect ratio (B16); a clip has 4k + 1 frames (B14).
Transparent pictures are laid on white. numpy only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from tuna_jax import files
from tuna_jax.config import UserError, nearest

Size = tuple[int, int]  # (height, width)
Pick = Callable[[Sequence[int]], list[Image.Image]]

# (height, width) of each size class (docs/architecture.md 1.2, 9.1). Any multiple of 16 works:
# '64', '256', '48x80' ...
BUCKETS = {
  '512': ((512, 512), (448, 576), (576, 448), (384, 672), (672, 384)),
  '1024': ((1024, 1024), (896, 1152), (1152, 896), (768, 1344), (1344, 768)),
  'video': ((384, 672),),
}

_PICTURES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
_ANIMATED = ('.gif', '.webp', '.apng', '.png')


class MediaError(UserError):
  """A picture or clip that cannot be used; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class MediaConfig:
  """image_size, video_size: a size class of `BUCKETS`, or 'N' or 'HxW'. frames: of a clip, 4k + 1."""

  image_size: str = '512'
  video_size: str = 'video'
  frames: int = 13

  def __post_init__(self):
    buckets(self.image_size)
    buckets(self.video_size)
    if self.frames % 4 != 1:
      near = self.frames - (self.frames - 1) % 4
      raise UserError(f'frames={self.frames}: expected 4k + 1, for example {near}')


def buckets(name: str) -> tuple[Size, ...]:
  """The sizes of a class. 'N' is one square bucket, 'HxW' one of that size. Raises UserError for
  anything else.
  """
  if name in BUCKETS:
    return BUCKETS[name]
  parts = name.split('x')
  if len(parts) in (1, 2) and all(p.isdigit() for p in parts):
    size = (int(parts[0]), int(parts[-1]))
    if min(size) > 0 and not (size[0] % 16 or size[1] % 16):
      return (size,)
    raise UserError(f'size {name!r}: both sides must be multiples of 16')
  known = ', '.join(BUCKETS)
  raise UserError(f"size {name!r}: expected one of {known}, 'N' or 'HxW'{nearest(name, BUCKETS)}")


def choose_bucket(height: int, width: int, sizes: Sequence[Size]) -> Size:
  """The size of nearest log aspect ratio; the first of equals."""
  return min(sizes, key=lambda s: abs(math.log(s[1] / s[0]) - math.log(width / height)))


def fit(picture: Image.Image, size: Size) -> np.ndarray:
  """uint8 [H, W, 3]: scaled (bicubic, antialiased) to cover `size` and cropped at the centre.

  Only the part that is kept is scaled, so that a panorama costs what its bucket costs; the crop is
  by whole pixels of the scaled picture.
  """
  height, width = size
  scale = max(height / picture.height, width / picture.width)
  tall, wide = max(height, round(picture.height * scale)), max(width, round(picture.width * scale))
  top, left = (tall - height) // 2, (wide - width) // 2
  y, x = picture.height / tall, picture.width / wide  # of the original, per scaled pixel
  box = (left * x, top * y, (left + width) * x, (top + height) * y)
  return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box))


def frame_indices(total: int, frames: int) -> list[int]:
  """`frames` indices spread evenly over a clip of `total`; a short clip repeats frames
  (docs/architecture.md 9.2).
  """
  return [i * total // frames for i in range(frames)]


def read_image(source, size_class: str, size: Size | None = None) -> np.ndarray:
  """A picture as uint8 [H, W, 3].

  source: a path, encoded bytes, or uint8 [h, w, 3]. size: this size instead of the nearest bucket
  of `size_class`. Raises MediaError naming the file.
  """
  picture = open_picture(source)
  return fit(picture, size or choose_bucket(picture.height, picture.width, buckets(size_class)))


def read_video(source, size_class: str, frames: int) -> np.ndarray:
  """A clip as uint8 [frames, H, W, 3], frames spread evenly.

  source: a video file, an animated picture, a directory of pictures, a sequence of encoded
  pictures, or uint8 [f, h, w, 3]. Raises MediaError naming the file.
  """
  total, pick = _frames(source)
  name = str(source) if isinstance(source, (str, os.PathLike)) else 'a clip in the record'
  if not total:
    raise MediaError(f'{name}: no frames')
  wanted = frame_indices(total, frames)
  read = dict(zip(sorted(set(wanted)), pick(sorted(set(wanted)))))
  if len(read) < len(set(wanted)):
    raise MediaError(f'{name}: {total} frames counted, only {len(read)} of the wanted ones decoded')
  first = read[wanted[0]]
  size = choose_bucket(first.height, first.width, buckets(size_class))
  return np.stack([fit(read[i], size) for i in wanted])


def open_picture(source) -> Image.Image:
  """A path, encoded bytes or uint8 [H, W, 3] as an upright RGB picture. Raises MediaError naming
  the file.
  """
  if isinstance(source, np.ndarray):
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
      found = f'{source.dtype} {list(source.shape)}'
      raise MediaError(f'a picture must be uint8 [height, width, 3], found {found}')
    return Image.fromarray(source)
  with _readable(source, 'picture') as data:
    picture = Image.open(data)
    picture.load()
  return _on_white(ImageOps.exif_transpose(picture))


@contextlib.contextmanager
def _readable(source, what: str):
  """The encoded bytes of a source as a file; whatever Pillow says of them becomes a MediaError."""
  name = f'a {type(source).__name__} in the record' if isinstance(source, bytes) else str(source)
  try:
    data = source if isinstance(source, bytes) else files.path(source).read_bytes()
  except OSError as e:
    raise MediaError(f'{name}: {e.strerror or e}') from e
  try:
    yield io.BytesIO(data)
  except UnidentifiedImageError as e:  # its own words hold an address in memory
    raise MediaError(f'{name}: not a readable {what} (of no known format)') from e
  except (OSError, SyntaxError, Image.DecompressionBombError) as e:
    raise MediaError(f'{name}: not a readable {what} ({e})') from e


def _on_white(picture: Image.Image) -> Image.Image:
  """RGB; what is transparent shows white."""
  if picture.mode in ('RGBA', 'LA', 'PA') or 'transparency' in picture.info:
    picture = picture.convert('RGBA')
    picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
  return picture.convert('RGB')


def _frames(source) -> tuple[int, Pick]:
  """The number of frames, and what reads those of increasing indices."""
  if isinstance(source, np.ndarray) and source.ndim != 4:
    found = f'{source.dtype} {list(source.shape)}'
    raise MediaError(f'a clip must be uint8 [frames, height, width, 3], found {found}')
  if not isinstance(source, (np.ndarray, list, tuple)):
    path = files.path(source)
    if not path.is_dir():
      return (_animation if path.suffix.lower() in _ANIMATED else _film)(source)
    source = sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURES)
  return len(source), lambda wanted: [open_picture(source[i]) for i in wanted]


def _animation(source) -> tuple[int, Pick]:
  with _readable(source, 'animation') as data:
    frames = [_on_white(f.copy()) for f in ImageSequence.Iterator(Image.open(data))]
  return len(frames), lambda wanted: [frames[i] for i in wanted]


def _film(source) -> tuple[int, Pick]:
  try:
    import av  # only video files need it
  except ImportError as e:
    raise MediaError(f"{source}: reading video files needs the package 'av'") from e
  with _readable(source, 'video') as file:
    data = file.getvalue()

  def decode():
    try:
      with av.open(io.BytesIO(data)) as container:
        yield from container.decode(video=0)
    except (av.FFmpegError, IndexError) as e:
      raise MediaError(f'{source}: not a readable video ({e})') from e

  def pick(wanted):
    wanted = set(wanted)
    return [f.to_image().convert('RGB') for i, f in enumerate(decode()) if i in wanted]

  return sum(1 for _ in decode()), pick  # containers often announce a wrong number
