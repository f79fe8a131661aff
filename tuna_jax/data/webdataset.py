"""WebDataset tars as a source: the neighbouring members of one key are a record.

A member is called KEY.EXTENSION or KEY.FIELD.EXTENSION, and its key ends at the first dot of its
file name. A record lies in one piece, so it is read with one request (`shards`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from typing import Any

import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data import shards
from tuna_jax.data.columns import class_name, read_classes, record_of
from tuna_jax.data.jsonl import nesting
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import PICTURES, Sharded, named
from tuna_jax.data.sources import SourceConfig
from tuna_jax.data.tasks import TASKS
from tuna_jax.mappings import kind

_PICTURES = frozenset(
  'png jpg jpeg jfif webp bmp gif tif tiff avif heic jp2 ppm tga img image'.split()
)
_CLIPS = frozenset('mp4 m4v mov webm mkv avi mpg mpeg ts gif webp png apng video'.split())
_TEXTS = ('txt', 'text', 'caption')
_BLOCK = 512  # of a tar


class WebDatasetSource(Sharded):
  """The records of tars, in order. See `_record` for which member becomes which field."""

  def __init__(self, config: SourceConfig, media: MediaConfig):
    """Raises FileNotFoundError, or UserError for files without records."""
    self.task, self.name, self._media = config.task, config.path, media
    self.root = config.root or os.path.dirname(config.path) or '.'
    self._fields, self._classes = config.fields, read_classes(config.classes)
    self._shards = shards.Shards(shards.paths_of(config.path), samples)

  @named
  def raw(self, index):
    """The record, its media as encoded bytes. Raises BadRecord where members are missing."""
    limits = self._media.limits
    data = self._shards.read(index, limits.bytes, 'limits.bytes')
    key, members = '', {}
    with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as tar:
      for member in filter(tarfile.TarInfo.isfile, tar):
        key, extension = split(member.name)
        members[extension] = tar.extractfile(member).read()
    return {'__key__': key, **self._record(members)}

  def _record(self, members: dict[str, bytes]) -> dict[str, Any]:
    """The fields of `.json`, overwritten by those of other members: KEY.FIELD.EXTENSION and
    KEY.FIELD.NUMBER.EXTENSION are FIELD (a list, with numbers); otherwise a text is the text field
    of the task, a class (`.cls`) is its text if there is no other, and a picture or clip is the
    only field that takes one. The row's `fields` come before all.
    """
    record, task, lists, limits = {}, TASKS[self.task].fields, {}, self._media.limits
    if 'json' in members:
      if nesting(members['json']) > limits.nesting:
        raise UserError(f'brackets nested more than limits.nesting={limits.nesting} deep')
      record = json.loads(members['json'])
      if not isinstance(record, dict):
        raise UserError(f'.json: expected an object, found {kind(record)}')
    record = shards.renamed(record, self._fields)
    texts = [f for f, kind in task.items() if kind == 'text']
    if texts and texts[0] not in record and 'cls' in members:
      label = members['cls'].decode().strip()
      record[texts[0]] = class_name(int(label), self._classes) if label.isdecimal() else label
    for extension, data in sorted(members.items()):
      first, *more = extension.split('.')
      ours = next((f for f, theirs in self._fields.items() if theirs == extension), None)
      if ours:
        record[ours] = _value(task[ours], data)
      elif first in task and len(more) == 2 and more[0].isdecimal():
        lists.setdefault(first, []).append((int(more[0]), data))
      elif first in task and more:
        record[first] = _value(task[first], data)
      elif texts and extension in _TEXTS:
        record[texts[0]] = data.decode()
      elif field := _only(task, extension):
        record[field] = data
    record |= {field: [data for _, data in sorted(found)] for field, found in lists.items()}
    return record_of(record, self.task, self._classes)


def split(name: str) -> tuple[str, str]:
  """(key, extension) of a member: ('a/001', 'raw_image.jpg')."""
  folder, _, file = name.rpartition('/')
  stem, _, extension = file.partition('.')
  return (f'{folder}/{stem}' if folder else stem), extension.lower()


def samples(path: str) -> shards.Index:
  """The index of a tar: where each run of members of one key starts."""
  starts, last, end = [], None, 0
  with _open(path) as file:
    try:
      tar = tarfile.open(fileobj=file, mode='r:')
    except tarfile.TarError as e:
      raise UserError(f'{path}: not a tar ({e})') from e
    with tar:
      while (member := tar.next()) is not None:
        tar.members = []  # it would remember them all
        key, extension = split(member.name)
        if not member.isfile() or not extension or os.path.basename(key).startswith('__'):
          continue
        if key != last:
          starts.append(member.offset)
          last = key
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
  return {'starts': np.array([*starts, end], np.int64)}


@contextlib.contextmanager
def _open(path: str):
  if files.is_remote(path):
    system = files.storage(path)
    with system.open(path, 'rb', block_size=shards.CHUNK, cache_type='readahead') as file:
      yield file
  else:
    with open(path, 'rb') as file:
      yield file


def _value(kind: str, data: bytes):
  """A member as a value of a field of this kind."""
  return {'text': bytes.decode, 'turns': json.loads}.get(kind, bytes)(data)


def _only(task, extension: str) -> str | None:
  """The only field of a task that takes a file of this extension."""
  kinds = PICTURES if extension in _PICTURES else ()
  kinds = (*kinds, 'clip') if extension in _CLIPS else kinds
  found = [field for field, kind in task.items() if kind in kinds]
  return found[0] if len(found) == 1 else None
