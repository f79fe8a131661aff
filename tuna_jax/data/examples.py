"""One record of a source laid out, with one verdict for all who ask: the pipeline, `data check` and
the preview.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tuna_jax.data.records import BadRecord, guard
from tuna_jax.data.segments import Example, layout
from tuna_jax.data.sources import Source
from tuna_jax.data.tasks import TASKS, Context
from tuna_jax.data.tokenizer import Letters

Room = Sequence[int]  # L, V, M of a row: positions, latent cells, pictures and clips
STRIDES = (4, 16)  # (temporal, spatial) of the published VAE, and of the tiny one


class TooLarge(BadRecord):
  """A record whose example exceeds a row, or whose texts exceed `max_text`."""


def example(
  source: Source,
  index: int,
  context: Context,
  rng: np.random.Generator,
  strides: tuple[int, int] = STRIDES,
  room: Room | None = None,
) -> Example:
  """Record `index` of a source, laid out. room: (L, V, M) of a row that it must fit.

  Raises BadRecord, which starts with the record's place, if it cannot be used; TooLarge if that is
  for its size alone.
  """
  task = TASKS[source.task]
  with guard(source, index):
    plan = task.plan(source[index], context, rng)
    laid = layout(plan, context.tokenizer, strides, task.number)
  bound, what = context.config.max_text, ''
  if laid.images and bound and laid.text > bound:
    what = f'its texts take {laid.text} tokens, more than max_text={bound}'
  elif room is not None and exceeds(laid, room):
    what = f'the example needs {shape(laid.needs)}; a row has {shape(room)}'
  if what:
    raise TooLarge(f'{source.where(index)}: {what}')
  return laid


def exceeds(laid: Example, room: Room) -> str:
  """Those of the axes 'LVM' along which an example exceeds a row."""
  return ''.join(axis for axis, need, have in zip('LVM', laid.needs, room) if need > have)


def shape(sizes: Room) -> str:
  """'L=2048, V=2048, M=16'."""
  return ', '.join(f'{axis}={n}' for axis, n in zip('LVM', sizes))


@dataclasses.dataclass
class Checked:
  """What `check` found in one source. sizes: 'HEIGHTxWIDTH' (of clips 'FRAMESxHEIGHTxWIDTH') ->
  how many pictures or clips have it. large: of the bad ones, those that are only too large.
  """

  read: int = 0
  bad: int = 0
  large: int = 0
  sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)


_LETTERS = Context(Letters())


def check(
  source: Source,
  count: int,
  say: Callable[[str], None],
  context: Context = _LETTERS,
  strides: tuple[int, int] = STRIDES,
  room: Room | None = None,
) -> Checked:
  """Reads and lays out the first `count` records; `say` is told why a record cannot be used."""
  found, rng = Checked(), np.random.default_rng(0)
  for index in range(count):
    found.read += 1
    try:
      laid = example(source, index, context, rng, strides, room)
      shapes = [m.shape[1:-1] if len(m) == 1 else m.shape[:-1] for m in laid.media]
      found.sizes.update('x'.join(map(str, shape)) for shape in shapes)
    except BadRecord as e:
      found.bad += 1
      found.large += isinstance(e, TooLarge)
      say(str(e))
  return found
