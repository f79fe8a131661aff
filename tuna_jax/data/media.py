"""Pictures and clips become uint8 [F, H, W, 3] of a bucket's size.

Resizing covers the bucket and crops the centre, so no picture gets black bars (docs/architecture.md
B15); the bucket is the nearest by log aspect ratio (B16); a clip has 4k + 1 frames (B14).
`pictures.py` and `clips.py` read, `limits.py` says what may cost how much. numpy only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from tuna_jax.config import UserError, nearest
from tuna_jax.data.clips import read_frames
from tuna_jax.data.limits import LIMITS, Limits, MediaError, naming, read
from tuna_jax.data.pictures import Size, open_image, open_picture
from tuna_jax.ranges import Count, Range

__all__ = ['BUCKETS', 'Limits', 'MediaConfig', 'MediaError', 'Size']  # and the functions below

# (height, width) of each size class (docs/architecture.md 1.2, 9.1). Any multiple of 16 works:
# '64', '256', '48x80' ...
BUCKETS = {
  '512': ((512, 512), (448, 576), (576, 448), (384, 672), (672, 384)),
  '1024': ((1024, 1024), (896, 1152), (1152, 896), (768, 1344), (1344, 768)),
  'video': ((384, 672),),
}


@dataclasses.dataclass(frozen=True)
class MediaConfig:
  """image_size, video_size: a size class of `BUCKETS`, or 'N' or 'HxW'. frames: of a clip, 4k + 1.
  limits: what one record may cost. processes: records are decoded in this many processes of their
  own, so that a crash of a codec costs one record; 0 decodes in this process.
  """

  image_size: str = '512'
  video_size: str = 'video'
  frames: Count = 13
  limits: Limits = LIMITS
  processes: Annotated[int, Range(0, 10_000)] = 0

  def __post_init__(self):
    buckets(self.image_size)
    buckets(self.video_size)
    if self.frames < 1 or self.frames % 4 != 1:
      near = max(1, self.frames - (self.frames - 1) % 4)
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
    raise UserError(
      f'height {size[0]} and width {size[1]}: both sides must be multiples of 16, and above 0'
    )
  known = ', '.join(BUCKETS)
  raise UserError(f"size {name!r}: expected one of {known}, 'N' or 'HxW'{nearest(name, BUCKETS)}")


def choose_bucket(height: int, width: int, sizes: Sequence[Size]) -> Size:
  """The size of nearest log aspect ratio; the first of equals."""
  return min(sizes, key=lambda s: abs(math.log(s[1] / s[0]) - math.log(width / height)))


def read_image(
  source,
  size_class: str,
  size: Size | Callable[[float, float], Size] | None = None,
  limits: Limits = LIMITS,
) -> np.ndarray:
  """A picture as uint8 [H, W, 3].

  source: as in `pictures.open_picture`. size: this size instead of the nearest bucket of
  `size_class`, or a function that chooses it from (height, width). Raises MediaError naming the
  file, whatever the decoder raised.
  """
  sizes = buckets(size_class)
  if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape[2:] == (3,):
    if source.shape[:2] in ((size,) if size else sizes):
      return source.copy()  # as it is: to read it again costs a benchmark 5 % of its time
  with naming(source, 'picture'):
    picture = open_picture(source, limits)
    if callable(size):
      size = size(picture.height, picture.width)
    return picture.fit(size or choose_bucket(picture.height, picture.width, sizes))


def is_animated(source, limits: Limits = LIMITS) -> bool:
  """Whether a picture, a path or bytes, has several frames. Raises MediaError naming the file."""
  with naming(source, 'picture'):
    return getattr(open_image(read(source, limits)), 'n_frames', 1) > 1


def read_video(
  source, size_class: str, frames: int, limits: Limits = LIMITS, root: str | None = None
) -> np.ndarray:
  """A clip as uint8 [frames, H, W, 3], moments spread evenly over its time.

  source: a video file or an animated picture (a path or bytes), a folder of pictures, a sequence of
  pictures, or an array [f, h, w, 3]. root: where links inside of a folder may lead. Raises
  MediaError naming the file, whatever the decoder raised.
  """
  sizes, size, out = buckets(size_class), None, []
  with naming(source, 'video'):
    for picture, times in read_frames(source, frames, limits, root):
      size = size or choose_bucket(picture.height, picture.width, sizes)
      out += [picture.fit(size)] * times
    return np.stack(out)
