"""Fills the latents of a packed batch: pixels go through the frozen encoder in groups of one shape,
each picture once.

`fill_latents` is the one place where latents are written into a batch: training, sampling and the
benches call it. The encoder is a function given by the caller, so nothing here imports jax.
"""

from __future__ import annotations

import collections
import hashlib
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np

from tuna_jax.batch import Batch
from tuna_jax.config import UserError
from tuna_jax.data.segments import Packed

Encode = Callable[[np.ndarray], np.ndarray]  # uint8[n, F, H, W, 3] -> float32[n, T, h, w, C]


class LatentCache:
  """Remembers latents by picture content, in memory up to a bound and, if asked, on disk.

  max_bytes: of memory; the least recently used go first. directory: also keep one .npy per picture
  there. name: says which encoder made them, for example a digest of its parameters; required with
  `directory`, since latents of another encoder are wrong and look right.
  """

  def __init__(self, max_bytes: int = 256 << 20, directory: str | os.PathLike = '', name: str = ''):
    if directory and not name:
      raise UserError('a latent cache on disk needs a name for the encoder that made it')
    self._max, self._bytes, self._memory = max_bytes, 0, collections.OrderedDict()
    self._directory = os.path.join(directory, name) if directory else ''
    self._lock = threading.Lock()
    self.hits = self.misses = 0

  def get(self, key: str) -> np.ndarray | None:
    """The latents of `key`, or None."""
    with self._lock:
      if key in self._memory:
        self._memory.move_to_end(key)
        self.hits += 1
        return self._memory[key]
    if self._directory and os.path.exists(path := self._path(key)):
      value = np.load(path)
      self._remember(key, value)
      self.hits += 1
      return value
    self.misses += 1
    return None

  def put(self, key: str, value: np.ndarray) -> None:
    """Keeps `value` under `key`."""
    self._remember(key, value)
    if self._directory:
      path = self._path(key)
      os.makedirs(os.path.dirname(path), exist_ok=True)
      part = f'{path}.{os.getpid()}.tmp'
      with open(part, 'wb') as f:
        np.save(f, value)
      os.replace(part, path)

  def _path(self, key):
    return os.path.join(self._directory, key[:2], key + '.npy')

  def _remember(self, key, value):
    with self._lock:
      if key in self._memory or value.nbytes > self._max:
        return
      self._memory[key] = value
      self._bytes += value.nbytes
      while self._bytes > self._max:
        self._bytes -= self._memory.popitem(last=False)[1].nbytes


def content_key(media: np.ndarray) -> str:
  """A digest of shape, type and bytes."""
  digest = hashlib.blake2b(f'{media.dtype}{media.shape}'.encode(), digest_size=16)
  digest.update(np.ascontiguousarray(media))
  return digest.hexdigest()


def encode_all(
  media: Sequence[np.ndarray],
  encode: Encode | None,
  cache: LatentCache | None = None,
  group: int = 8,
) -> list[np.ndarray]:
  """Latents float32[T, h, w, C] of each of `media`.

  What already is latents passes through. `encode` sees exactly `group` pictures of one shape at a
  time (the last group is filled up by repeating), so it compiles once per shape.
  """
  out: dict[str, np.ndarray] = {}
  todo: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
  keys = [content_key(m) if m.dtype == np.uint8 else '' for m in media]
  for key, m in zip(keys, media):
    if not key or key in out or key in todo.get(m.shape, ()):
      continue
    found = cache.get(key) if cache else None
    if found is None:
      todo.setdefault(m.shape, {})[key] = m
    else:
      out[key] = found
  for waiting in todo.values():
    names = list(waiting)
    for start in range(0, len(names), group):
      chosen = names[start : start + group]
      padded = (chosen + [chosen[-1]] * group)[:group]
      latents = np.asarray(encode(np.stack([waiting[k] for k in padded])), np.float32)
      for key, value in zip(chosen, latents):
        out[key] = value.copy()
        if cache:
          cache.put(key, out[key])
  return [out[key] if key else m for key, m in zip(keys, media)]


def fill_latents(
  packed: Packed, encode: Encode | None = None, cache: LatentCache | None = None, group: int = 8
) -> Batch:
  """Writes the latents of every picture and clip into `packed.batch` and returns that batch.

  Latents in `packed.media` are taken as they are; pixels go through `encode`. Raises UserError for
  pixels without an encoder, and if the encoder's grid or channels are not the batch's.
  """
  batch = packed.batch
  media = [p.media for p in packed.media]
  if encode is None and (pixels := [m for m in media if m.dtype == np.uint8]):
    raise UserError(f'{len(pixels)} pictures or clips are pixels: an encoder is needed')
  for placed, latents in zip(packed.media, encode_all(media, encode, cache, group)):
    want = (placed.cells, batch.latents.shape[2])
    flat = latents.reshape(-1, latents.shape[-1])
    if flat.shape != want:
      raise UserError(
        f'media {placed.media.shape}: the encoder gave latents {latents.shape}, expected '
        f'{want[0]} cells of {want[1]} channels'
      )
    batch.latents[placed.row, placed.start : placed.start + placed.cells] = flat
  return batch
