"""Pictures and clips from files to uint8 [F, H, W, 3] of a bucket's size.

Resizing covers the bucket and crops the centre, so no picture gets black bars (docs/architecture.md
B15); the bucket is the nearest by log aspect ratio (B16); a clip has 4k + 1 frames (B14).
Transparent pictures are laid on white. numpy only.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from types import MappingProxyType

import numpy as np
from etils import epath
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from tuna_jax.config import UserError, nearest

Size = tuple[int, int]  # (height, width)

# (height, width) of each size class (docs/architecture.md 1.2, 9.1). Any multiple of 16 works:
# '64', '256', '48x80' ...
BUCKETS = MappingProxyType(
  {
    '512': ((512, 512), (448, 576), (576, 448), (384, 672), (672, 384)),
    '1024': ((1024, 1024), (896, 1152), (1152, 896), (768, 1344), (1344, 768)),
    'video': ((384, 672),),
  }
)

_PICTURES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
_ANIMATED = ('.gif', '.webp', '.apng', '.png')


class MediaError(UserError):
  """A picture or clip that cannot be used; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class MediaConfig:
  """image_size, video_size: a size class of `BUCKETS`, or 'N' or 'HxW'. frames: pictures of a clip,
  4k + 1.
  """

  image_size: str = '512'
  video_size: str = 'video'
  frames: int = 13

  def __post_init__(self):
    buckets(self.image_size)
    buckets(self.video_size)
    if self.frames % 4 != 1:
      raise UserError(
        f'frames={self.frames}: expected 4k + 1, for example {self.frames - (self.frames - 1) % 4}'
      )


def buckets(name: str) -> tuple[Size, ...]:
  """The sizes of a class. 'N' is one square bucket, 'HxW' one of that size. Raises ValueError for
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
  raise UserError(
    f"size {name!r}: expected one of {', '.join(BUCKETS)}, 'N' or 'HxW'{nearest(name, BUCKETS)}"
  )


def choose_bucket(height: int, width: int, sizes: Sequence[Size]) -> Size:
  """The size of nearest log aspect ratio; the first of equals."""
  return min(sizes, key=lambda s: abs(math.log(s[1] / s[0]) - math.log(width / height)))


def fit(picture: Image.Image, size: Size) -> np.ndarray:
  """uint8 [H, W, 3]: scaled (bicubic, antialiased) to cover `size`, then cropped at the centre."""
  height, width = size
  scale = max(height / picture.height, width / picture.width)
  scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
  if scaled != picture.size:
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
  left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
  return np.asarray(picture)[top : top + height, left : left + width]


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
  if not total:
    raise MediaError(f'{_name(source)}: no frames')
  wanted = frame_indices(total, frames)
  read = dict(zip(sorted(set(wanted)), pick(sorted(set(wanted)))))
  if len(read) < len(set(wanted)):
    raise MediaError(
      f'{_name(source)}: {total} frames announced, only {len(read)} of the wanted ones decoded'
    )
  first = read[wanted[0]]
  size = choose_bucket(first.height, first.width, buckets(size_class))
  return np.stack([fit(read[i], size) for i in wanted])


def _name(source) -> str:
  return (
    str(source)
    if isinstance(source, (str, epath.Path))
    else f'a {type(source).__name__} in the record'
  )


def _bytes(source) -> bytes:
  if isinstance(source, bytes):
    return source
  try:
    return epath.Path(source).read_bytes()
  except OSError as e:
    raise MediaError(f'{source}: {e.strerror or e}') from e


def open_picture(source) -> Image.Image:
  """A path, encoded bytes or uint8 [H, W, 3] as an upright RGB picture. Raises MediaError naming
  the file.
  """
  if isinstance(source, np.ndarray):
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
      raise MediaError(
        f'a picture must be uint8 [height, width, 3], found {source.dtype} {list(source.shape)}'
      )
    return Image.fromarray(source)
  try:
    picture = Image.open(io.BytesIO(_bytes(source)))
    picture.load()
  except UnidentifiedImageError as e:  # its own words hold an address in memory
    raise MediaError(f'{_name(source)}: not a readable picture (of no known format)') from e
  except (OSError, SyntaxError, Image.DecompressionBombError) as e:
    raise MediaError(f'{_name(source)}: not a readable picture ({e})') from e
  return _on_white(ImageOps.exif_transpose(picture))


def _on_white(picture: Image.Image) -> Image.Image:
  """RGB; what is transparent shows white."""
  if picture.mode in ('RGBA', 'LA', 'PA') or 'transparency' in picture.info:
    picture = picture.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture).convert('RGB')
  return picture.convert('RGB')


def _frames(source):
  """(number of frames, function: increasing indices -> iterator of pictures)."""
  if isinstance(source, np.ndarray):
    if source.ndim != 4:
      raise MediaError(
        f'a clip must be uint8 [frames, height, width, 3], found {source.dtype} {list(source.shape)}'
      )
    return len(source), lambda wanted: [open_picture(source[i]) for i in wanted]
  if isinstance(source, (list, tuple)):
    return len(source), lambda wanted: [open_picture(source[i]) for i in wanted]
  path = epath.Path(source)
  if path.is_dir():
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURES)
    return len(files), lambda wanted: [open_picture(files[i]) for i in wanted]
  if path.suffix.lower() in _ANIMATED:
    return _animation(source)
  return _film(source)


def _animation(source):
  try:
    picture = Image.open(io.BytesIO(_bytes(source)))
    frames = [_on_white(f.copy()) for f in ImageSequence.Iterator(picture)]
  except UnidentifiedImageError as e:
    raise MediaError(f'{source}: not a readable animation (of no known format)') from e
  except (OSError, SyntaxError) as e:
    raise MediaError(f'{source}: not a readable animation ({e})') from e
  return len(frames), lambda wanted: [frames[i] for i in wanted]


def _film(source):
  try:
    import av  # only video files need it
  except ImportError as e:
    raise MediaError(f"{source}: reading video files needs the package 'av'") from e
  data = _bytes(source)

  def decode() -> Iterator:
    try:
      with av.open(io.BytesIO(data)) as container:
        yield from container.decode(video=0)
    except (av.FFmpegError, IndexError) as e:
      raise MediaError(f'{source}: not a readable video ({e})') from e

  def pick(wanted):
    wanted = set(wanted)
    for i, frame in enumerate(decode()):
      if i in wanted:
        yield frame.to_image().convert('RGB')

  return sum(
    1 for _ in decode()
  ), pick  # counted by decoding: what a container announces is often wrong
