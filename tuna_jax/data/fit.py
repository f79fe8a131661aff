"""Whether the rows of a run hold its examples, asked before anything is compiled."""

from __future__ import annotations

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data.examples import Room, TooLarge, example, exceeds, shape
from tuna_jax.data.mixture import Phase
from tuna_jax.data.records import BadRecord
from tuna_jax.data.segments import Example
from tuna_jax.data.sources import Source
from tuna_jax.data.tasks import Context

FIRST = 3  # records of a source that are laid out, beside its smallest
_TRIED = 64  # records that are read to find so many that can be used
_FIELDS = {'L': ('length', 128), 'V': ('visual', 128), 'M': ('images', 1)}  # and a good multiple


def check_rows(
  phases: list[Phase], sources: list[Source], context: Context, strides: tuple[int, int], room: Room
) -> None:
  """Lays out the smallest and the first `FIRST` usable records of every source of every phase.

  Raises UserError, which names the source, the record, the task, what the example needs, what a row
  has, and the fields to change, if one does not fit; or if all of the first texts are longer than
  `max_text` allows. Other long texts, and records that cannot be used, are passed over: the
  pipeline skips and counts them.
  """
  for phase in phases:
    for number in phase.numbers:
      if not any(number in before.numbers for before in phases[: phases.index(phase)]):
        _check_source(sources[number], phase.start, context, strides, room)


def _check_source(source, start, context, strides, room):
  usable, long = 0, ''
  for index in (source.smallest(), *range(min(_TRIED, len(source)))):
    try:
      laid = example(source, index, context, np.random.default_rng(0), strides)
    except TooLarge as e:
      long = str(e)
      continue
    except BadRecord:
      continue
    if exceeds(laid, room):
      if context.config.max_text and not laid.images:
        long = f'{source.where(index)}: it takes {laid.length} tokens, a row has {room[0]}'
        continue
      which = 'the smallest record' if index == source.smallest() else 'one of the first records'
      raise UserError(
        f'{source.where(index)}: the example of {source.task} needs {shape(laid.needs)}; a row has '
        f'{shape(room)}. It is {which} of {source.name}, which is read from step {start} on. '
        f'Change {_advice(laid, room)}'
      )
    usable += 1
    if usable > FIRST:
      return
  if long and not usable:
    raise UserError(
      f'{source.name}: no text of the first {min(_TRIED, len(source))} records of {source.task} is '
      f'short enough: {long}. Change data.tasks.max_text, and length with it'
    )


def _advice(laid: Example, room: Room) -> str:
  """The fields that make room for an example, or make it smaller."""
  over = exceeds(laid, room)
  fields = []
  for axis, need in zip('LVM', laid.needs):
    if axis in over:
      name, multiple = _FIELDS[axis]
      fields.append(f'--config.{name}={-(-need // multiple) * multiple}')
  smaller = ['data.media.image_size'] if (laid.grid[:, 0] == 1).any() else []
  smaller += ['data.media.video_size or data.media.frames'] if (laid.grid[:, 0] > 1).any() else []
  smaller += ['data.tasks.max_text'] if laid.images and laid.text > laid.cells else []
  instead = f', or lower {" or ".join(smaller)}' if smaller else ''
  return ' and '.join(fields) + instead
