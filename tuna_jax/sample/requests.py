"""What users give to a generator, in one form: one request or many, strings or turns, and pictures
as paths, PIL images or arrays."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as Pil

from tuna_jax import files
from tuna_jax.config import UserError, nearest
from tuna_jax.data import media
from tuna_jax.data.media import MediaConfig, Size
from tuna_jax.data.tasks import PLACEHOLDER
from tuna_jax.mappings import kind
from tuna_jax.sample import familiar

FILMS = ('.mp4', '.webm', '.mkv', '.mov', '.avi', '.m4v')  # paths read as clips, as folders are
MAX_SEED = 2**32
ROLES = ('user', 'assistant', 'system')

Turns = list[tuple[str, str]]


def strings(value, what: str, hint: str = '') -> tuple[list[str], bool]:
  """(texts, whether a list was given). hint: the end of the message for another type."""
  many = not isinstance(value, str)
  if many and not isinstance(value, (list, tuple)):
    raise UserError(f'{what}: expected text or a list of texts, found {kind(value)}{hint}')
  texts = list(value) if many else [value]
  for n, text in enumerate(texts):
    if not isinstance(text, str):
      raise UserError(f'{what}[{n}]: expected text, found {kind(text)}')
  return texts, many


def conversations(value) -> tuple[list, bool]:
  """(requests, whether a list of them was given); a list of turns is one request."""
  if isinstance(value, str) or (
    isinstance(value, Sequence) and len(value) > 0 and all(map(_is_turn, value))
  ):
    return [value], False
  if not isinstance(value, (list, tuple)) or not value:
    found = 'an empty list' if isinstance(value, (list, tuple)) else kind(value)
    raise UserError(f'expected text, a conversation, or a list of them; found {found}')
  requests = list(value)
  for n, request in enumerate(requests):
    if not isinstance(request, (str, list)):
      raise UserError(f'request {n}: expected text or a list of turns, found {kind(request)}')
  return requests, True


def _is_turn(value) -> bool:
  return isinstance(value, Mapping) or (isinstance(value, tuple) and len(value) == 2)


def turns_of(request, visuals) -> tuple[Turns, list, tuple[str, ...]]:
  """(turns with `<image>` marks, pictures and clips in their order, roles whose marks are pictures)
  of a request.

  request: a question or a list of turns, whose content may be a list of texts and pictures.
  visuals: pictures that stand outside the turns. Raises ValueError for a request that asks nothing.
  """
  if isinstance(request, str):
    request = [('user', request)]
  turns, inline, marked = [], [], {'user'}
  for turn in request:
    if not _is_turn(turn):
      raise UserError(f'a turn must be (role, content) or {{"role", "content"}}, found {turn!r}')
    role, content = (turn.get('role'), turn.get('content')) if isinstance(turn, Mapping) else turn
    if role not in ROLES:
      raise UserError(f'role {role!r}: expected one of {", ".join(ROLES)}{nearest(role, ROLES)}')
    pieces = list(content) if isinstance(content, (list, tuple)) else [content or '']
    pieces = [familiar.piece_of(piece) if isinstance(piece, Mapping) else piece for piece in pieces]
    pictures = [piece for piece in pieces if not isinstance(piece, str)]
    if pictures and role == 'system':
      raise UserError('a system turn holds text; put its pictures into a user turn')
    inline += pictures
    marked |= {role} if pictures else set()
    turns.append(
      (role, ''.join(piece if isinstance(piece, str) else PLACEHOLDER for piece in pieces))
    )
  if inline and visuals:
    raise UserError('pictures go either inside the turns or into `images`, not both')
  visuals = inline or list(visuals)
  if not visuals and not any(text.strip() for role, text in turns if role == 'user'):
    raise UserError('an empty question: give text or a picture')
  return turns, visuals, tuple(sorted(marked))


def replace_question(turns: Turns, text: str) -> Turns:
  """The turns with the text of the last user turn replaced, its pictures kept."""
  last = max((n for n, (role, _) in enumerate(turns) if role == 'user'), default=None)
  if last is None:
    raise UserError('a conversation to draw from needs a user turn')
  marks = PLACEHOLDER * turns[last][1].count(PLACEHOLDER)
  return [*turns[:last], ('user', marks + text), *turns[last + 1 :]]


def without_pictures(turns: Turns) -> Turns:
  """The turns without their picture marks."""
  return [(role, text.replace(PLACEHOLDER, '')) for role, text in turns]


def transcript(request) -> str:
  """A conversation as one line per turn."""
  return '\n'.join(f'{role}: {text}' for role, text in turns_of(request, ())[0])


def infos(prompts, negative, seeds, how) -> list[dict[str, Any]]:
  """What the file of each picture remembers. how: the `Drawing`."""
  texts = [p if isinstance(p, str) else transcript(p) for p in prompts]
  negatives = each(negative, len(prompts), 'negative')
  return [
    {'prompt': p, 'negative': n, 'seed': s, **dataclasses.asdict(how)}
    for p, n, s in zip(texts, negatives, seeds)
  ]


def per_request(images, count: int, many: bool) -> list[list]:
  """The pictures of each request: all of them for one request; of a list, one entry (a picture or a
  list of them) each."""
  if images is None or (isinstance(images, (list, tuple)) and not images):
    return [[] for _ in range(count)]
  if not many:
    return [_as_list(images)]
  if not isinstance(images, (list, tuple, np.ndarray)) or len(images) != count:
    found = len(images) if isinstance(images, (list, tuple, np.ndarray)) else 'one'
    raise UserError(f'{count} requests need {count} entries of pictures, found {found}')
  return [_as_list(entry) for entry in images]


def _as_list(entry) -> list:
  return list(entry) if isinstance(entry, (list, tuple)) else [] if entry is None else [entry]


def each(value: str | Sequence[str], count: int, what: str) -> list[str]:
  """One text for all requests, or one each."""
  if isinstance(value, str):
    return [value] * count
  if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
    raise UserError(f'{what}: expected text, or one text per request, found {kind(value)}')
  if len(value) != count:
    raise UserError(f'{what}: {len(value)} texts for {count} requests')
  return list(value)


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
  """Request i has seed + i, or seed[i]; below 2**32."""
  whole = (int, np.integer)
  if isinstance(seed, whole):
    seeds = [seed + i for i in range(count)]
  elif isinstance(seed, (Sequence, np.ndarray)) and all(isinstance(s, whole) for s in seed):
    seeds = [int(s) for s in seed]
  else:
    raise UserError(f'seed: expected a whole number, or one per request, found {kind(seed)}')
  if len(seeds) != count:
    raise UserError(f'{len(seeds)} seeds for {count} requests')
  if not all(0 <= s < MAX_SEED for s in seeds):
    raise UserError(
      f'seed {next(s for s in seeds if not 0 <= s < MAX_SEED)}: expected 0 to 2**32 - 1'
    )
  return seeds


def size_name(size: str | int | Size) -> str:
  """A size as `media.buckets` reads it."""
  pair = isinstance(size, (tuple, list)) and len(size) == 2
  return f'{size[0]}x{size[1]}' if pair else str(size)


def need_vae(generator) -> None:
  """Raises UserError where there are to be pictures, and the model was loaded without its VAE."""
  if generator.config.vae is not None and generator.vae_params is None:
    raise UserError('the run has no vae in its config and only talks; --vae=DIR says where one is')


def read(source, config: MediaConfig, stride: int) -> np.ndarray:
  """A picture or a clip as uint8 [F, H, W, 3] in its nearest bucket.

  An array [f, h, w, 3] is a clip whose frames are thinned to `stride` k + 1; a clip in a file gives
  `config.frames`.
  """
  source, limits = _plain(source), config.limits
  if isinstance(source, np.ndarray) and source.ndim == 4:
    frames = len(source) - (len(source) - 1) % stride
    return media.read_video(source, config.video_size, frames, limits)
  if _is_clip(source, limits):
    return media.read_video(source, config.video_size, config.frames, limits)
  return media.read_image(source, config.image_size, None, limits)[None]


def first(entry: Sequence, config: MediaConfig, size: str | int | Size) -> np.ndarray:
  """The one picture that a clip of `size` begins with, uint8 [1, H, W, 3]."""
  if len(entry) != 1:
    raise UserError(f'a clip begins with one picture, found {len(entry)}')
  return media.read_image(_plain(entry[0]), size_name(size), None, config.limits)[None]


def read_frames(source, config: MediaConfig, count: int) -> np.ndarray:
  """`count` frames of a clip as pictures uint8 [count, H, W, 3] of `image_size`; or one picture."""
  source = _plain(source)
  clip = isinstance(source, np.ndarray) and source.ndim == 4
  if clip or _is_clip(source, config.limits):
    return media.read_video(source, config.image_size, count, config.limits)
  return media.read_image(source, config.image_size, None, config.limits)[None]


def _is_clip(source, limits: media.Limits) -> bool:
  """Whether a path or bytes are a clip: a folder, a video by its name, a GIF of several frames."""
  if isinstance(source, str) and (os.path.isdir(source) or source.lower().endswith(FILMS)):
    return True
  gif = isinstance(source, str) and source.lower().endswith('.gif')
  gif |= isinstance(source, bytes) and source.startswith(b'GIF8')
  return gif and media.is_animated(source, limits)


def read_source(source, config: MediaConfig, size: str | None, stride: int) -> np.ndarray:
  """The source of an edit as uint8 [1, H, W, 3]: in the bucket of `size`, or keeping its own size
  (`own_size`).
  """
  source, area = _plain(source), math.prod(media.buckets(config.image_size)[0])
  own = None if size else lambda height, width: own_size(height, width, area, stride)
  return media.read_image(source, size or config.image_size, own, config.limits)[None]


def name_of(source) -> str:
  """The path of a picture, or what kind of thing it is."""
  return os.fspath(source) if isinstance(source, (str, os.PathLike)) else kind(source)


def own_size(height: float, width: float, area: int, stride: int) -> Size:
  """(height, width) as given, scaled to `area` pixels if it has more, or a quarter as many or
  fewer, since a model draws badly in sizes far from those it was trained on. Each side is a
  multiple of `stride`: the nearest, or the longer side less where that would exceed the area.
  """
  share = area / (height * width)
  scale = 1.0 if 1 <= share < 4 else math.sqrt(share)
  size = [max(1, round(side * scale / stride)) * stride for side in (height, width)]
  longer = int(size[1] > size[0])
  size[longer] = min(size[longer], max(stride, area // size[1 - longer] // stride * stride))
  return tuple(size)


def _plain(source) -> Any:
  """A picture or clip as `media` takes it: a path with `~` resolved, bytes, a PIL picture or an
  array.
  """
  if isinstance(source, (str, os.PathLike)):
    source = os.fspath(source)
    return source if files.is_remote(source) else os.fspath(files.path(source))
  if isinstance(source, (bytes, np.ndarray, Pil.Image)):
    return source
  if hasattr(source, '__array__'):
    return np.asarray(source)
  raise media.MediaError(
    f'a picture must be a path, bytes, a PIL image or an array, found {kind(source)}'
  )
