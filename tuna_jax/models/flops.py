"""Floating-point operations of a forward pass, by arithmetic: 2 for a multiply-add.

Axes:  L positions   V latent tokens   M images per row
Counted are matrix products and attention; norms, rotations, activations and softmax (a few per
cent) and the VAE are not. The compiler's own count sees a scanned layer once and a Pallas kernel as
nothing (docs/tpu.md 1), so the count here is the one to use.

  forward    2 x (weights of a matrix) x (tokens through it), and 4 x heads x head_dim x (pairs of a
             query and a key) in each layer of attention
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from tuna_jax import tree
from tuna_jax.config import TunaConfig
from tuna_jax.models.shapes import tuna_shapes

# Parts in the order data flows; gradients reach a part if anything in it or before it trains.
SEEN = ('vision', 'projector', 'patches', 'connector')  # what makes visual tokens, by design
PARTS = (*SEEN, 'time_embed', 'time_token', 'decoder', 'logits', 'flow_head')


class Tokens(NamedTuple):
  """What passes through the model in one row: how many tokens of each kind, and how many pairs of
  a query and a key each layer scores."""

  length: int  # positions of decoder and flow head
  visual: int  # latent tokens of the vision tower
  images: int  # time embeddings
  modulated: int  # images whose modulation the flow head computes
  outputs: int  # latent tokens whose velocity is read
  pairs: float  # in each layer of decoder and flow head
  visual_pairs: float  # in each layer of the vision tower


# Which of `Tokens` passes through a matrix. First match wins.
_TOKENS = (
  (f'({"|".join(SEEN)})/.*', 'visual'),
  ('time_(embed|token)/.*', 'images'),
  ('flow_head/(layers|final)/adaln/kernel', 'modulated'),
  ('flow_head/final/linear/kernel', 'outputs'),
  ('.*', 'length'),
)


@functools.cache
def matrices(model: TunaConfig) -> dict[str, tuple[str, str, int]]:
  """{leaf name: (its part, its row of `Tokens`, how many weights)} of all that multiplies."""
  head = 'decoder/embed/embedding' if model.decoder.tied else 'decoder/lm_head/kernel'
  return {
    name: ('logits' if name == head else name.partition('/')[0], tree.match(name, _TOKENS), a.size)
    for name, a in tree.flatten(tuna_shapes(model)).items()
    if name == head or re.fullmatch('.*/kernel|vision/position_embed/embedding', name)
  }


def layer_weights(model: TunaConfig, name: str) -> int:
  """How many weights the matrices of one layer of a tower have, by arithmetic: `matrices` traces
  the model."""
  t = getattr(model, name)
  gated = name != 'vision' or t.encoder == 'dinov3'
  modulated = 6 * t.dim**2 * (name == 'flow_head')
  heads = 2 * (t.num_heads + t.num_kv_heads) * t.head_dim
  return t.dim * (heads + (2 + gated) * t.mlp_dim) + modulated


def products(model: TunaConfig, tokens: Tokens) -> dict[str, float]:
  """{leaf name: FLOPs of one forward pass of a row through that matrix}."""
  return {
    name: 2.0 * size * getattr(tokens, kind) for name, (_, kind, size) in matrices(model).items()
  }


def attention(model: TunaConfig, tokens: Tokens) -> dict[str, float]:
  """{part: FLOPs of its scores and their sums of values, in one forward pass of a row}."""
  out = dict.fromkeys(PARTS, 0.0)
  for part, pairs in (
    ('vision', tokens.visual_pairs), ('decoder', tokens.pairs), ('flow_head', tokens.pairs)
  ):  # fmt: skip
    tower = getattr(model, part)
    if tower is None:
      continue
    out[part] = 4.0 * tower.num_layers * tower.num_heads * tower.head_dim * pairs
  return out


def forward(model: TunaConfig, tokens: Tokens) -> dict[str, float]:
  """{part: FLOPs of one forward pass of a row}."""
  out = attention(model, tokens)
  for name, operations in products(model, tokens).items():
    out[matrices(model)[name][0]] += operations
  return out
