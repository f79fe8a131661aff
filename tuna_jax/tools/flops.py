"""Floating-point operations of training and of sampling, by arithmetic: 2 for a multiply-add.

Axes:  L positions   V latent tokens   M images per row
Counted are matrix products and attention; norms, rotations, activations and softmax (a few per
cent) and the VAE are not. The compiler's own count sees a scanned layer once and a Pallas kernel as
nothing (docs/tpu.md 1), so the count here is the one to use.

  forward    2 x (weights of a matrix) x (tokens through it), and 4 x heads x head_dim x (pairs of a
             query and a key) in each layer of attention
  backward   once more for gradients of what flows through, once more for gradients of weights
  useful     forward + backward: the work of the model
  executed   what the device does: rematerialised layers and logits run forwards twice, and a
             flash backward multiplies 5 matrices (7 unfused) where the mathematics needs 4
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import NamedTuple

from tuna_jax import tree
from tuna_jax.config import TunaConfig
from tuna_jax.models.attention import SPLASH_FUSED_KEYS
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig

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
def _matrices(model: TunaConfig) -> dict[str, tuple[str, str, int]]:
  """{leaf name: (its part, its row of `Tokens`, how many weights)} of all that multiplies."""
  head = 'decoder/embed/embedding' if model.decoder.tied else 'decoder/lm_head/kernel'
  return {
    name: ('logits' if name == head else name.partition('/')[0], tree.match(name, _TOKENS), a.size)
    for name, a in tree.flatten(tuna_shapes(model)).items()
    if name == head or re.fullmatch('.*/kernel|vision/position_embed/embedding', name)
  }


def products(model: TunaConfig, tokens: Tokens) -> dict[str, float]:
  """{leaf name: FLOPs of one forward pass of a row through that matrix}."""
  return {
    name: 2.0 * size * getattr(tokens, kind) for name, (_, kind, size) in _matrices(model).items()
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
    out[_matrices(model)[name][0]] += operations
  return out


# ---- training


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
  layers = dict.fromkeys(PARTS, 0.0)  # what remat runs twice
  for name, operations in products(model, tokens).items():
    part = _matrices(model)[name][0]
    weights[part] += operations if name in trains else 0
    layers[part] += operations if '/layers/' in name else 0
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
      executed += scores[part] if model.remat != 'none' else 0
      executed += layers[part] if model.remat in ('block', 'offload') else 0
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
    numbers += count * tower.num_layers * (8 * tower.dim + 2 * heads + 4 * tower.mlp_dim)
  passes = 3 + (model.remat in ('block', 'offload'))
  return passes * item * numbers * config.rows


SOFTMAX = 8  # vector operations per score: mask, maximum, difference, exponential, sum, product


def softmax_operations(config: TrainConfig) -> float:
  """Vector operations on the scores of a step: forwards, again for remat, and in both kernels of
  the backward pass.
  """
  scores, model = 0.0, config.model
  for part, operations in attention(model, row_of(config)).items():
    if operations and (part != 'flow_head' or config.flow_coeff):
      scores += operations / (4.0 * getattr(model, part).head_dim)
  return SOFTMAX * (3 + (config.model.remat != 'none')) * scores * config.rows


# ---- sampling: every query scores every key it is given, masked or not, as a dense kernel does


@dataclasses.dataclass(frozen=True)
class Target:
  """One picture or clip to draw.

  prefix: positions before the target span, boi included. cells: latent cells of each target frame.
  sources: latent cells among the prefix, in equal pictures. frames: latent frames of the target.
  padded: length of the padded sequence, for `naive`. images: pictures of a sequence, the target
  included. branches: rows that guidance needs.
  """

  prefix: int
  cells: int
  sources: int = 0
  frames: int = 1
  padded: int = 8192
  images: int = 1
  branches: int = 2

  @property
  def span(self) -> int:
    """Positions of the target span: its cells and the time token."""
    return self.frames * self.cells + 1

  @property
  def source_pairs(self) -> float:
    """Pairs in a vision layer of the source pictures."""
    return self.sources**2 / max(self.images - 1, 1)

  @property
  def target_pairs(self) -> int:
    """Pairs in a vision layer of the target, whose frames attend to themselves alone."""
    return self.frames * self.cells**2

  def whole(self, length: int) -> Tokens:
    """One evaluation of a whole sequence of `length` positions."""
    visual = self.sources + self.span - 1
    pairs = self.source_pairs + self.target_pairs
    return Tokens(length, visual, self.images, self.images, visual, length**2, pairs)


def naive(model: TunaConfig, target: Target, evaluations: int) -> float:
  """The official sampler: padded, everything again at every step, the language head included."""
  row = forward(model, target.whole(target.padded))
  return target.branches * evaluations * sum(row.values())


def trimmed(model: TunaConfig, target: Target, evaluations: int) -> float:
  """Nothing after the target span and no language head; the rest again at every step."""
  row = forward(model, target.whole(target.prefix + target.span))
  return target.branches * evaluations * (sum(row.values()) - row['logits'])


def prefill(model: TunaConfig, target: Target) -> float:
  """The prefix of one row into both caches, which already have room for the target."""
  length, images = target.prefix, target.images - 1
  pairs = length * (length + target.span)
  tokens = Tokens(length, target.sources, images, max(images, 1), 0, pairs, target.source_pairs)
  row = forward(model, tokens)
  return sum(row.values()) - row['logits']


def step(model: TunaConfig, target: Target) -> float:
  """One evaluation of the target span with caches; all branches see one picture."""
  span = target.span
  pairs = span * (target.prefix + span)
  row = forward(model, Tokens(span, span - 1, 1, 1, span - 1, pairs, target.target_pairs))
  if model.seen_dim:  # what is drawn does not pass the tower
    row |= {'vision': 0.0, 'connector': 0.0}
  seen = sum(row[part] for part in SEEN)
  return seen + target.branches * (sum(row.values()) - row['logits'] - seen)


def cached(model: TunaConfig, target: Target, evaluations: int) -> float:
  """What `sample_latents` does."""
  return target.branches * prefill(model, target) + evaluations * step(model, target)
