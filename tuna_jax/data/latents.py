"""Fills the latents of a packed batch: pixels go through the frozen encoder in groups of one shape,
each picture once.

`fill_latents` is the one place where latents are written into a batch: training, sampling and the
benches call it. The encoder is a function given by the caller, so nothing here imports jax.
"""

from __future__ import annotations

import collections
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tuna_jax import files
from tuna_jax.batch import Batch
from tuna_jax.config import UserError
from tuna_jax.data.segments import Packed

Encode = Callable[[np.ndarray], np.ndarray]  # uint8[n, F, H, W, 3] -> float32[n, T, h, w, C]
Shape = tuple[int, ...]
Group = int | Callable[[Shape], int]  # how many media of a shape [F, H, W, 3] are encoded at once
_CHECKSUM = 16  # bytes


class LatentCache:
  """Remembers latents by picture content, in memory up to a bound and, if asked, in files.

  max_bytes: of memory; the least recently used go first. directory: local or on object storage,
  keeps one file per picture in a folder `name`. name: hexadecimal, the digest of the parameters and
  the config of the encoder (`train.encoder.digest`), since latents of another encoder look right.
  A file whose checksum is wrong counts in `damaged`, and the picture is encoded again.
  """

  def __init__(self, max_bytes: int = 256 << 20, directory: str | os.PathLike = '', name: str = ''):
    if directory and not re.fullmatch('[0-9a-f]{16,}', name):
      raise UserError(
        f'latent_cache_dir: {name!r} is no digest of an encoder; a path or a number of a version '
        'stays the same when the encoder changes'
      )
    self._max, self._bytes, self._memory = max_bytes, 0, collections.OrderedDict()
    self._folder = files.path(directory) / name if directory else None
    self._lock = threading.Lock()
    self.hits = self.misses = self.damaged = 0

  def get(self, key: str) -> np.ndarray | None:
    """The latents of `key`, or None."""
    with self._lock:
      value = self._memory.get(key)
      if value is not None:
        self._memory.move_to_end(key)
    if value is None and self._folder is not None:
      value = self._read(key)
      if value is not None:
        self._remember(key, value)
    self.hits += value is not None
    self.misses += value is None
    return value

  def put(self, key: str, value: np.ndarray) -> None:
    """Keeps `value` under `key`."""
    self._remember(key, value)
    if self._folder is not None:
      content = io.BytesIO()
      np.save(content, value, allow_pickle=False)
      path = self._path(key)
      if not files.is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
      files.write_bytes(path, _checksum(content.getvalue()) + content.getvalue())

  def __contains__(self, key: str) -> bool:
    """Whether `key` is in memory."""
    with self._lock:
      return key in self._memory

  def _path(self, key):
    return self._folder / key[:2] / f'{key}.latents'

  def _read(self, key):
    try:
      data = self._path(key).read_bytes()  # one request where the folder is on object storage
    except FileNotFoundError:
      return None
    if _checksum(data[_CHECKSUM:]) != data[:_CHECKSUM]:
      self.damaged += 1
      return None
    return np.load(io.BytesIO(data[_CHECKSUM:]), allow_pickle=False)

  def _remember(self, key, value):
    with self._lock:
      if key in self._memory or value.nbytes > self._max:
        return
      self._memory[key] = value
      self._bytes += value.nbytes
      while self._bytes > self._max:
        self._bytes -= self._memory.popitem(last=False)[1].nbytes


def _checksum(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=_CHECKSUM).digest()


def content_key(media: np.ndarray) -> str:
  """A digest of shape, type and bytes. Media settings need no part of their own: what is encoded
  is the picture after them.
  """
  digest = hashlib.blake2b(f'{media.dtype}{media.shape}'.encode(), digest_size=16)
  digest.update(np.ascontiguousarray(media))
  return digest.hexdigest()


def encode_all(
  media: Sequence[np.ndarray],
  encode: Encode | None,
  cache: LatentCache | None = None,
  group: Group = 8,
  ahead: Iterable[np.ndarray] = (),
) -> list[np.ndarray]:
  """Latents float32[T, h, w, C] of each of `media`.

  What already is latents passes through. `encode` sees exactly `group` media of one shape at a
  time, so it compiles once per shape. ahead: media of later batches, which fill up the last group
  of a shape and go into the cache; where there are none, a picture is repeated.
  """
  out: dict[str, np.ndarray] = {}
  todo: dict[Shape, dict[str, np.ndarray]] = {}
  keys = [content_key(m) if m.dtype == np.uint8 else '' for m in media]
  for key, m in zip(keys, media):
    if not key or key in out or key in todo.get(m.shape, ()):
      continue
    found = cache.get(key) if cache else None
    if found is None:
      todo.setdefault(m.shape, {})[key] = m
    else:
      out[key] = found
  sizes = {shape: group(shape) if callable(group) else group for shape in todo}
  if cache:
    _fill_up(todo, sizes, cache, ahead)
  for shape, waiting in todo.items():
    names, size = list(waiting), sizes[shape]
    for start in range(0, len(names), size):
      chosen = names[start : start + size]
      padded = (chosen + [chosen[-1]] * size)[:size]
      latents = np.asarray(encode(np.stack([waiting[k] for k in padded])), np.float32)
      for key, value in zip(chosen, latents):
        out[key] = value.copy()
        if cache:
          cache.put(key, out[key])
  return [out[key] if key else m for key, m in zip(keys, media)]


def _fill_up(todo, sizes, cache: LatentCache, ahead: Iterable[np.ndarray]):
  """Adds media of `ahead` to `todo` until no group has room."""
  room = {shape: -len(waiting) % sizes[shape] for shape, waiting in todo.items()}
  for m in ahead:
    if not any(room.values()):
      return
    if m.dtype == np.uint8 and room.get(m.shape):
      key = content_key(m)
      if key not in todo[m.shape] and key not in cache:
        todo[m.shape][key] = m
        room[m.shape] -= 1


def fill_latents(
  packed: Packed,
  encode: Encode | None = None,
  cache: LatentCache | None = None,
  group: Group = 8,
  ahead: Iterable[np.ndarray] = (),
) -> Batch:
  """Writes the latents of every picture and clip into `packed.batch` and returns that batch.

  Latents in `packed.media` are taken as they are; pixels go through `encode` (`encode_all`). Raises
  UserError for pixels without an encoder, and if the encoder's grid or channels are not the
  batch's.
  """
  batch = packed.batch
  media = [p.media for p in packed.media]
  if encode is None and (pixels := [m for m in media if m.dtype == np.uint8]):
    raise UserError(f'{len(pixels)} pictures or clips are pixels: an encoder is needed')
  for placed, latents in zip(packed.media, encode_all(media, encode, cache, group, ahead)):
    want = (placed.cells, batch.latents.shape[2])
    flat = latents.reshape(-1, latents.shape[-1])
    if flat.shape != want:
      raise UserError(
        f'media {placed.media.shape}: the encoder gave latents {latents.shape}, expected '
        f'{want[0]} cells of {want[1]} channels'
      )
    batch.latents[placed.row, placed.start : placed.start + placed.cells] = flat
  return batch
