"""Floating-point operations of sampling, counted by hand: 2 for a multiply-add, matrix products and
attention only.

Norms, rotations, activations and softmax are left out (a few per cent), as is the VAE. Attention
counts every query times every key it is given, masked or not: that is what a dense kernel computes,
and what the official code pays.
"""

from __future__ import annotations

import dataclasses

from tuna_jax.config import TowerConfig, TunaConfig


@dataclasses.dataclass(frozen=True)
class Shape:
  """One picture or clip to draw.

  prefix: positions before the target span, `boi` included.   sources: latent cells among them, in equal pictures.
  frames, cells: latent frames of the target, cells of each.   padded: length of the padded sequence, for `naive`.
  images: pictures of a sequence, the target included.   branches: rows a picture needs for guidance.
  """

  prefix: int
  cells: int
  sources: int = 0
  frames: int = 1
  padded: int = 8192
  images: int = 1
  branches: int = 2

  @property
  def source(self) -> tuple[int, int]:
    """(source pictures, cells of each)."""
    return self.images - 1, self.sources // max(self.images - 1, 1)

  @property
  def span(self) -> int:
    """Positions of the target span: its cells and the time token."""
    return self.frames * self.cells + 1


def tower(t: TowerConfig, width: int, queries: int, keys: int, mlp_products: int) -> int:
  """All layers of a transformer tower over `queries` positions that attend `keys`."""
  inner, kv = t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim
  linear = 2 * queries * width * (2 * inner + 2 * kv + mlp_products * t.mlp_dim)
  return t.num_layers * (linear + 4 * queries * keys * inner)


def vision(c: TunaConfig, frames: int, cells: int) -> int:
  """Vision tower, position table and connector; frames attend to themselves alone."""
  tokens, v = frames * cells, c.vision
  ends = 2 * tokens * (c.vae.latent_channels * v.dim + v.grid**2 * v.dim)
  connector = 2 * tokens * c.decoder.dim * (v.dim + c.decoder.dim)
  return frames * tower(v, v.dim, cells, cells, 2) + ends + connector


def decoder(c: TunaConfig, queries: int, keys: int) -> int:
  """The language model without its head."""
  return tower(c.decoder, c.decoder.dim, queries, keys, 3)


def flow_head(c: TunaConfig, queries: int, keys: int, images: int, outputs: int) -> int:
  """Flow blocks, their modulation (once an image) and the final layer over `outputs` latent tokens."""
  f = c.flow_head
  modulation = 2 * images * f.dim * (6 * f.dim * f.num_layers + 2 * f.dim)
  return (
    tower(f, f.dim, queries, keys, 3) + modulation + 2 * outputs * f.dim * c.vae.latent_channels
  )


def time_embed(c: TunaConfig, images: int) -> int:
  """The time embedding of `images` images."""
  return 2 * images * c.flow_head.dim * (c.time_frequencies + c.flow_head.dim)


def head(c: TunaConfig, tokens: int) -> int:
  """The language head."""
  return 2 * tokens * c.decoder.dim * c.decoder.padded_vocab


def _whole(c: TunaConfig, s: Shape, length: int) -> int:
  """One evaluation of a whole sequence of `length` positions."""
  pictures = vision(c, *s.source) + vision(c, s.frames, s.cells)
  return (
    pictures
    + time_embed(c, s.images)
    + decoder(c, length, length)
    + flow_head(c, length, length, s.images, s.sources + s.span - 1)
  )


def naive(c: TunaConfig, s: Shape, evaluations: int) -> int:
  """The official sampler: padded, everything again at every step, the language head included."""
  return s.branches * evaluations * (_whole(c, s, s.padded) + head(c, s.padded))


def trimmed(c: TunaConfig, s: Shape, evaluations: int) -> int:
  """Nothing after the target span and no language head; the rest again at every step."""
  return s.branches * evaluations * _whole(c, s, s.prefix + s.span)


def prefill(c: TunaConfig, s: Shape) -> int:
  """The prefix of one row into both caches, which already have room for the target."""
  keys = s.prefix + s.span
  images = s.images - 1
  return (
    vision(c, *s.source)
    + time_embed(c, images)
    + decoder(c, s.prefix, keys)
    + flow_head(c, s.prefix, keys, max(images, 1), 0)
  )


def step(c: TunaConfig, s: Shape) -> int:
  """One evaluation of the target span with caches; all branches see one picture."""
  keys = s.prefix + s.span
  row = time_embed(c, 1) + decoder(c, s.span, keys) + flow_head(c, s.span, keys, 1, s.span - 1)
  return vision(c, s.frames, s.cells) + s.branches * row


def cached(c: TunaConfig, s: Shape, evaluations: int) -> int:
  """What `sample_latents` does."""
  return s.branches * prefill(c, s) + evaluations * step(c, s)
