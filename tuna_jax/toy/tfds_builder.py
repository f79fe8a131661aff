"""The rendered world as a TensorFlow Datasets builder that writes array_record without TensorFlow.

    from tuna_jax.toy.tfds_builder import Shapes
    builder = Shapes(data_dir="data", config="t2i")
    builder.download_and_prepare()
    record = decode(builder.as_data_source("test")[0])     # the record that records.record makes

One config per task. Pictures are PNG, clips a sequence of 9 PNG frames, `scene` is JSON text; a
record's number is its `index`, `seed` is 0. The files hold the records in an order that tfds
shuffles.
"""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from tuna_jax.data.records import PICTURES
from tuna_jax.data.tasks import TASKS
from tuna_jax.evals.page import png
from tuna_jax.toy import records, world

SEED = 0
_KINDS = {name: kind for task in records.TASKS for name, kind in TASKS[task].fields.items()}


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
  """One task and how many records each split gets.

  For other numbers, give `Shapes(config=...)` one with a name of its own:
  ShapesConfig(name='t2i_few', task='t2i', train=100, test=10).
  """

  task: str = ''
  train: int = 20_000
  test: int = 1_000


class Shapes(tfds.core.GeneratorBasedBuilder):
  """Coloured shapes on white in 64 x 64: captions, questions, edits and clips."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  BUILDER_CONFIGS: ClassVar = [ShapesConfig(name=task, task=task) for task in records.TASKS]

  def __init__(self, *, file_format='array_record', **kwargs):
    """`data_dir` and `config` as in tfds; array_record, the format that needs no TensorFlow."""
    super().__init__(file_format=file_format, **kwargs)

  def _info(self):
    task = self.builder_config.task
    world.check_name('task', task, records.TASKS)
    typed = ('type',) if 'type' in records.record(task, 'train', SEED, 0) else ()
    fields = {name: _feature(name) for name in (*TASKS[task].fields, *typed, 'scene')}
    features = tfds.features.FeaturesDict(fields)
    about = dict(description=records.record.__doc__, license='Apache-2.0')
    return tfds.core.DatasetInfo(builder=self, features=features, **about)

  def _split_generators(self, dl_manager):
    counts = {'train': self.builder_config.train, 'test': self.builder_config.test}
    return {split: self._generate_examples(split, count) for split, count in counts.items()}

  def _generate_examples(self, split, count):
    for index in range(count):
      yield index, _encode(records.record(self.builder_config.task, split, SEED, index))


def _feature(name):
  picture = tfds.features.Image(shape=(world.SIDE, world.SIDE, 3), encoding_format='png')
  kind = _KINDS.get(name)
  if kind in PICTURES:
    return picture
  if kind == 'clip':
    return tfds.features.Sequence(picture, length=world.FRAMES)
  if kind == 'turns':
    return tfds.features.Sequence({'from': tfds.features.Text(), 'value': tfds.features.Text()})
  return tfds.features.Text()


def _encode(record):
  out = dict(record, scene=json.dumps(record['scene']))
  for name, value in record.items():
    if isinstance(value, np.ndarray):
      out[name] = png(value) if value.ndim == 3 else [png(frame) for frame in value]
  return out


def decode(row):
  """The record, as `records.record` makes it, of a row of `as_data_source`."""
  out = {name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()}
  out['scene'] = json.loads(out['scene'])
  if 'video' in out:
    out['video'] = np.stack(out['video'])
  if 'conversations' in out:
    turns = zip(out['conversations']['from'], out['conversations']['value'])
    out['conversations'] = [{'from': w.decode(), 'value': text.decode()} for w, text in turns]
  return out
