"""Floating-point operations of a train step, of those of its forward pass.

backward   once more for gradients of what flows through, once more for gradients of weights
useful     forward + backward: the work of the model
executed   what the device does: what a layer does not keep and its backward pass needs runs
           forwards twice, and so do logits; a flash backward multiplies 5 matrices (7 unfused)
           where the mathematics needs 4
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tuna_jax.config import TOWERS
from tuna_jax.models.attention import SPLASH_FUSED_KEYS
from tuna_jax.models.flops import PARTS, Tokens, attention, forward, matrices, products
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig

# Kernels of layers whose product runs again, by `TunaConfig.remat`. The last product of a layer
# does not, unless a gate multiplies it. With these two, the scores of attention run again too.
_WHOLE = ('block', 'offload')
_LAST = '(decoder/layers/mlp/down_proj|vision/layers/mlp/fc2)'
_AGAIN = {
  'none': None,
  'dots': None,
  'narrow': f'(?!{_LAST}).*/layers/(mlp/.*|adaln)/kernel',
} | dict.fromkeys(('attention', *_WHOLE), f'(?!{_LAST}).*/layers/.*/kernel')


class Work(NamedTuple):
  """Operations of one step of the whole batch; by part, the useful ones."""

  useful: float
  executed: float
  by_part: dict[str, float]


def row_of(config: TrainConfig) -> Tokens:
  """A full row of one example whose visual spans have the same length: causal pairs, and within a
  span the other half too. Packing several examples needs less."""
  span = config.visual / config.images + 1 if config.visual else 0
  pairs = config.length * (config.length + 1) / 2 + config.images * span * (span - 1) / 2
  return Tokens(
    config.length,
    config.visual,
    config.images,
    modulated=config.images,
    outputs=config.visual,
    pairs=min(pairs, config.length**2),
    visual_pairs=config.visual**2 / max(config.images, 1),
  )


def train_flops(config: TrainConfig) -> Work:
  """The work of one optimizer step over `config.rows` rows."""
  model, tokens = config.model, row_of(config)
  trains = set(state_lib.make_optimizer(config)[1])
  used = {part for part in PARTS if config.visual or part in ('decoder', 'logits')}
  if not config.flow_coeff:
    used.discard('flow_head')
  weights = dict.fromkeys(PARTS, 0.0)  # gradients of weights
  again = dict.fromkeys(PARTS, 0.0)  # products that remat runs twice
  for name, operations in products(model, tokens).items():
    part = matrices(model)[name][0]
    weights[part] += operations if name in trains else 0
    repeated = part in TOWERS and _AGAIN[model.remat_of(part)]
    again[part] += operations if repeated and re.fullmatch(repeated, name) else 0
  once, scores = forward(model, tokens), attention(model, tokens)

  useful, executed = dict.fromkeys(PARTS, 0.0), 0.0
  reached = False
  flash = 2.5 if config.length <= SPLASH_FUSED_KEYS else 3.5
  for part in PARTS:
    if part not in used:
      continue
    reached |= any(name.startswith(f'{part}/') for name in trains)
    useful[part] = once[part]
    executed += once[part]
    if reached:
      through = once[part] - scores[part] + weights[part]
      useful[part] += through + 2 * scores[part]
      executed += through + flash * scores[part]
      executed += again[part]
      executed += scores[part] if part in TOWERS and model.remat_of(part) in _WHOLE else 0
      executed += once[part] if part == 'logits' else 0
  by_part = {part: n * config.rows for part, n in useful.items()}
  return Work(sum(by_part.values()), executed * config.rows, by_part)


def activation_bytes(config: TrainConfig) -> float:
  """What the layers of a step read from and write to HBM, at least: a matrix its input and output,
  an elementwise operation between them once. Forwards, again for remat, and twice backwards.
  """
  model, tokens, item = config.model, row_of(config), 2 if config.model.dtype == 'bfloat16' else 4
  numbers = 0.0
  for part, count in (
    ('vision', tokens.visual), ('decoder', tokens.length), ('flow_head', tokens.length)
  ):  # fmt: skip
    tower = getattr(model, part)
    if tower is None or (part == 'flow_head' and not config.flow_coeff):
      continue
    heads = 2 * (tower.num_heads + tower.num_kv_heads) * tower.head_dim
    passes = 3 + (model.remat_of(part) in _WHOLE)
    numbers += passes * count * tower.num_layers * (8 * tower.dim + 2 * heads + 4 * tower.mlp_dim)
  return item * numbers * config.rows


SOFTMAX = 8  # vector operations per score: mask, maximum, difference, exponential, sum, product


def softmax_operations(config: TrainConfig) -> float:
  """Vector operations on the scores of a step: forwards, again for remat, and in both kernels of
  the backward pass.
  """
  scores, model = 0.0, config.model
  for part, operations in attention(model, row_of(config)).items():
    if operations and (part != 'flow_head' or config.flow_coeff):
      passes = 3 + (model.remat_of(part) in _WHOLE)
      scores += passes * operations / (4.0 * getattr(model, part).head_dim)
  return SOFTMAX * scores * config.rows
