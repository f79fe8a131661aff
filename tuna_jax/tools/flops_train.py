"""Floating-point operations of a train step, by arithmetic.

Axes:  B rows   L positions   V latent tokens   M images a row
The compiler's own count sees a scanned layer once and a Pallas kernel as nothing (docs/tpu.md 1), so
the count here is the one to use: `plan` divides it by a chip's peak, `bench` by measured time.

  forward    2 x (weights of a matrix) x (tokens through it), and 4 x heads x head_dim x pairs a
             layer of attention
  backward   once more for gradients of what flows through, once more for gradients of weights
  useful     forward + backward: the work of the model
  executed   what the device does: rematerialised layers and logits run forwards twice, and a
             flash backward multiplies 5 matrices (7 unfused) where the mathematics needs 4
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tuna_jax import tree
from tuna_jax.models.attention import SPLASH_FUSED_KEYS
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig

# Which count of tokens runs through a matrix: V, M or L of a row. First match wins.
_TOKENS = (
  ('(vision|connector)/.*', 'visual'),
  ('time_embed/.*', 'images'),
  ('flow_head/(layers|final)/adaln/kernel', 'images'),
  ('flow_head/final/linear/kernel', 'visual'),
  ('.*', 'length'),
)
# Parts in the order data flows; gradients reach a part if anything in it or before it trains.
PARTS = ('vision', 'connector', 'time_embed', 'decoder', 'logits', 'flow_head')


class Work(NamedTuple):
  """Operations of one step of the whole batch; by part, the useful ones."""

  useful: float
  executed: float
  by_part: dict[str, float]


def attention_pairs(config: TrainConfig) -> tuple[float, float]:
  """(query-key pairs of a decoder or flow layer, of a vision layer) in one row.

  Assumes one example a row whose visual spans have the same length: causal pairs, and within a span
  the other half too. Packing several examples needs less.
  """
  span = config.visual / config.images + 1 if config.visual else 0
  causal = config.length * (config.length + 1) / 2
  pairs = causal + config.images * span * (span - 1) / 2
  return min(pairs, config.length**2), config.visual**2 / max(config.images, 1)


def train_flops(config: TrainConfig) -> Work:
  """The work of one optimizer step over `config.rows` rows."""
  model = config.model
  params = tuna_shapes(model)
  trains = set(state_lib.make_optimizer(config)[1])
  draws = config.flow_coeff > 0 and config.visual > 0
  used = {part for part in PARTS if part == 'decoder' or part == 'logits' or config.visual}
  if not draws:
    used.discard('flow_head')

  forward = dict.fromkeys(PARTS, 0.0)
  weights = dict.fromkeys(PARTS, 0.0)  # gradients of weights
  layers = dict.fromkeys(PARTS, 0.0)  # what remat runs twice
  for name, leaf in tree.flatten(params).items():
    part = name.partition('/')[0]
    if name == 'decoder/lm_head/kernel' or (
      name == 'decoder/embed/embedding' and model.decoder.tied
    ):
      part = 'logits'
    elif not re.fullmatch('.*/kernel|vision/position_embed/embedding', name):
      continue
    operations = 2.0 * leaf.size * getattr(config, tree.match(name, _TOKENS))
    forward[part] += operations
    weights[part] += operations if name in trains else 0
    layers[part] += operations if '/layers/' in name else 0

  sequence_pairs, vision_pairs = attention_pairs(config)
  attention = dict.fromkeys(PARTS, 0.0)
  for part, tower, pairs in (
    ('vision', model.vision, vision_pairs),
    ('decoder', model.decoder, sequence_pairs),
    ('flow_head', model.flow_head, sequence_pairs),
  ):
    attention[part] = 4.0 * tower.num_layers * tower.num_heads * tower.head_dim * pairs

  useful, executed = dict.fromkeys(PARTS, 0.0), 0.0
  reached = False
  flash = 2.5 if config.length <= SPLASH_FUSED_KEYS else 3.5
  for part in PARTS:
    if part not in used:
      continue
    reached |= any(name.startswith(f'{part}/') for name in trains)
    useful[part] = forward[part] + attention[part]
    executed += forward[part] + attention[part]
    if reached:
      useful[part] += forward[part] + weights[part] + 2 * attention[part]
      executed += forward[part] + weights[part] + flash * attention[part]
      executed += attention[part] if model.remat != 'none' else 0
      executed += layers[part] if model.remat in ('block', 'offload') else 0
      executed += forward[part] if part == 'logits' else 0
  rows = config.rows
  return Work(
    sum(useful.values()) * rows, executed * rows, {k: v * rows for k, v in useful.items()}
  )
