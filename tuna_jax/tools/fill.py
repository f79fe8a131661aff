"""How full the rows of a stage are: its packing, run on records without a model."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from tuna_jax.data.pipeline import Pipeline
from tuna_jax.train.config import TrainConfig


class Words:
  """Stands in for a tokenizer: an id per word and per mark, about as many as Qwen2.5 needs for
  English, and the roles of special tokens as the ids 0 to 5.
  """

  pad, boi, eoi, img_pad, bos, eos = range(6)

  def encode(self, text: str) -> tuple[int, ...]:
    """An id for each word, with the space before it, and for each other character."""
    return (6,) * len(re.findall(r' ?\w+|[^\w]', text))


@dataclasses.dataclass(frozen=True)
class Fill:
  """Of one phase: its first step, the filled share of L, V and M, the examples per row, and the
  share of examples left out because they are too large."""

  start: int
  filled: dict[str, float]
  examples_per_row: float
  too_large: float


def fill(config: TrainConfig, tokenizer, batches: int, rows: int = 16) -> list[Fill]:
  """Packs `batches` batches of `rows` rows for each phase of `config`, on its mixture."""
  (temporal, spatial), out = config.model.strides, []

  def encode(pixels):
    n, f, h, w, _ = pixels.shape
    return np.zeros((n, 1 + (f - 1) // temporal, h // spatial, w // spatial, 1), np.float32)

  for start, weights in config.data.phases:
    data = dataclasses.replace(config.data, phases=((0.0, weights),), prefetch=0)
    pipeline = Pipeline(
      data, tokenizer, encode=encode, strides=config.model.strides,
      sizes=(rows, config.length, config.visual, config.images, 1), seed=config.seed,
    )  # fmt: skip
    for _ in range(batches):
      next(pipeline)
    pipeline.close()
    counts = pipeline.counts()
    examples, large = sum(counts['examples'].values()), sum(counts['too_large'].values())
    out.append(
      Fill(
        start=round(start * config.steps) if 0 < start < 1 else int(start),
        filled=counts['fill'],
        examples_per_row=examples / (rows * batches),
        too_large=large / (large + examples),
      )
    )
  return out


def table(found: list[Fill]) -> str:
  """What `data fill` prints."""
  lines = ['from step   L filled   V filled   M filled   examples per row   too large']
  for f in found:
    shares = ''.join(f'{f.filled.get(axis, 0.0):11.1%}' for axis in 'LVM')
    lines.append(f'{f.start:9}{shares}{f.examples_per_row:19.2f}{f.too_large:12.1%}')
  return '\n'.join(lines)
