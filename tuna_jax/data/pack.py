"""A mixture of any sources becomes ArrayRecord shards with media inside, and a mixture of those.

A shard is the records [start, stop) of one row, so shards are made in any order, by any process or
machine; one that is there is not made again. Bad records are left out, and named in a text file
beside their shard.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax import files, stopping
from tuna_jax.config import UserError, nearest
from tuna_jax.data import arrayrecord, clips
from tuna_jax.data.limits import Limits, locate, read
from tuna_jax.data.media import MediaConfig, read_image
from tuna_jax.data.records import PICTURES, BadRecord, guard, load, texts_of
from tuna_jax.data.sources import open_source, read_mixture
from tuna_jax.data.tasks import TASKS

FORMATS = ('jpeg', 'webp', 'png')
SETTINGS, MIXTURE = 'pack.json', 'mixture.json'  # beside the shards
_SKIPPED = '.skipped.txt'


@dataclasses.dataclass(frozen=True)
class PackConfig:
  """What is packed, and how.

  shard_records: records per shard. limit: only so many records of each row; 0 takes all. verify:
  every picture and clip is decoded as `media` asks, and those that cannot be are bad records;
  otherwise only fields, texts and files are checked. encode: pictures are written in one of
  FORMATS, at `quality`, their shorter side brought to at most `side`; '' keeps their bytes.
  """

  shard_records: int = 4096
  limit: int = 0
  verify: bool = True
  encode: str = ''
  quality: int = 90
  side: int = 0

  def __post_init__(self):
    if self.encode and self.encode not in FORMATS:
      known = f'expected one of {", ".join(FORMATS)}{nearest(self.encode, FORMATS)}'
      raise UserError(f'encode={self.encode!r}: {known}')
    if self.side and not self.encode:
      raise UserError(f'side={self.side}: smaller pictures are encoded again; say how with encode')
    if self.shard_records < 1:
      raise UserError(f'shard_records={self.shard_records}: expected at least 1')


@dataclasses.dataclass(frozen=True)
class Shard:
  """One shard to make: the records [start, stop) of row `row` of `mixture`, written to `path`."""

  mixture: str
  row: int
  start: int
  stop: int
  path: str
  config: PackConfig
  media: MediaConfig


@dataclasses.dataclass(frozen=True)
class Packed:
  """What came out. rows: (name, records written) by row. skipped: why each bad record was left out,
  by row. path: the new mixture file.
  """

  path: str
  rows: list[tuple[str, int]]
  skipped: list[list[str]]


def plan(mixture: str, out: str, config: PackConfig, media: MediaConfig) -> list[Shard]:
  """The shards of a mixture, those that are there included. Raises UserError where `out` holds
  shards of other records or settings.
  """
  rows, shards, sizes = read_mixture(mixture), [], []
  for row in rows:
    count = len(open_source(row, media))
    sizes.append(min(count, config.limit) if config.limit else count)
  settings = {
    'mixture': [{'path': row.path, 'task': row.task, 'records': n} for row, n in zip(rows, sizes)],
    **dataclasses.asdict(config),
    'media': {k: v for k, v in dataclasses.asdict(media).items() if k != 'processes'},
  }
  where = files.path(out) / SETTINGS
  if where.exists():
    before = files.read_object(where)
    changed = sorted(key for key in settings if before.get(key) != settings[key])
    if changed:
      found = f'{", ".join(changed)}: found {[before.get(k) for k in changed]!r:.300}'
      raise UserError(f'{out} holds shards packed with other settings ({found}); use another --out')
  files.path(out).mkdir(parents=True, exist_ok=True)
  files.write_json(where, settings)
  for number, (row, size) in enumerate(zip(rows, sizes)):
    count = -(-size // config.shard_records)
    for k in range(count):
      path = str(files.path(out) / f'{_stem(number, row)}-{k:05d}-of-{count:05d}')
      start = k * config.shard_records
      stop = min(size, start + config.shard_records)
      path += arrayrecord.ENDING
      shards.append(Shard(str(mixture), number, start, stop, path, config, media))
  return shards


def make(shard: Shard) -> int:
  """Writes a shard, unless it is there, and returns for how many records it stands."""
  if files.path(shard.path).exists():
    return shard.stop - shard.start
  source, skipped = _source(shard.mixture, shard.row, shard.media), []
  with arrayrecord.writing(shard.path) as add:
    for index in range(shard.start, shard.stop):
      try:
        with guard(source, index):
          add(_packed(source, index, shard))
      except BadRecord as e:
        skipped.append(str(e))
    if skipped:
      files.write_text(shard.path + _SKIPPED, '\n'.join(skipped) + '\n')
  return shard.stop - shard.start


def make_all(shards: Sequence[Shard], processes: int, say: Callable[[str], None]) -> Iterator[int]:
  """Makes shards in several processes and yields what `make` returns, in any order. If a decoder
  crashes its process, the others are made with decoding in processes of their own.
  """
  todo = dict.fromkeys(shards)
  isolated = False
  # Who is stopped leaves at once, and the tracker need not tell that it cleans up.
  sys.warnoptions.append('ignore:resource_tracker')
  while todo:
    spawned = multiprocessing.get_context('spawn')
    try:
      with concurrent.futures.ProcessPoolExecutor(
        processes, spawned, initializer=stopping.as_worker
      ) as pool:
        try:
          futures = {pool.submit(_work, _isolated(s) if isolated else s): s for s in todo}
          for future in concurrent.futures.as_completed(futures):
            done = future.result()
            del todo[futures[future]]
            yield done
        except BaseException:
          pool.shutdown(wait=False, cancel_futures=True)
          for child in multiprocessing.active_children():
            child.terminate()
          raise
    except BrokenProcessPool as e:
      if isolated:
        raise UserError(f'a process ended without saying why ({e}): is there enough memory?') from e
      isolated = True
      say(
        'a process was ended by a record or for its memory: each record is decoded apart from now'
      )


def _work(shard: Shard) -> int:
  """The same as `make`, in a process of a pool, which would take its end for a result."""
  try:
    return make(shard)
  except SystemExit as ended:
    os._exit(ended.code)


def make_with_beam(shards: Sequence[Shard], options: Sequence[str]) -> None:
  """Makes shards as an Apache Beam pipeline. options: of Beam, such as '--runner=DataflowRunner'.
  All paths must be readable and writable where it runs.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as e:
    raise UserError("--beam needs apache-beam: pip install 'tuna_jax[beam]'") from e
  with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
    made = pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.Map(make)
    made | beam.CombineGlobally(sum)  # so that a shard that cannot be written fails the pipeline


def finish(mixture: str, out: str, shards: Sequence[Shard]) -> Packed:
  """Writes the mixture of the shards, which are all there, and their counts."""
  folder, rows = files.path(out), read_mixture(mixture)
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    sizes = pool.map(lambda s: len(arrayrecord.open_files([s.path], counted=False)), shards)
    counts = {os.path.basename(s.path): n for s, n in zip(shards, sizes)}
  files.write_json(folder / arrayrecord.COUNTS, counts)
  packed, skipped, made = [], [], []
  for number, row in enumerate(rows):
    own = [shard for shard in shards if shard.row == number]
    notes = [files.path(shard.path + _SKIPPED) for shard in own]
    skipped.append([line for n in notes if n.exists() for line in n.read_text().splitlines()])
    made.append((row.path, sum(counts[os.path.basename(shard.path)] for shard in own)))
    if made[-1][1]:
      path = f'{_stem(number, row)}-*{arrayrecord.ENDING}'
      packed.append({'path': path, 'task': row.task, 'weight': row.weight})
  if not packed:
    raise UserError(f'{mixture}: no record can be used; the first: {skipped[0][0]}')
  files.write_json(folder / MIXTURE, packed)
  return Packed(str(folder / MIXTURE), made, skipped)


def _stem(number: int, row) -> str:
  return f'{number:02d}-{row.task}'


def _isolated(shard: Shard) -> Shard:
  config = dataclasses.replace(shard.config, verify=True)
  return dataclasses.replace(
    shard, config=config, media=dataclasses.replace(shard.media, processes=1)
  )


@functools.cache
def _source(mixture: str, row: int, media: MediaConfig):
  return open_source(read_mixture(mixture)[row], media)


# ---- one record


def _packed(source, index: int, shard: Shard) -> dict[str, Any]:
  """A record whose media are bytes. Raises whatever is wrong with it."""
  stored, task, config = source.raw(index), source.task, shard.config
  record = dict(stored)
  limits = shard.media.limits
  for _ in texts_of(record, task, limits):
    pass
  for field, kind in TASKS[task].fields.items():
    if kind in (*PICTURES, 'clip'):
      record[field] = _bytes(record[field], kind, source.root, limits)
  if config.verify:
    try:
      load(record, task, source.root, shard.media)
    except UserError:
      load(stored, task, source.root, shard.media)  # which names the file
      raise
  if config.encode:
    for field, kind in TASKS[task].fields.items():
      if kind in PICTURES:
        value = record[field]
        encode = functools.partial(_encoded, config=config, limits=limits)
        record[field] = [encode(v) for v in value] if isinstance(value, list) else encode(value)
  return record


def _bytes(value, kind: str, root: str, limits: Limits):
  """Pictures and clips as encoded bytes, several as a list."""
  if isinstance(value, np.ndarray):
    clip = value.ndim == 4
    return [_save(frame, 'png') for frame in value] if clip else _save(value, 'png')
  if isinstance(value, (list, tuple)):
    return [_bytes(one, 'picture', root, limits) for one in value]
  if isinstance(value, bytes):
    return read(value, limits)
  path = locate(value, root)
  if kind == 'clip' and clips.is_folder(path):
    return [read(frame, limits) for frame in clips.frames_of(path, root)]
  return read(path, limits)


def _encoded(data: bytes, config: PackConfig, limits: Limits) -> bytes:
  def size(height, width):
    scale = min(1.0, config.side / min(height, width)) if config.side else 1.0
    return max(1, round(height * scale)), max(1, round(width * scale))

  return _save(read_image(data, '512', size, limits), config.encode, config.quality)


def _save(picture: np.ndarray, form: str, quality: int = 90) -> bytes:
  file = io.BytesIO()
  options = {} if form == 'png' else {'quality': quality}
  Image.fromarray(picture.squeeze()).save(file, form.upper(), **options)
  return file.getvalue()
