"""One record of a source laid out, with one verdict for all who ask: the pipeline, `data check` and
the preview.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from tuna_jax.data.records import BadRecord, guard
from tuna_jax.data.segments import Example, layout
from tuna_jax.data.sources import Source
from tuna_jax.data.tasks import TASKS, Context
from tuna_jax.data.tokenizer import Letters

STRIDES = (4, 16)  # (temporal, spatial) of the published VAE, and of the tiny one


def example(
  source: Source,
  index: int,
  context: Context,
  rng: np.random.Generator,
  strides: tuple[int, int] = STRIDES,
) -> Example:
  """Record `index` of a source, laid out. Raises BadRecord, which starts with the record's place,
  if it cannot be used.
  """
  task = TASKS[source.task]
  with guard(source, index):
    plan = task.plan(source[index], context, rng)
    return layout(plan, context.tokenizer, strides, task.number)


@dataclasses.dataclass
class Checked:
  """What `check` found in one source. sizes: 'HEIGHTxWIDTH' (of clips 'FRAMESxHEIGHTxWIDTH') ->
  how many pictures or clips have it.
  """

  read: int = 0
  bad: int = 0
  sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def check(source: Source, count: int, say: Callable[[str], None]) -> Checked:
  """Reads and lays out the first `count` records; `say` is told why a record cannot be used."""
  found, context, rng = Checked(), Context(Letters()), np.random.default_rng(0)
  for index in range(count):
    found.read += 1
    try:
      laid = example(source, index, context, rng)
      shapes = [m.shape[1:-1] if len(m) == 1 else m.shape[:-1] for m in laid.media]
      found.sizes.update('x'.join(map(str, shape)) for shape in shapes)
    except BadRecord as e:
      found.bad += 1
      say(str(e))
  return found
