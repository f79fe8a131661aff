"""Floating-point operations of sampling, by arithmetic (`models.flops`). Every query scores every
key it is given, masked or not, as a dense kernel does.
"""

from __future__ import annotations

import dataclasses

from tuna_jax.config import TunaConfig
from tuna_jax.models.flops import SEEN, Tokens, forward


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
