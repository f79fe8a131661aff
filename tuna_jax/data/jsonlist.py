"""A JSON list of records as a source, as LLaVA publishes its conversations.

The file is not read whole: an index says where its elements start. Of a list with and without
pictures, a task of pictures takes the records that name some, and `text` takes the others.
"""

from __future__ import annotations

import re

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data import shards
from tuna_jax.data.columns import record_of
from tuna_jax.data.jsonl import JsonlSource
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import Sharded, named
from tuna_jax.data.sources import SourceConfig
from tuna_jax.data.tasks import TASKS

_TEXTS = ('text', 'turns')
_MEDIA = {
  field for task in TASKS.values() for field, kind in task.fields.items() if kind not in _TEXTS
}
_VISUAL = re.compile(rb'"(?:%s)"\s*:' % '|'.join(sorted(_MEDIA)).encode())
_LONGEST = 64  # bytes of the above that may lie across two chunks
_OPEN, _CLOSE = b'[{', b']}'


def open_json(config: SourceConfig, media: MediaConfig) -> JsonlSource:
  """The source of .json files: of lists, or of lines where they begin with an object."""
  head = shards.read_range(shards.paths_of(config.path)[0], 0, 4096)
  lists = head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'[')
  return (JsonListSource if lists else JsonlSource)(config, media)


class JsonListSource(JsonlSource):
  """The elements of a list, or of the lists of a pattern."""

  def _open(self, paths):
    visual = any(kind not in _TEXTS for kind in TASKS[self.task].fields.values())

    def choose(index):
      keep = np.flatnonzero(index['visual'] == visual)
      # Where none is left, or fields have other names, their absence is named record by record.
      return {**index, 'keep': keep} if len(keep) and not self._fields else index

    return shards.Shards(paths, elements, gap=1, choose=choose)

  @named
  def raw(self, index):
    """The JSON object, its conversation in our form. Raises BadRecord for anything else."""
    return record_of(super().raw(index), self.task)

  where = Sharded.where


def elements(path: str) -> shards.Index:
  """The index of the elements of a list; `visual` says which name a picture or clip.

  Raises UserError where the list does not end.
  """
  starts, named_at = [], []
  depth, inside, escaping, tail = 0, 0, 0, b''
  for start, data in shards.chunks(path):
    quotes, escaping = _quotes(data, escaping)
    at = np.flatnonzero(_STRUCTURE[data])
    within = (np.searchsorted(quotes, at) + inside) % 2
    at = at[within == 0]
    inside = (inside + len(quotes)) % 2
    steps = _STEP[data[at]]
    after = depth + np.cumsum(steps)
    splits = ((steps == 0) & (after == 1)) | ((steps == 1) & (after == 1))
    starts.append(at[splits | ((steps == -1) & (after == 0))] + (start + 1))
    depth = int(after[-1]) if len(after) else depth
    text = tail + data.tobytes()
    found = np.fromiter((found.start() for found in _VISUAL.finditer(text)), np.int64)
    named_at.append(found + (start - len(tail)))
    tail = text[-_LONGEST:]
  starts = np.concatenate([np.zeros(0, np.int64), *starts])
  if depth or len(starts) < 2:
    raise UserError(f'{path}: the list does not end, so the file is cut off')
  if len(starts) == 2 and not shards.read_range(path, int(starts[0]), int(starts[1]) - 1).strip():
    starts = starts[:1]
  visual = np.zeros(len(starts) - 1, bool)
  visual[np.searchsorted(starts, np.concatenate(named_at), 'right') - 1] = True
  return {'starts': starts, 'visual': visual}


_STRUCTURE, _STEP = np.zeros(256, bool), np.zeros(256, np.int8)
_STRUCTURE[list(b'[]{},')] = True
_STEP[list(_OPEN)], _STEP[list(_CLOSE)] = 1, -1


def _quotes(data: np.ndarray, escaping: int) -> tuple[np.ndarray, int]:
  """(the indices of the quotes that begin or end strings, whether the data end in an odd number of
  backslashes). escaping: the same of the data before.
  """
  quotes, slashes = np.flatnonzero(data == ord('"')), np.flatnonzero(data == ord('\\'))
  if not len(slashes):
    return (quotes[quotes > 0] if escaping else quotes), 0
  fresh = np.diff(slashes, prepend=-2) != 1
  first = slashes[np.maximum.accumulate(np.where(fresh, np.arange(len(slashes)), 0))]
  odd = (slashes - first + 1 + np.where(first == 0, escaping, 0)) % 2 == 1
  escaped = slashes[odd] + 1
  if escaping and slashes[0] != 0:
    escaped = np.concatenate([[0], escaped])
  ends = int(slashes[-1] == len(data) - 1 and odd[-1])
  return quotes[~np.isin(quotes, escaped, assume_unique=True)], ends
