"""Latents made before training: `tuna-jax data encode` writes them, and training then needs no VAE.

    OUT/mixture.json                 a row 'latents:NAME' for each row of the mixture it was made of
    OUT/NAME/about.json              what the latents were made of and by which encoder
    OUT/NAME/00000.array_record      the records of a shard, without unusable ones: texts as they
                                     were, the bits of bfloat16 latents for pictures and clips
    OUT/NAME/counts.json             how many records each shard has, once all are there

A shard is written whole or not at all, so the same command continues, and several hosts share the
shards. Latents do not depend on how a task lays records out, so `TaskConfig` may change; the sizes
of media may not. numpy only.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data import arrayrecord
from tuna_jax.data.latents import Encode, Group, encode_all
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord, named
from tuna_jax.data.sources import Source, SourceConfig
from tuna_jax.data.tasks import TASKS
from tuna_jax.mappings import from_dict

PREFIX, ABOUT = 'latents:', 'about.json'
MEDIA = {'picture': ('image_size',), 'pictures': ('image_size',), 'clip': ('video_size', 'frames')}
_AT_ONCE = 16  # records that are read while others are encoded
_WINDOW = 1 << 28  # bytes of pixels whose groups are formed together


@dataclasses.dataclass(frozen=True)
class About:
  """What a folder of latents was made of: the name and the number of records of the source, the
  settings of `MediaConfig` that its task uses, and the encoder's digest and VaeConfig.
  """

  task: str
  source: str
  records: int
  shard_records: int
  media: dict
  digest: str
  vae: dict

  @property
  def shards(self) -> int:
    """How many shards hold all records."""
    return -(-self.records // self.shard_records)


def settings_of(task: str, media: MediaConfig) -> dict[str, Any]:
  """The settings of media that change the latents of a task."""
  kinds = TASKS[task].fields.values()
  return {name: getattr(media, name) for kind in kinds for name in MEDIA.get(kind, ())}


# ---- reading


class LatentsSource:
  """The records of a folder that `write` made: media are latents float32[T, h, w, C]."""

  def __init__(self, config: SourceConfig, media: MediaConfig):
    """Raises FileNotFoundError, or UserError if the folder is incomplete, of another task or of
    other sizes of media.
    """
    folder = files.path(config.path.removeprefix(PREFIX))
    self.task, self.name, self.root = config.task, config.path, ''
    self.about = read_about(folder)
    if self.about.task != self.task:
      raise UserError(f'{folder}: latents of the task {self.about.task}, the row says {self.task}')
    for name, wanted in settings_of(self.task, media).items():
      if (found := self.about.media[name]) != wanted:
        raise UserError(f'{folder}: made with media.{name}={found!r}, this run has {wanted!r}')
    if not (folder / arrayrecord.COUNTS).exists():
      there = sum((folder / shard(n)).exists() for n in range(self.about.shards))
      raise UserError(
        f'{folder}: {there} of {self.about.shards} shards are complete; the same `tuna-jax data '
        'encode` goes on'
      )
    paths = [str(folder / shard(n)) for n in range(self.about.shards)]
    self._data = arrayrecord.open_files(paths)

  def __len__(self):
    return len(self._data)

  @named
  def __getitem__(self, index):
    return _each(self.raw(index), self.task, _widen)

  @named
  def raw(self, index):
    """The record as stored."""
    return arrayrecord.loads(self._data[int(index)])

  def where(self, index):
    """latents:DIR[INDEX]."""
    return f'{self.name}[{index}]'

  def smallest(self):
    """The first: sizes are not known before records are read."""
    return 0


def read_about(folder) -> About:
  """What `write` says about the folder."""
  where = files.path(folder) / ABOUT
  return from_dict(About, files.read_object(where), str(where))


def shard(number: int) -> str:
  """The name of a shard's file."""
  return f'{number:05}{arrayrecord.ENDING}'


# ---- writing


def write(
  source: Source,
  folder,
  about: About,
  encode: Encode,
  group: Group,
  *,
  host: int = 0,
  hosts: int = 1,
  threads: int = 1,
  say: Callable[[str], None] = print,
) -> None:
  """Writes the shards host, host + hosts, ... of a source that are not there yet.

  Whatever ends it leaves all finished shards and nothing else. Raises UserError if the folder was
  made of anything else.
  """
  folder = files.path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  if (folder / ABOUT).exists():
    found = read_about(folder)
    for field in dataclasses.fields(About):
      was, now = getattr(found, field.name), getattr(about, field.name)
      if was != now:
        raise UserError(
          f'{folder}: was made with {field.name}={was}, now it is {now}; choose another --out'
        )
  else:
    files.write_json(folder / ABOUT, dataclasses.asdict(about))
  for number in range(host, about.shards, hosts):
    if (folder / shard(number)).exists():
      continue
    start = number * about.shard_records
    indices = range(start, min(start + about.shard_records, about.records))
    bad = 0
    with arrayrecord.writing(folder / shard(number)) as add:
      for records in _windows(source, indices, threads, say):
        bad += sum(record is None for record in records)
        for record in _encoded(records, source.task, encode, group):
          add(record)
    say(f'{folder / shard(number)}: {len(indices) - bad} records, {bad} unusable')
  paths = [folder / shard(number) for number in range(about.shards)]
  if all(path.exists() for path in paths):
    counts = {path.name: len(arrayrecord.open_files([str(path)])) for path in paths}
    files.write_json(folder / arrayrecord.COUNTS, counts)


def _windows(source, indices: range, threads: int, say) -> Iterator[list[dict | None]]:
  """The records of `indices`, None for unusable ones, some at a time; the next are being read."""

  def read(index):
    try:
      return source[index]
    except BadRecord as e:
      say(f'left out: {e}')
      return None

  pool = concurrent.futures.ThreadPoolExecutor(threads)
  try:
    starts = list(range(0, len(indices), _AT_ONCE))
    parts = [indices[start : start + _AT_ONCE] for start in starts]
    ahead = [pool.submit(read, index) for index in parts[0]]
    window, held = [], 0
    for following in [*parts[1:], ()]:
      records = [future.result() for future in ahead]
      ahead = [pool.submit(read, index) for index in following]
      window += records
      held += sum(m.nbytes for r in records if r for m in _media(r, source.task))
      if held > _WINDOW or not following:
        yield window
        window, held = [], 0
  finally:
    pool.shutdown(wait=False, cancel_futures=True)  # whoever stops does not wait for what hangs


def _encoded(records, task: str, encode, group) -> Iterator[dict]:
  kept = [record for record in records if record is not None]
  pixels = [m if m.ndim == 4 else m[None] for record in kept for m in _media(record, task)]
  latents = iter(encode_all(pixels, encode, None, group))
  for record in kept:
    yield _each(record, task, lambda _: _narrow(next(latents)))


def _media(record, task) -> list[np.ndarray]:
  found: list[np.ndarray] = []
  _each(record, task, found.append)
  return found


def _each(record, task: str, change) -> dict[str, Any]:
  """The fields of the task, with `change` of each picture and clip."""
  out = {}
  for field, kind in TASKS[task].fields.items():
    value = record[field]
    if kind in MEDIA:
      value = [change(m) for m in value] if isinstance(value, list) else change(value)
    out[field] = value
  return out


def _narrow(latents: np.ndarray) -> np.ndarray:
  """The bits of bfloat16, which .npy files do not know."""
  return latents.astype(ml_dtypes.bfloat16).view(np.uint16)


def _widen(bits: np.ndarray) -> np.ndarray:
  return (bits.astype(np.uint32) << 16).view(np.float32)
