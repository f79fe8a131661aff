"""The official data layouts with their faults (docs/architecture.md 5 and 13.2): the meaning of
`compat='official'` for data.

Nothing is trained with these: `tasks.py` and `segments.py` are the clean ones. Parity needs them,
and so does whoever reads official batches. They differ from ours in that

    B2   image and edit data reserve N positions for N latent cells: the time token takes one, and
         the last cell is cut
    B6   understanding data puts the picture before the conversation and learns system and user
         turns too
    B7   text alone carries a span without a picture
    B14  clips of another length than 4k + 1 lose their tail
    B15  pictures of another aspect ratio get black bars
    B16  the bucket is the nearest by linear aspect ratio

Axes:  L positions   n images per row   B rows   V latent cells of a row   M image slots of a row
A span is given by its number of positions, the time token included. Labels are -100 where nothing
is learned and stand at the token itself, not before it. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as pil

from tuna_jax import batch as batch_lib
from tuna_jax.data import segments, tasks
from tuna_jax.data.segments import Text

IGNORED = -100
STRIDE = 16  # pixels per latent cell


class Laid(NamedTuple):
  """One laid out example: int32[L] each; positions int32[n, 2] of (offset, length), (-1, -1) where
  there is none.
  """

  tokens: np.ndarray
  labels: np.ndarray
  text_mask: np.ndarray
  image_mask: np.ndarray
  positions: np.ndarray


# ---- formatters: ids in, Laid out


def generation(special, ids: Sequence[int], span: int, length: int) -> Laid:
  """[bos] ids [boi] span [eoi] [eos] [pad]...: nothing to read, the span to draw."""
  return finish(
    special, [Text((special.bos, *ids)), span_of(span, True), Text((special.eos,))], length
  )


def editing(special, ids: Sequence[int], span: int, length: int) -> Laid:
  """[bos] [boi] span [eoi] ids [boi] span [eoi] [eos] [pad]...: the second span to draw."""
  plan = [
    Text((special.bos,)),
    span_of(span),
    Text(tuple(ids)),
    span_of(span, True),
    Text((special.eos,)),
  ]
  return finish(special, plan, length)


def understanding(
  special, ids: Sequence[int], span: int, length: int, prompt: Sequence[int] = ()
) -> Laid:
  """[bos] [boi] span [eoi] prompt ids [eos] [pad]...: everything but span and prompt is learned
  (B6).
  """
  laid = finish(
    special, [Text((special.bos,)), span_of(span), Text((*prompt, *ids, special.eos))], length
  )
  labels = np.where(laid.text_mask == 1, laid.tokens, IGNORED)
  first = int(laid.positions[0].sum()) + 1
  labels[first : first + len(prompt)] = IGNORED
  is_span = (laid.tokens == special.img_pad).astype(np.int32)
  return laid._replace(labels=labels.astype(np.int32), image_mask=is_span)


def chat(special, ids: Sequence[int], span: int, length: int) -> Laid:
  """A rendered conversation whose `<image>`, if any, becomes [boi] span [eoi]; assistant turns are
  learned.

  Of the turns that end in eos the first (system) and then every other one are not learned; what
  follows the last is.
  """
  ids, plan = list(ids), []
  while special.image in ids:
    at = ids.index(special.image)
    plan += [Text(tuple(ids[:at])), span_of(span)]
    ids = ids[at + 1 :]
  laid = finish(special, [*plan, Text(tuple(ids))], length)
  labels = np.where(laid.tokens == special.pad, IGNORED, laid.tokens).astype(np.int32)
  ends = np.flatnonzero(laid.tokens == special.eos) + 1
  labels[: ends[0] if len(ends) else 0] = IGNORED
  for start, end in zip(ends[0::2], ends[1::2]):
    labels[start:end] = IGNORED
  for offset, size in laid.positions[laid.positions[:, 1] > 0]:
    labels[offset : offset + size + 1] = IGNORED  # the span and its eoi
  is_span = (laid.tokens == special.img_pad).astype(np.int32)
  return laid._replace(labels=labels, image_mask=is_span)


def span_of(length: int, target: bool = False) -> segments.Video:
  """A visual piece of `length` positions; its shape does not matter to a layout."""
  return segments.Video(np.zeros((1, 1, length - 1, 0), np.float32), target)


def finish(special, plan, length: int) -> Laid:
  """Our own layout of the plan, padded on the right to `length` where it is shorter, in official
  terms.
  """
  example = segments.layout(plan, special, (1, 1))
  tokens = np.concatenate(
    [example.tokens, np.full(max(0, length - example.length), special.pad, np.int32)]
  )
  starts = np.flatnonzero((example.slot >= 0) & (example.slot < example.images))
  positions = (
    np.stack([starts, example.kv_limit[starts] - starts + 1], axis=1) if len(starts) else [[-1, -1]]
  )
  image_mask = np.zeros_like(tokens)
  for (offset, size), target in zip(positions, example.target):
    image_mask[offset : offset + size] = target
  return Laid(
    tokens=tokens,
    labels=np.full_like(tokens, IGNORED),
    text_mask=((tokens != special.img_pad) & (tokens != special.pad)).astype(np.int32),
    image_mask=image_mask,
    positions=np.asarray(positions, np.int32),
  )


# ---- data set items: a record in, (Laid, pixels float32 [3, H, W], [2, 3, H, W] or [3, F, H, W])
# out


def image_item(
  tokenizer,
  record: Mapping,
  pictures: Sequence[np.ndarray],
  *,
  image_size,
  data_type: str,
  max_text_length: int,
  multi_resolution: bool = False,
  resolution_buckets=(),
):
  """An item of an image stream: data_type 't2i', 'mmu' or 'mmu_text'. pictures: uint8 [h, w, 3]."""
  size = _size(image_size)
  if multi_resolution:
    height, width = pictures[0].shape[:2]
    size = min(map(tuple, resolution_buckets), key=lambda s: abs(s[1] / s[0] - width / height))
  span = (size[0] // STRIDE) * (size[1] // STRIDE)  # B2
  if 'conversations' in record:
    ids = chat_ids(tokenizer, tasks.turns_of(record))
  else:
    ids = tokenizer.encode(record['caption'])
  ids = ids[: max(0, max_text_length - (4 + span))]
  layout = {'t2i': generation, 'mmu': understanding, 'mmu_text': understanding}[data_type]
  pixels = (
    np.zeros((3, *size), np.float32) if data_type == 'mmu_text' else preprocess(pictures[0], size)
  )
  return layout(tokenizer, ids, span, max_text_length), pixels


def edit_item(
  tokenizer, record: Mapping, pictures: Sequence[np.ndarray], *, image_size, max_text_length: int
):
  """An item of the editing stream. pictures: (source, result)."""
  size = _size(image_size)
  span = (size[0] // STRIDE) * (size[1] // STRIDE)  # B2
  ids = tokenizer.encode(record['instruction'])[: max(0, max_text_length - (6 + 2 * span))]
  return (
    editing(tokenizer, ids, span, max_text_length),
    np.stack([preprocess(picture, size) for picture in pictures]),
  )


def video_item(
  tokenizer,
  record: Mapping,
  pictures: Sequence[np.ndarray],
  *,
  image_size,
  num_frames: int,
  max_text_length: int,
):
  """An item of the video stream, the one that reserves a position for the time token. pictures: the
  clip's frames.
  """
  size = _size(image_size)
  span = ((num_frames + 2) // 4 + 1) * (size[0] // STRIDE) * (size[1] // STRIDE) + 1
  ids = tokenizer.encode(record['caption'])[: max(0, max_text_length - (4 + span))]
  chosen = [pictures[int(i * len(pictures) / num_frames)] for i in range(num_frames)]
  return (
    generation(tokenizer, ids, span, max_text_length),
    np.stack([preprocess(picture, size) for picture in chosen], axis=1),
  )


def chat_ids(
  tokenizer, turns: Sequence[tuple[str, str]], *, header: bool = False
) -> tuple[int, ...]:
  """Qwen's chat template as ids: every turn ends in eos and a line break, a system turn is put in
  front.

  `<image>` becomes its id. header: an open assistant turn follows.
  """
  if not turns or turns[0][0] != 'system':
    turns = [('system', tasks.QWEN_SYSTEM), *turns]
  newline, ids = tokenizer.encode('\n'), []
  for role, text in turns:
    ids.append(tokenizer.bos)
    for k, piece in enumerate(f'{role}\n{text}'.split(tasks.PLACEHOLDER)):
      ids += [tokenizer.image] * (k > 0) + list(tokenizer.encode(piece))
    ids += [tokenizer.eos, *newline]
  return (*ids, *((tokenizer.bos, *tokenizer.encode('assistant\n')) if header else ()))


def preprocess(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8 [h, w, 3] -> float32 [3, H, W] in [-1, 1]: the shorter side to min(size), centre crop,
  black bars (B15).
  """
  height, width = size
  h, w = picture.shape[:2]
  short = min(size)
  scaled = (short, int(short * w / h)) if h <= w else (int(short * h / w), short)
  if scaled != (h, w):
    picture = np.asarray(pil.fromarray(picture).resize(scaled[::-1], pil.Resampling.BICUBIC))
  bars = [max(0, wanted - found) for wanted, found in zip(size, scaled)]
  picture = np.pad(picture, [(b // 2, (b + 1) // 2) for b in bars] + [(0, 0)])
  top, left = (round((found - wanted) / 2) for wanted, found in zip(size, picture.shape))
  pixels = picture[top : top + height, left : left + width].astype(np.float32) / np.float32(255)
  return ((pixels - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)


def whole_chunks(video: np.ndarray) -> np.ndarray:
  """[B, F, ...] without the frames that the official VAE drops: 4k + 1 are left (B14)."""
  return video[:, : 1 + 4 * ((video.shape[1] - 1) // 4)]


def _size(image_size) -> tuple[int, int]:
  return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


# ---- official sequences as our Batch


def to_batch(
  tokens: np.ndarray,
  positions: np.ndarray,
  grid: tuple[int, int, int] | None,
  channels: int,
  sizes: tuple[int, int, int, int] | None = None,
) -> batch_lib.Batch:
  """Our Batch of official sequences, without latents.

  Args:
    tokens: int[B, L]. Padding is an ordinary causal token there, and so it is here. positions:
    int[B, n, 2] of (offset, length); negative or empty ones are absent. A span shorter than its
    cells + 1
      drops the last cells (B2): they are seen by the vision tower and placed nowhere.
    grid: (frames, rows, columns), the same for all images; cell v of image j of a row is cell j * N
    + v of that row.
      None: the spans hold no picture (B7), only the mask knows them.
    sizes: (B, L, V, M) of the result, at least as large as needed, to give many cases one compiled
    shape.
  """
  rows, length = tokens.shape
  images = positions.shape[1]
  cells = int(np.prod(grid)) if grid is not None else 0
  sizes = sizes or (rows, length, images * cells, images)
  batch = batch_lib.empty(*sizes, channels)
  slots = sizes[3]
  batch.tokens[:rows, :length] = tokens
  batch.segment[:rows, :length] = 1
  batch.position[:, :] = np.arange(sizes[1])
  for row in range(rows):
    for j, (offset, size) in enumerate(positions[row]):
      if offset < 0 or (size <= 0 and grid is None):
        continue
      batch.kv_limit[row, offset : offset + size] = offset + size - 1
      if grid is None:
        continue
      own = slice(j * cells, (j + 1) * cells)
      placed = np.arange(j * cells, j * cells + min(size - 1, cells))
      batch.grid[row, j] = grid
      batch.coords[row, own] = segments.coordinates(tuple(map(int, grid)))
      batch.image[row, own] = j + 1
      if size <= 0:
        continue  # seen by the vision tower and placed nowhere
      batch.slot[row, offset] = j
      batch.slot[row, offset + 1 : offset + 1 + len(placed)] = slots + placed
      batch.place[row, placed] = offset + 1 + np.arange(len(placed))
  return batch


def placed(batch: batch_lib.Batch) -> np.ndarray:
  """bool[B, V]: the latent cell stands somewhere in the sequence."""
  return batch.place > 0  # position 0 can only hold a time token


def to_next_token(labels: np.ndarray, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Official labels int[B, L] -> ours (labels, weight): the target stands before its token, -100
  has weight 0.
  """
  rows, own = labels.shape
  ids, weight = (
    np.zeros((rows, length or own), np.int32),
    np.zeros((rows, length or own), np.float32),
  )
  ids[:, : own - 1] = np.maximum(labels[:, 1:], 0)
  weight[:, : own - 1] = labels[:, 1:] != IGNORED
  return ids, weight
