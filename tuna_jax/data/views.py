"""Other looks at a source: some of its records, and its texts alone. numpy only."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data.records import named, texts_of
from tuna_jax.data.tasks import PLACEHOLDER, TASKS, turns_of


class Some:
  """The records of a source whose numbers stand in a .npy file, in that order."""

  def __init__(self, source, path: str):
    """Raises UserError where the numbers are not of this source."""
    self.task, self.name, self.root, self._source = source.task, source.name, source.root, source
    self._numbers = np.load(io.BytesIO(files.path(path).read_bytes()))
    if not len(self._numbers) or not 0 <= self._numbers.min() <= self._numbers.max() < len(source):
      raise UserError(f'{path}: expected record numbers of {self.name}, 0 to {len(source) - 1}')

  def __len__(self):
    return len(self._numbers)

  def __getitem__(self, index) -> dict[str, Any]:
    return self._source[int(self._numbers[index])]

  def raw(self, index) -> dict[str, Any]:
    """The record as stored, media unread."""
    return self._source.raw(int(self._numbers[index]))

  def where(self, index) -> str:
    """The record's place in the whole source."""
    return self._source.where(int(self._numbers[index]))

  def smallest(self) -> int:
    """Not known without reading the records: the first."""
    return 0


class Texts:
  """The texts of a source as conversations of the task `text`, without pictures: what a decoder is
  pretrained on where the data have captions or questions alone. A text that is no conversation is
  the answer to `question`.
  """

  task = 'text'

  def __init__(self, source, question: str):
    self.name, self.root, self._source, self._question = source.name, '', source, question

  def __len__(self):
    return len(self._source)

  @named
  def __getitem__(self, index) -> dict[str, Any]:
    task, record = self._source.task, self._source.raw(index)
    texts = list(texts_of(record, task))  # checks them
    if 'turns' in TASKS[task].fields.values():
      turns = turns_of(record)
    else:
      turns = [('user', self._question), ('assistant', ' '.join(texts))]
    names = {'user': 'human', 'assistant': 'gpt'}
    bare = lambda text: text.replace(PLACEHOLDER, '').replace('<video>', '').strip()
    return {'conversations': [{'from': names.get(r, r), 'value': bare(text)} for r, text in turns]}

  raw = __getitem__

  def where(self, index) -> str:
    """The record's place in the source."""
    return self._source.where(index)

  def smallest(self) -> int:
    """That of the source."""
    return self._source.smallest()
