"""What the published inference of Show-o2 does its own way; `compat='official'` asks for it.

    F3  The span of the mask begins at the first visual token, so the time token stands outside and
        eoi inside. It has the length of one picture even where 32 frames stand.
    F4  The pictures of a story have t = 0 while text is written behind them (sample/story.py).
    F7  There is neither a newline after eoi nor <|im_end|> after the question, though the model was
        trained with both.

By default a question is laid out as in training (`tasks.conversation`), and the span holds the
visual tokens. Either way, frames are pictures of their own, each pooled to POOLED x POOLED tokens
(docs/showo2.md 8).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax.config import TunaConfig
from tuna_jax.data.segments import Example, Image, Plan, Text, Video, coordinates
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.tuna import Tuna

SYSTEM = 'You are a helpful assistant.'
STORY = 'Mixed-modality generation (VIST).'  # opens what its stories were trained on
LATER_SCALE = 5.0  # of guidance, for the pictures of a story after the first
FRAMES, POOLED = 32, 14  # pictures of a clip, and the side of what each becomes


def question(tokenizer: Tokenizer, visual: Image | Video, text: str) -> Plan:
  """F7: the prompt of the published scripts for one picture, or for a clip as a Video of frames."""
  newline, header = tokenizer.encode('\n'), tokenizer.encode('assistant\n')
  system = tokenizer.encode(f'system\n{SYSTEM}')
  return [
    Text((tokenizer.bos, *system, tokenizer.eos, *newline)),
    Text((tokenizer.bos, *tokenizer.encode('user\n'))),
    visual,
    Text((*tokenizer.encode(text), *newline, tokenizer.bos, *header)),
  ]


def shift_span(example: Example, tokens: int) -> Example:
  """F3: the mask's span is `tokens` + 1 positions from the first visual token on."""
  start = int(np.flatnonzero(example.slot == 0)[0]) + 1
  limit = np.arange(example.length, dtype=np.int32)
  limit[start : start + tokens + 1] = min(start + tokens, example.length - 1)
  return example._replace(kv_limit=limit)


@functools.partial(jax.jit, static_argnames=('config', 'side'))
def see(params, tokens, *, config: TunaConfig, side: int = 0):
  """Visual tokens [n h w, D] of pictures [n, h, w, C]; with a side, pooled to [n side^2, D]."""
  count, height, width, _ = tokens.shape
  coords = jnp.asarray(coordinates((1, height, width)))
  coords = jnp.broadcast_to(coords, (count, *coords.shape))
  one = jnp.ones(coords.shape[:2], jnp.int32)
  grid = jnp.broadcast_to(jnp.array([1, height, width]), (count, 1, 3))
  rows = rearrange(tokens, 'n h w c -> n (h w) c')
  found = Tuna(config).apply({'params': params}, rows, coords, one, grid, method='features')
  return pool(found, (height, width), side)[0] if side else rearrange(found, 'n v d -> (n v) d')


def pool(features, grid: tuple[int, int], side: int):
  """Visual tokens of frames [n, h w, D] -> [1, n side^2, D], by a bilinear resize of each frame."""
  maps = rearrange(features, 'n (h w) d -> n h w d', h=grid[0], w=grid[1])
  shape = (len(maps), side, side, maps.shape[-1])
  small = jax.image.resize(maps.astype(jnp.float32), shape, 'linear', antialias=False)
  return rearrange(small.astype(features.dtype), 'n h w d -> 1 (n h w) d')
