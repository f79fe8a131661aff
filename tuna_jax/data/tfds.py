"""Prepared TensorFlow Datasets directories as a source, read without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping

import tensorflow_datasets as tfds

from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import Stored, named
from tuna_jax.data.sources import SourceConfig
from tuna_jax.data.tasks import TASKS


class TfdsSource(Stored):
  """One split of a prepared directory. Fields are named as in JSONL records."""

  def __init__(self, config: SourceConfig, media: MediaConfig):
    self.task, self.name = config.task, f'{config.path}/{config.split}'
    self.root, self._media = config.root, media
    builder = tfds.builder_from_directory(config.path.removeprefix('tfds:'))
    self._data = builder.as_data_source(config.split)

  def __len__(self):
    return len(self._data)

  @named
  def raw(self, index):
    """The record with its texts as str and its conversations as JSONL has them."""
    record = dict(self._data[int(index)])
    for field, kind in TASKS[self.task].fields.items():
      value = record.get(field)
      if kind == 'text' and isinstance(value, bytes):
        record[field] = _text(value)
      elif kind == 'turns' and isinstance(value, (bytes, str)):
        record[field] = json.loads(_text(value))
      elif kind == 'turns' and isinstance(value, Mapping):  # tfds makes a list of dicts this
        pairs = zip(value['from'], value['value'])
        record[field] = [{'from': _text(f), 'value': _text(v)} for f, v in pairs]
    return record


def _text(value) -> str:
  return value.decode('utf-8') if isinstance(value, bytes) else str(value)
