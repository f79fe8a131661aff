"""Raw records become usable ones: `TASKS` says which fields are checked and which are media."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data import media
from tuna_jax.data.tasks import PLACEHOLDER, TASKS, turns_of

PICTURES = ('picture', 'pictures')


class BadRecord(UserError):
  """One record that cannot be used; the message starts with where it is."""


def load(
  record: dict[str, Any], task: str, root: str, config: media.MediaConfig, where: str
) -> dict[str, Any]:
  """Checks one record and reads its media: uint8 arrays, or a list of them where a list stands.

  Pictures of several fields (the two sides of an edit) all take the size of the first. root: where
  media paths start. Raises BadRecord starting with `where`.
  """
  fields, out = TASKS[task].fields, dict(record)
  for field in fields:
    if field not in record:
      raise BadRecord(f'{where}: no field {field!r}; a record of {task} has {", ".join(fields)}')
  one_size, size = sum(kind in PICTURES for kind in fields.values()) > 1, None
  try:
    for field, kind in fields.items():
      value = record[field]
      listed = isinstance(value, list)
      if kind == 'turns':
        turns_of(record)
      elif kind == 'text':
        if not isinstance(value, str) or not value.strip():
          raise UserError(f'{field} is empty')
      elif listed and (not value or kind == 'picture'):
        wanted = 'one path' if kind == 'picture' else 'one or more paths'
        raise UserError(f'{field}: expected {wanted}, found {value}')
      elif kind == 'clip':
        out[field] = media.read_video(_locate(value, root), config.video_size, config.frames)
      else:
        read = []
        for one in value if listed else [value]:
          read.append(media.read_image(_locate(one, root), config.image_size, size))
          size = read[0].shape[:2] if one_size and size is None else size
        out[field] = read if listed else read[0]
  except ValueError as e:
    raise BadRecord(f'{where}: {e}') from e
  return out


def media_of(record: Mapping, task: str, kinds=(*PICTURES, 'clip')) -> list[np.ndarray]:
  """The pictures and clips of a record whose media are read, in the order of the task's fields."""
  found = []
  for field, kind in TASKS[task].fields.items():
    if kind in kinds:
      found += record[field] if isinstance(record[field], list) else [record[field]]
  return found


def texts_of(record: Mapping, task: str) -> Iterator[str]:
  """The texts of a raw record, marks of pictures left out. Raises UserError for malformed turns."""
  for field, kind in TASKS[task].fields.items():
    if kind == 'text':
      yield record[field]
    elif kind == 'turns':
      for _, text in turns_of(record):
        yield from filter(None, text.split(PLACEHOLDER))


def _locate(value, root: str):
  """A media path (or list of them) below `root`; arrays and encoded bytes as they are. Raises
  UserError outside.
  """
  if isinstance(value, (list, tuple)) and value:
    return [_locate(v, root) for v in value]
  if isinstance(value, (np.ndarray, bytes)):
    return value
  if not isinstance(value, str) or not value:
    raise UserError(f'expected a path, found {value!r}')
  if files.is_remote(root):
    if value.startswith('/') or '..' in value.split('/') or '://' in value:
      raise UserError(f'{value!r} leaves the root {root}')
    return str(files.path(root) / value)
  base, path = os.path.abspath(root), os.path.abspath(os.path.join(root, value))
  if os.path.commonpath([base, path]) != base:
    raise UserError(f'{value!r} leaves the root {root}')
  return path
