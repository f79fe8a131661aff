"""The rendered world as a source of records, row `shapes` of `data.sources.KINDS`."""

from __future__ import annotations

from typing import ClassVar

from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import Made
from tuna_jax.data.sources import SourceConfig
from tuna_jax.toy import records


class ShapesSource(Made):
  """`config.size` records, made when they are read. Pictures are 64x64 and clips have 9 frames,
  whatever `media` asks for.
  """

  tasks: ClassVar = records.TASKS

  def __init__(self, config: SourceConfig, media: MediaConfig):
    del media
    self.task, self.name = config.task, f'{config.path}/{config.task}/{config.split}'
    self._config = config

  def raw(self, index):
    """`records.record` of this task, split and seed."""
    return records.record(self.task, self._config.split, self._config.seed, int(index))
