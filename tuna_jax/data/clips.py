"""One reader of a clip: a video file, an animated picture, a folder of pictures, or a sequence.

The frames taken are those shown at evenly spaced moments, so that a variable frame rate and uneven
durations keep their speed; a short clip repeats frames (docs/architecture.md 9.2). A first pass
finds the time stamps (of a video without decoding it), a second decodes. One frame is in memory at
a time. numpy only.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import io
import itertools
import os
import re
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from tuna_jax import files
from tuna_jax.data.limits import Limits, MediaError, is_url, locate, open_local, read
from tuna_jax.data.pictures import Picture, open_image, open_picture, orientation_of

_PICTURES = (
  *('.png', '.jpg', '.jpeg', '.jfif', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.avif', '.heic'),
  *('.jp2', '.ppm', '.tga', '.qoi'),
)
_ANIMATED = re.compile(
  rb'GIF8|\x89PNG|RIFF....WEBP|....ftypavi|\xff\xd8\xff|BM|II\*\0|MM\0\*', re.S
)
_STILL_MS = 100  # how long a frame of duration 0 is shown, as browsers do
_KEPT = 4  # frames that a video decoder keeps, as far as their memory goes
# Demuxers that read one file and start nothing; playlists name other files and are not among them.
_CONTAINERS = (
  'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,m4v,h264,hevc,ivf,'
  'av1,obu,mxf,nut,rm,dv,gxf,yuv4mpegpipe,flac,mp3,wav,aac'
)
_INDEXED = ('mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm')  # seeking is exact and cheap
# Signs of a display matrix (x' = a x + c y, y' = b x + d y) -> the orientation, as EXIF counts it.
_ORIENTATIONS = {
  (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
  (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip

Shown = Iterator[tuple[Picture, int]]  # a frame, and at how many of the moments it is shown


def shown(starts: Sequence[float], end: float, count: int) -> list[tuple[int, int]]:
  """[(index of a frame, how many of `count` evenly spaced moments it is shown at)], rising.

  starts: when each frame appears, rising. end: when the last one disappears.
  """
  length = end - starts[0]
  late = min(0.5, length / len(starts) / (2 * count))  # containers round their time stamps
  moments = (starts[0] + i * length / count + late for i in range(count))
  return sorted(collections.Counter(bisect.bisect_right(starts, m) - 1 for m in moments).items())


def read_frames(source, count: int, limits: Limits, root: str | None = None) -> Shown:
  """The frames of a clip for `count` moments; each is to be used before the next is asked for.

  source: as in `media.read_video`. root: where links of a folder of frames may lead. Raises
  MediaError, or what the decoder raises.
  """
  if isinstance(source, np.ndarray) and source.ndim != 4:
    found = f'{source.dtype} {list(source.shape)}'
    raise MediaError(f'a clip must be [frames, height, width, 3], found {found}')
  if isinstance(source, (np.ndarray, list, tuple)):
    return _sequence(source, count, limits)
  if isinstance(source, (str, os.PathLike)) and is_folder(os.fspath(source)):
    return _sequence(frames_of(os.fspath(source), root), count, limits)
  return _file(source, count, limits)


def is_folder(path: str) -> bool:
  """Whether a clip is a folder of frames."""
  # Object storage is asked for a folder only where the name has no ending: it costs a request.
  bare = is_url(path) and not os.path.splitext(path)[1]
  return files.path(path).is_dir() if bare else os.path.isdir(path)


def _sequence(items, count, limits) -> Shown:
  _check_frames(len(items), limits)
  for index, times in shown(range(len(items)), len(items), count):
    yield open_picture(items[index], limits), times


def _check_frames(total: int, limits: Limits):
  if not total:
    raise MediaError('no frames')
  if total > limits.frames:
    raise MediaError(f'{total} frames, more than limits.frames={limits.frames}')


def frames_of(folder: str, root: str | None) -> list[str]:
  """The pictures of a folder in the order of the numbers in their names, hidden files left out."""
  names = [path.name for path in files.path(folder).iterdir()]
  names = [n for n in names if n.lower().endswith(_PICTURES) and not n.startswith('.')]
  parts = lambda name: re.split(r'(\d+)', name)
  order = lambda name: ([int(p) if p.isdecimal() else p.lower() for p in parts(name)], name)
  paths = [f'{folder.rstrip("/")}/{name}' for name in sorted(names, key=order)]
  return paths if root is None else [locate(path, root) for path in paths]


def _file(source, count, limits) -> Shown:
  local = isinstance(source, (str, os.PathLike)) and not is_url(os.fspath(source))
  with open_local(source) if local else io.BytesIO(read(source, limits)) as file:
    head = file.read(4096)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not head or files.impostor(head):
      raise MediaError(files.impostor(head) or 'an empty file')
    if _announced(head) > size:
      raise MediaError(f'the file is cut off: {size} of {_announced(head)} bytes')
    if _ANIMATED.match(head):
      yield from _animation(read(source if local else file.getvalue(), limits), count, limits)
    else:
      yield from _film(file, count, limits)


def _announced(head: bytes) -> int:
  """The length that an AVI or Matroska file says it has, or 0. (Of MP4, FFmpeg finds out.)"""
  if head[:4] == b'RIFF' and head[8:12] == b'AVI ':
    return 7 + int.from_bytes(head[4:8], 'little')  # the byte that pads an odd size may be missing
  at = head.find(b'\x18\x53\x80\x67') + 4  # the segment, then its size: a variable-length integer
  if head[:4] != b'\x1a\x45\xdf\xa3' or not 4 <= at < len(head) or not head[at]:
    return 0
  width = 9 - head[at].bit_length()
  bits = int.from_bytes(head[at : at + width], 'big') & ((1 << 7 * width) - 1)
  return 0 if bits == (1 << 7 * width) - 1 else at + width + bits


# ---- animated pictures


def _animation(data: bytes, count: int, limits: Limits) -> Shown:
  image = open_image(data)
  limits.check_pixels(*image.size)
  total = getattr(image, 'n_frames', 1)  # PIL has it only where a format can hold several
  _check_frames(total, limits)
  if image.format == 'GIF' and b'\0;' not in data[-64:]:
    raise MediaError('the file is cut off')  # PIL takes the end of the file for the end of the clip
  if total * image.width * image.height > 64 * limits.pixels:
    raise MediaError(f'{total} frames of {image.width}x{image.height}, over 64 x limits.pixels')
  first = int(total > 1 and bool(image.info.get('default_image')))  # an APNG's still comes before
  starts, end = [], 0
  for index in range(first, total):
    image.seek(index)
    limits.check_pixels(*image.size)
    image.load()
    starts.append(end)
    end += image.info.get('duration') or _STILL_MS
    if end > 1000 * limits.seconds:
      raise MediaError(f'longer than limits.seconds={limits.seconds:g}')
  orientation, image = orientation_of(image), open_image(data)
  for index, times in shown(starts, end, count):
    image.seek(first + index)
    image.load()
    yield Picture(image, orientation), times


# ---- video files


def _film(file, count: int, limits: Limits) -> Shown:
  with opened(file) as container:
    stream = _video_of(container)
    limits.check_pixels(stream.codec_context.width, stream.codec_context.height, _KEPT)
    starts, end, keys = _timeline(container, stream, limits)
  file.seek(0)
  with opened(file) as container:
    stream = _video_of(container)
    decoded, at, frame = container.decode(stream), -1, None
    for index, times in shown(starts, end, count):
      key = keys[bisect.bisect_right(keys, index) - 1] if keys else 0
      if key > at + 1:
        container.seek(int(starts[key]), stream=stream)
        decoded = container.decode(stream)
      while at < index and (after := next(decoded, None)) is not None:
        frame, at = after, at + 1
        if keys and frame.pts is not None:
          at = bisect.bisect_right(starts, frame.pts) - 1
      if frame is None or at < index - max(2, len(starts) // 20):
        raise MediaError(f'damaged: frame {index + 1} of {len(starts)} cannot be decoded')
      limits.check_pixels(frame.width, frame.height, _KEPT)
      yield Picture(frame.to_image(), _orientation_of(frame), _aspect_of(stream)), times


@contextlib.contextmanager
def opened(file):
  """A video file as a PyAV container. Raises MediaError for what is none, or is damaged."""
  try:
    import av  # only video files need it
  except ImportError as e:
    raise MediaError("reading video files needs the package 'av'") from e
  only = {'format_whitelist': _CONTAINERS, 'protocol_whitelist': 'none'}
  try:
    with av.open(file, options=only, **_errors(av)) as container:
      yield container
  except av.FFmpegError as e:
    raise MediaError(f'not a readable video ({e.strerror})') from e


def _errors(av) -> dict[str, str]:
  """That metadata which is no UTF-8 is no reason to fail; from 19.0 on, PyAV takes it as it is."""
  return {} if int(av.__version__.partition('.')[0]) >= 19 else {'metadata_errors': 'replace'}


def _video_of(container):
  """The video stream: the best one that is no cover art."""
  from av.stream import Disposition

  art = Disposition.attached_pic | Disposition.timed_thumbnails
  found = [s for s in container.streams.video if not s.disposition & art]
  if not found:
    what = 'a sound' if container.streams.audio else 'a file'
    raise MediaError(f'{what} without a video stream')
  best = container.streams.best('video')
  return best if best in found else found[0]


def _timeline(container, stream, limits: Limits):
  """(when each frame appears, when the last disappears, indices of key frames to seek to)."""
  packets = []
  for packet in container.demux(stream):
    if packet.is_corrupt:
      raise MediaError('the file is cut off or damaged')
    if packet.size and not packet.is_discard:
      packets.append((packet.pts, packet.duration or 0, packet.is_keyframe))
    if len(packets) > limits.frames:
      break
  _check_frames(len(packets), limits)
  if container.format.name == 'avi' or any(pts is None for pts, _, _ in packets):
    return range(len(packets)), len(packets), []  # no time stamps: a fixed rate
  packets.sort()
  starts = [pts for pts, _, _ in packets]
  gaps = sorted(b - a for a, b in itertools.pairwise(starts))
  end = starts[-1] + (packets[-1][1] or (gaps[len(gaps) // 2] if gaps else 1) or 1)
  if (end - starts[0]) * stream.time_base > limits.seconds:
    raise MediaError(f'longer than limits.seconds={limits.seconds:g}')
  exact = container.format.name in _INDEXED
  return starts, end, [n for n, (_, _, key) in enumerate(packets) if key] if exact else []


def _orientation_of(frame) -> int:
  """The orientation that the display matrix asks for, to the nearest quarter turn."""
  try:
    matrix = frame.side_data.get('DISPLAYMATRIX')
  except ValueError:  # of side data of a kind that PyAV has no name for; flips are not known then
    return (1, 8, 3, 6)[round(frame.rotation / 90) % 4]
  if matrix is None:
    return 1
  a, b, _, c, d = struct.unpack_from('=5i', bytes(matrix))
  most = max(map(abs, (a, b, c, d))) * 0.75
  return _ORIENTATIONS.get(tuple((v > most) - (v < -most) for v in (a, b, c, d)), 1)


def _aspect_of(stream) -> float:
  aspect = float(stream.sample_aspect_ratio or 1)
  return aspect if 0.1 <= aspect <= 10 else 1.0
