"""Random-access sources of records, and the mixture file that lists them.

A source has a length, a `task`, a `name`, and `source[i]` -> a record whose media are uint8 arrays
of bucket size; it raises `BadRecord`, naming file and line, for one that cannot be used. The
pipeline counts those. To add a kind of source, write its opener and add a row to `KINDS`. numpy
only.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.tasks import TASKS, check_task
from tuna_jax.data.views import Some
from tuna_jax.mappings import from_dict, kind
from tuna_jax.ranges import Count, Positive, Whole

# What the path of a mixture row looks like -> what opens the row, called with (SourceConfig,
# MediaConfig) and imported when a row asks for it. The first pattern that matches counts.
WORLD, SYNTHETIC = MADE = ('shapes', 'synthetic')  # made as they are read
KINDS: Mapping[str, str] = MappingProxyType(
  {
    WORLD: 'tuna_jax.toy.source:ShapesSource',
    SYNTHETIC: 'tuna_jax.tools.synthetic:SyntheticSource',
    'tfds:*': 'tuna_jax.data.tfds:TfdsSource',
    'latents:*': 'tuna_jax.data.encoded:LatentsSource',
    '*.array_record*': 'tuna_jax.data.arrayrecord:ArrayRecordSource',
    '*.tar': 'tuna_jax.data.webdataset:WebDatasetSource',
    '*.parquet': 'tuna_jax.data.parquet:ParquetSource',
    '*.json': 'tuna_jax.data.jsonlist:open_json',
    '*': 'tuna_jax.data.jsonl:JsonlSource',
  }
)


class Source(Protocol):
  """See the module."""

  task: str
  name: str
  root: str  # where relative paths of media start

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...

  def raw(self, index: int) -> dict[str, Any]:
    """The record as stored, media unread."""

  def where(self, index: int) -> str:
    """The record's place, for messages."""

  def smallest(self) -> int:
    """The record that is stored in the fewest bytes; 0 where that is not known."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One row of a mixture.

  path: files (docs/data.md 2), 'shapes' (the rendered world), 'synthetic' (blank media of real
  sizes), 'tfds:DIR' (a prepared TFDS directory) or 'latents:DIR' (latents made before). root: what
  relative media paths start from; the directory of the file if empty.
  weight: share of the mixture, multiplied by the phase's weight for the task. split: of 'shapes'
  and 'tfds:'. size, seed: the number of records of 'shapes', and which world. fields: our names of
  fields -> those of the file, where they differ. classes: a text file with the name of a class per
  line, for files that hold its number. records: a .npy file of the numbers of the records that are
  used, in their order; all if empty.
  """

  path: str
  task: str
  root: str = ''
  weight: Positive = 1.0
  split: str = 'train'
  size: Count = 1_000_000
  seed: Whole = 0
  fields: dict = dataclasses.field(default_factory=dict)
  classes: str = ''
  records: str = ''

  def __post_init__(self):
    check_task(self.task)
    for ours, theirs in self.fields.items():
      if ours not in TASKS[self.task].fields or not isinstance(theirs, str):
        wanted = ', '.join(TASKS[self.task].fields)
        raise UserError(f'{self.path}: fields: {ours!r}: {theirs!r}, expected names for {wanted}')


def kind_of(path: str) -> str:
  """The kind of source that a row's path names: a pattern of `KINDS`."""
  return next(kind for kind in KINDS if fnmatch.fnmatchcase(path, kind))


def opener(path: str) -> Callable[[SourceConfig, MediaConfig], Source]:
  """What opens a row of this path."""
  module, name = KINDS[kind_of(path)].split(':')
  return getattr(importlib.import_module(module), name)


def open_source(config: SourceConfig, media: MediaConfig) -> Source:
  """The source a mixture row means. Raises FileNotFoundError or UserError naming it."""
  source = opener(config.path)(config, media)
  return Some(source, config.records) if config.records else source


def read_mixture(path: str | os.PathLike) -> tuple[SourceConfig, ...]:
  """The rows of a mixture file: a JSON list of `{"path", "root", "task", "weight"}` and the other
  fields of `SourceConfig`.

  Relative paths start at the file's directory. Raises UserError naming the row and key that are
  wrong.
  """
  path = files.path(path)
  try:
    rows = files.read_json(path)
  except FileNotFoundError as e:
    raise UserError(f'mixture {path}: no such file') from e
  if not isinstance(rows, list) or not rows:
    found = 'an empty list' if rows == [] else kind(rows)
    wanted = 'a list of rows {"path", "root", "task", "weight"}'
    raise UserError(f'{path}: expected {wanted}, found {found}')
  out = []
  for n, row in enumerate(rows):
    try:
      config = from_dict(SourceConfig, row)
    except (ValueError, TypeError) as e:
      raise type(e)(f'{path}: row {n}: {e}') from e
    if config.records:
      config = dataclasses.replace(config, records=_beside(path, config.records))
    prefix, star, _ = kind_of(config.path).partition('*')
    if star:  # it names files
      config = dataclasses.replace(
        config,
        path=prefix + _beside(path, config.path.removeprefix(prefix)),
        root=_beside(path, config.root) if config.root else '',
        classes=_beside(path, config.classes) if config.classes else '',
      )
    out.append(config)
  return tuple(out)


def _beside(file, path: str) -> str:
  return path if files.is_remote(path) else str(file.parent / files.path(path))
