"""A plan is a short list of `Text`, `Image` and `Video`; `layout` makes it an example, `pack` makes
rows of examples.

    plan      [Text(bos, a, red, ball), Image(media, target=True), Text(eos)]
    layout    bos a red ball boi [time] [v0] ... [vN-1] eoi eos    one Example, counted from 0
    pack      | example | example | padding |                      one row of the Batch, offset

Axes: l positions, v latent cells and m images of one example; L, V, M those of a row (`batch.py`).
A visual span is N + 1 positions, the time token first (docs/architecture.md 5.2). `Image` and
`Video` put boi and eoi around their span. numpy only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from tuna_jax import batch as batch_lib
from tuna_jax.config import UserError


class Text(NamedTuple):
  """Token ids. loss: the weight of predicting them: False, True, one weight, or one per token."""

  ids: Sequence[int]
  loss: bool | float | Sequence[float] = False


class Image(NamedTuple):
  """A picture: uint8[H, W, 3], uint8[1, H, W, 3], or its latents float32[1, h, w, C].

  target: it is noised and pays the flow loss; otherwise it is clean context.
  """

  media: np.ndarray
  target: bool = False


class Video(NamedTuple):
  """A clip: uint8[F, H, W, 3] with F = stride * k + 1, or its latents float32[T, h, w, C]."""

  media: np.ndarray
  target: bool = False


Plan = Sequence[Text | Image | Video]


class Specials(Protocol):
  """What `layout` needs of a tokenizer."""

  boi: int
  eoi: int
  img_pad: int


class Example(NamedTuple):
  """One laid out plan; field meanings as in `Batch`, indices counted from this example's own start.

  slot: [0, m) a time token, [m, m + v) a latent cell, -1 text. image: number of the cell's image,
  from 1. media: the pictures and clips in order, [F, H, W, 3] uint8 or [T, h, w, C] float32.
  """

  tokens: np.ndarray
  labels: np.ndarray
  label_weight: np.ndarray
  kv_limit: np.ndarray
  slot: np.ndarray
  coords: np.ndarray
  image: np.ndarray
  place: np.ndarray
  grid: np.ndarray
  target: np.ndarray
  media: tuple[np.ndarray, ...]
  task: int = 0

  @property
  def length(self) -> int:
    """Sequence positions."""
    return len(self.tokens)

  @property
  def cells(self) -> int:
    """Latent cells."""
    return len(self.place)

  @property
  def images(self) -> int:
    """Pictures and clips."""
    return len(self.grid)

  @property
  def needs(self) -> tuple[int, int, int]:
    """What the example takes of a row's L, V and M."""
    return self.length, self.cells, self.images

  @property
  def text(self) -> int:
    """Positions of its texts and their special tokens, those around pictures left out."""
    return self.length - self.cells - 3 * self.images

  @property
  def nbytes(self) -> int:
    """Memory of the pictures and clips."""
    return sum(m.nbytes for m in self.media)


class Placed(NamedTuple):
  """Where one medium's latents go: `latents[row, start:start + cells]`."""

  row: int
  start: int
  cells: int
  media: np.ndarray


class Packed(NamedTuple):
  """A Batch whose latents are still zero, and the media that fill them."""

  batch: batch_lib.Batch
  media: list[Placed]


def grid_of(media: np.ndarray, strides: tuple[int, int]) -> tuple[int, int, int]:
  """(frames, rows, columns) in latent cells of pixels or latents [F, H, W, C].

  strides: (temporal, spatial) of the VAE. Raises UserError where pixels do not divide: a silently
  dropped tail of a clip is docs/architecture.md B14.
  """
  if media.ndim != 4:
    raise UserError(f'media must be [frames, height, width, channels], found shape {media.shape}')
  frames, height, width, channels = media.shape
  if media.dtype != np.uint8:
    return frames, height, width
  temporal, spatial = strides
  if channels != 3:
    raise UserError(f'pixels must have 3 channels, found shape {media.shape}')
  if (frames - 1) % temporal:
    raise UserError(f'a clip of {frames} frames: expected {temporal}k + 1')
  if height % spatial or width % spatial or not height or not width:
    raise UserError(f'a picture of {height}x{width}: both sides must be multiples of {spatial}')
  return 1 + (frames - 1) // temporal, height // spatial, width // spatial


@functools.lru_cache(maxsize=256)
def coordinates(grid: tuple[int, int, int]) -> np.ndarray:
  """int32[frames * rows * columns, 3] (frame, row, column), frame-major. Shared and read-only."""
  table = np.indices(grid, dtype=np.int32).reshape(3, -1).T.copy()
  table.flags.writeable = False
  return table


def layout(plan: Plan, special: Specials, strides: tuple[int, int], task: int = 0) -> Example:
  """Lays one plan out.

  A label at position p is the token at p + 1, with the weight of that token; the last position has
  none. Labels never cross examples because each example ends its own. Raises UserError for media
  that do not divide by `strides`, or an `Image` of several frames.
  """
  media, grids = [], []
  for piece in plan:
    if not isinstance(piece, Text):
      pixels = piece.media[None] if piece.media.ndim == 3 else piece.media
      media.append(pixels)
      grids.append(grid_of(pixels, strides))
      if isinstance(piece, Image) and grids[-1][0] != 1:
        raise UserError(f'an Image of {pixels.shape[0]} frames: use Video')
  m, cells = len(grids), [f * h * w for f, h, w in grids]
  length = sum(len(p.ids) for p in plan if isinstance(p, Text)) + sum(cells) + 3 * m

  tokens = np.full(length, special.img_pad, np.int32)
  weight = np.zeros(length, np.float32)
  kv_limit = np.arange(length, dtype=np.int32)
  slot = np.full(length, -1, np.int32)
  place = np.empty(sum(cells), np.int32)
  at = image = cell = 0
  for piece in plan:
    if isinstance(piece, Text):
      end = at + len(piece.ids)
      tokens[at:end] = piece.ids
      weight[at:end] = piece.loss
      at = end
      continue
    n = cells[image]
    tokens[at], tokens[at + n + 2] = special.boi, special.eoi
    kv_limit[at + 1 : at + n + 2] = at + n + 1
    slot[at + 1] = image
    slot[at + 2 : at + n + 2] = np.arange(m + cell, m + cell + n)
    place[cell : cell + n] = np.arange(at + 2, at + n + 2)
    at, image, cell = at + n + 3, image + 1, cell + n

  return Example(
    tokens=tokens,
    labels=np.append(tokens[1:], np.int32(0)),
    label_weight=np.append(weight[1:], np.float32(0)),
    kv_limit=kv_limit,
    slot=slot,
    coords=np.concatenate([coordinates(g) for g in grids]) if m else np.zeros((0, 3), np.int32),
    image=np.repeat(np.arange(1, m + 1, dtype=np.int32), cells),
    place=place,
    grid=np.array(grids, np.int32).reshape(m, 3),
    target=np.array([p.target for p in plan if not isinstance(p, Text)], bool),
    media=tuple(media),
    task=task,
  )


def fullest(needs: Sequence[Sequence[int]], room: Sequence[int]) -> list[int]:
  """Which of at most 62 examples fill the positions of a row best: their rising indices.

  needs: (L, V, M) of each example. room: (L, V, M) that is left. Of sets of equal length, one that
  takes few cells. This is the knapsack problem, solved over the positions.
  """
  length, visual, images = room
  cells = np.full(length + 1, visual + 1, np.int64)  # of the set that has so many positions
  media, sets = np.zeros_like(cells), np.zeros_like(cells)
  cells[0] = 0
  for i, (l, v, m) in enumerate(needs):
    if 0 < l <= length:
      start, end = slice(length + 1 - l), slice(l, None)
      v, m = cells[start] + v, media[start] + m
      better = (v <= visual) & (m <= images) & (v < cells[end])
      sets[end] = np.where(better, sets[start] | 1 << i, sets[end])
      media[end] = np.where(better, m, media[end])
      cells[end] = np.where(better, v, cells[end])
  best = int(sets[np.flatnonzero(cells <= visual)[-1]])
  return [i for i in range(len(needs)) if best >> i & 1]


def pack(rows: Sequence[Sequence[Example]], sizes: tuple[int, int, int, int, int]) -> Packed:
  """Lays examples side by side, `rows[r]` into row r of a Batch of `sizes` (B, L, V, M, C).

  Raises UserError naming the row and the axis that overflows.
  """
  b, length, visual, images, _ = sizes
  if len(rows) != b:
    raise UserError(f'{len(rows)} rows for a batch of {b}')
  out = batch_lib.empty(*sizes)
  placed = []
  for r, examples in enumerate(rows):
    at = cell = image = 0
    for segment, e in enumerate(examples, 1):
      end, cell_end, image_end = at + e.length, cell + e.cells, image + e.images
      for axis, need, room in zip('LVM', (end, cell_end, image_end), sizes[1:4]):
        if need > room:
          raise UserError(f'row {r}: its examples need {axis}={need}, the batch has {room}')
      seq, vis, img = slice(at, end), slice(cell, cell_end), slice(image, image_end)
      out.tokens[r, seq] = e.tokens
      out.labels[r, seq] = e.labels
      out.label_weight[r, seq] = e.label_weight
      out.segment[r, seq] = segment
      out.position[r, seq] = np.arange(e.length)
      out.kv_limit[r, seq] = e.kv_limit + at
      time_token = e.slot < e.images
      out.slot[r, seq] = np.where(
        e.slot < 0, -1, e.slot + np.where(time_token, image, images + cell - e.images)
      )
      out.task[r, seq] = e.task
      out.coords[r, vis] = e.coords
      out.image[r, vis] = e.image + image
      out.place[r, vis] = e.place + at
      out.grid[r, img] = e.grid
      out.target[r, img] = e.target
      start = cell
      for media, grid in zip(e.media, e.grid):
        n = int(grid[0]) * int(grid[1]) * int(grid[2])
        placed.append(Placed(r, start, n, media))
        start += n
      at, cell, image = end, cell_end, image_end
  return Packed(out, placed)
