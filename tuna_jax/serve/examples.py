"""Prompts, and pictures to edit and to ask about, from the data that a run was trained on."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data.mixture import DataConfig, open_sources
from tuna_jax.evals import own_data
from tuna_jax.mappings import from_dict
from tuna_jax.weights import published, store

_log = logging.getLogger(__name__)
EACH = 4
# task: the fields of its text and of the picture that the text is about
FIELDS = {'t2i': ('caption', ''), 'edit': ('instruction', 'raw_image'), 't2v': ('caption', '')}


class Example(NamedTuple):
  """picture: uint8 [H, W, 3] that the text is about, if it is about one."""

  text: str
  picture: np.ndarray | None = None


def of_run(checkpoint: str | os.PathLike) -> dict[str, list[Example]]:
  """At most EACH records by task: 't2i', 'edit', 't2v' and 'vqa'. Weights remember no data; where a
  run's are not there, a warning says so."""
  root = published.locate(checkpoint)
  about = store.read_config(root)
  if about['kind'] != 'run':
    return {}
  try:
    sources = open_sources(from_dict(DataConfig, about['config']['data']))
  except (UserError, OSError) as error:
    _log.warning('%s: no example prompts, since its data are not there: %s', checkpoint, error)
    return {}
  found: dict[str, list[Example]] = {}
  for source in sources:
    if source.task in (*FIELDS, 'vqa') and source.task not in found:
      records = own_data.first([source], EACH)
      found[source.task] = [_example(source.task, record) for record in records]
  return found


def _example(task: str, record) -> Example:
  if task == 'vqa':
    text, field = own_data.pairs_of(record)[0][0], 'image'
  else:
    text, field = record[FIELDS[task][0]], FIELDS[task][1]
  picture = record[field] if field else None
  return Example(text, picture[0] if isinstance(picture, list) else picture)
