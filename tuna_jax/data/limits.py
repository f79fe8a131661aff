"""What one record may cost, and the opening of the files that it names."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
from typing import BinaryIO

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.mappings import kind
from tuna_jax.ranges import Count, Positive


class MediaError(UserError):
  """A picture or clip that cannot be used; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one record may cost. What exceeds a limit is refused by name before it is decoded.

  pixels: of a picture, by default so many that every format is decoded in less than 1 GB of memory;
  an animated picture has at most 64 times as many in all, and a frame of a video, of which decoders
  keep several, a quarter. frames, seconds: of a clip. bytes: of a file that is read whole, which is
  every file except local videos. aspect: the longer side of a picture over its shorter side. text:
  characters of one text, and bytes of one JSON line. nesting: brackets inside brackets of a JSON
  line. wait: seconds that a decoding process may take for a record (`MediaConfig.processes`).
  """

  pixels: Count = 50_000_000
  frames: Count = 120_000
  seconds: Positive = 3600.0
  bytes: Count = 1 << 28
  aspect: Positive = 20.0
  text: Count = 1_000_000
  nesting: Count = 64
  wait: Positive = 60.0

  def check_pixels(self, width: int, height: int, kept: int = 1) -> None:
    """Raises MediaError for an empty or too large picture; `kept` of them are in memory."""
    if min(width, height) < 1:
      raise MediaError(f'{width}x{height} pixels, expected at least 1x1')
    if width * height * kept > self.pixels:
      at_once = f' / {kept}' if kept > 1 else ''
      raise MediaError(f'{width}x{height} pixels, more than limits.pixels={self.pixels}{at_once}')
    if max(width, height) > self.aspect * min(width, height):
      raise MediaError(f'{width}x{height} pixels, sides over 1:{self.aspect:g} (limits.aspect)')


LIMITS = Limits()


@contextlib.contextmanager
def naming(source, kind: str):
  """Turns whatever a library raises inside into a MediaError that names the source and says why."""
  try:
    yield
  except Exception as e:
    if isinstance(e, UserError) and not isinstance(e, MediaError):
      raise  # of a setting
    # Damaged files make codecs raise anything, MemoryError included.
    name, why = name_of(source), f'not a readable {kind} ({reason(e)})'
    if isinstance(e, MediaError):
      why = str(e)
    elif isinstance(e, OSError) and e.strerror:
      why = e.strerror
    raise MediaError(why if why.startswith(name) else f'{name}: {why}') from e


def reason(error: Exception) -> str:
  """The class and words of an exception in one short line, without addresses in memory."""
  words = re.sub(r'<[^<>]* at 0x[0-9a-f]+>', 'it', ' '.join(str(error).split()))[:200]
  return words if words and type(error) is OSError else f'{type(error).__name__}: {words}'


def name_of(source) -> str:
  """The path of a picture or clip, or the kind of thing it is."""
  if isinstance(source, (str, os.PathLike)):
    return os.fspath(source)
  return {'bytes': 'encoded bytes', 'ndarray': 'an array'}.get(what := kind(source), what)


def locate(path: str, root: str) -> str:
  """A path of a record as one to open: below `root`, links followed. Every character stands for
  itself. Raises MediaError for what lies outside of the root.
  """
  if not isinstance(path, str) or not path:
    raise MediaError(f'expected a path, found {path!r:.80}')
  if is_url(root):
    below = path.removeprefix(root.rstrip('/') + '/')
    if below.startswith('/') or '..' in below.split('/') or is_url(below):
      raise MediaError(f'{path!r} leaves the root {root}')
    return f'{root.rstrip("/")}/{below}'
  if is_url(path):
    raise MediaError(f'{path!r} leaves the root {root}; {_remedy(path)}')
  base, found = os.path.realpath(root or '.'), os.path.realpath(os.path.join(root, path))
  if os.path.commonpath([base, found]) != base:
    raise MediaError(f'{path!r} leaves the root {root}')
  return found


def is_url(path: str) -> bool:
  """Whether the path is a URL, and never one of a local folder."""
  return re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', path) is not None


def _remedy(url: str) -> str:
  if url.startswith(('http://', 'https://')):
    return files.WEB
  return 'make the bucket the root of the row'


def open_local(path: str | os.PathLike) -> BinaryIO:
  """A regular local file, opened; a pipe or device, which may never end, is refused."""
  number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise MediaError(f'{name_of(path)}: not a regular file')
  return os.fdopen(number, 'rb')


def read(source, limits: Limits) -> bytes:
  """All bytes of a path, or encoded bytes as they are. Object storage is asked once per file."""
  if isinstance(source, str) and is_url(source):
    if source.startswith(('http://', 'https://')):
      raise MediaError(f'{source}: {_remedy(source)}')
    data = files.storage(source).cat_file(source, end=limits.bytes + 1)
  elif isinstance(source, (str, os.PathLike)):
    with open_local(source) as file:
      data = file.read(limits.bytes + 1)
  elif isinstance(source, (bytes, bytearray, memoryview)):
    data = bytes(source)
  else:
    raise MediaError(f'expected a path, bytes, a PIL picture or an array, found {source!r:.80}')
  if len(data) > limits.bytes:
    raise MediaError(f'more than limits.bytes={limits.bytes} bytes')
  if not data:
    raise MediaError('an empty file')
  return data
