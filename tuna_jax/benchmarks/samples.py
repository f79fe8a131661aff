"""`write`: draws what a benchmark's scorer reads, file by file; a killed run goes on where it was.

    OUT/samples/         the tree for the scorer (layouts.py), nothing else in it
    OUT/manifest.json    digests of prompts and weights, and every setting
    OUT/partial/         what each shard is writing; a finished file is renamed into the tree

Seeds belong to the files, so the pictures do not depend on batches, hosts or interruptions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from tuna_jax import files
from tuna_jax.benchmarks.answers import whole
from tuna_jax.benchmarks.layouts import BENCHMARKS, Sample, Seeds, digest, missing, png
from tuna_jax.config import UserError
from tuna_jax.data import media
from tuna_jax.data.pictures import open_picture
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.output import Picture
from tuna_jax.tree import name_of

VERSIONS = 'begun_with'  # recorded in the manifest, and may change between runs


@dataclasses.dataclass(frozen=True)
class Request:
  """What to write. prompts: the user's copy of the benchmark's prompts, a file or for DPG a folder.

  sources: folder of the pictures to edit, by default that of the prompts. model: MODEL in the
  layout. samples: per prompt, None for the official number. size: of pictures or clips, None for
  the generator's own; of edits 'own' keeps each source's size. shard: (number, of how many) this
  process writes. settings: further arguments of `Generator.image`, `edit` or `video`.
  """

  benchmark: str
  prompts: str
  out: str
  sources: str = ''
  model: str = 'tuna'
  samples: int | None = None
  seeds: Seeds = dataclasses.field(default_factory=Seeds)
  size: str | None = None
  shard: tuple[int, int] = (0, 1)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    number, count = self.shard
    if not 0 <= number < count:
      raise UserError(f'shard {number} of {count}: expected 0 to {count - 1}')
    if '/' in self.model or not self.model:
      raise UserError(f'model {self.model!r}: expected the name of one folder')


def write(
  generator: Generator,
  request: Request,
  say: Callable[[str], None] = print,
  wait: Callable[[], None] = lambda: None,
) -> list[Sample]:
  """Writes this shard's files that are not there yet. Returns what all shards together still lack.

  wait: called when this shard is done; returns when the others are, if it can tell.
  Raises UserError where OUT was begun with other prompts, weights or settings.
  """
  out = files.absolute(request.out)
  whole = BENCHMARKS[request.benchmark].samples(
    request.prompts, request.seeds, request.samples, request.model, request.sources
  )
  _check_names(whole)
  _agree(out / 'manifest.json', _manifest(generator, request, len(whole)))
  number, count = request.shard
  tree, partial = out / 'samples', out / 'partial' / f'{number}-of-{count}'
  for folder in (tree, partial):
    folder.mkdir(parents=True, exist_ok=True)
  left = missing(whole[number::count], tree)
  say(f'{request.benchmark}: {len(left)} of {len(whole[number::count])} files to write in {tree}')
  done = 0
  for batch in _batches(generator, request, left):
    for sample, data in zip(batch, _draw(generator, request, batch)):
      for path, content in sample.also.items():
        if not (tree / path).exists():
          _put(content(), tree / path, partial)
      _put(data, tree / sample.path, partial)
    done += len(batch)
    say(f'{request.benchmark}: {done} of {len(left)}')
  partial.rmtree()
  wait()
  return missing(whole, tree)


def weights_digest(generator: Generator) -> str:
  """sha256 of names, shapes and values of the parameters, whatever file they came from."""
  out = hashlib.sha256()
  for tree in (generator.params, generator.vae_params):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      out.update(f'{name_of(path)} {leaf.dtype} {leaf.shape}\n'.encode())
      out.update(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8))
  return out.hexdigest()


def _manifest(generator: Generator, request: Request, count: int) -> dict[str, Any]:
  """Everything that decides the pixels, and the versions that it was begun with."""
  found = {
    'benchmark': request.benchmark,
    'prompts_sha256': digest(request.prompts),
    'weights_sha256': weights_digest(generator),
    'files': count,
    'model': request.model,
    'samples': request.samples,
    'seeds': request.seeds,
    'size': request.size,
    'media': generator.media,
    'settings': dict(request.settings),
    VERSIONS: {'tuna_jax': importlib.metadata.version('tuna_jax'), 'jax': jax.__version__},
  }
  return json.loads(json.dumps(found, default=dataclasses.asdict))


def _agree(path: epath.Path, wanted: Mapping[str, Any]):
  """Writes the manifest, or holds it to the one that is there."""
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, wanted)
    return
  found = files.read_object(path)
  for name, value in wanted.items():
    if name != VERSIONS and found.get(name) != value:
      raise UserError(
        f'{path}: was begun with {name}={found.get(name)}, now it is {value}; '
        'choose another --out, or repeat the settings of the first run'
      )


def _check_names(samples: Sequence[Sample]):
  seen: set[str] = set()
  for sample in samples:
    if sample.path in seen:
      raise UserError(f'{sample.path}: two prompts have this name')
    seen.add(sample.path)


def _batches(generator: Generator, request: Request, samples: Sequence[Sample]):
  """Lists of samples that are drawn at once: of equal shape, together about a batch."""
  groups: dict[Any, list[Sample]] = {}
  for sample in samples:
    groups.setdefault(_shape(generator, request, sample), []).append(sample)
  for group in groups.values():
    step = max(1, generator.batch_size // len(group[0].seeds))
    yield from (group[at : at + step] for at in range(0, len(group), step))


def _shape(generator: Generator, request: Request, sample: Sample):
  """What the shape of a result follows from, beside the size that all share."""
  if not sample.source:
    return None
  picture = open_picture(sample.source)
  if request.size == 'own':
    return picture.height, picture.width
  sizes = media.buckets(request.size or generator.media.image_size)
  return media.choose_bucket(picture.height, picture.width, sizes)


def _draw(generator: Generator, request: Request, batch: Sequence[Sample]) -> list[bytes]:
  """The content of each file."""
  kind = BENCHMARKS[request.benchmark].kind
  prompts = [sample.prompt for sample in batch for _ in sample.seeds]
  how = {'seed': [seed for s in batch for seed in s.seeds], **request.settings}
  if kind == 'video':
    clips = generator.video(prompts, size=request.size, **how)
    return [_saved(clip) for clip in clips]
  if kind == 'edit':
    size = None if request.size == 'own' else request.size or generator.media.image_size
    pictures = generator.edit([[s.source] for s in batch], prompts, size=size, **how)
    return [_edited(s, p) for s, p in zip(batch, pictures)]
  pictures = iter(generator.image(prompts, size=request.size, **how))
  return [_picture(s, [next(pictures) for _ in s.seeds]) for s in batch]


def _picture(sample: Sample, parts: Sequence[Picture]) -> bytes:
  if len(parts) == 1:
    return _saved(parts[0])
  upper, lower = (np.concatenate([p.pixels for p in parts[i : i + 2]], axis=1) for i in (0, 2))
  grid = np.concatenate([upper, lower], axis=0)
  if sample.path.endswith('.webp'):
    file = io.BytesIO()
    Image.fromarray(grid).save(file, 'WEBP', lossless=True)
    return file.getvalue()
  return _saved(Picture(grid, {**parts[0].info, 'seed': list(sample.seeds)}))


def _edited(sample: Sample, result: Picture) -> bytes:
  if not sample.fitted:
    return _saved(result)
  height, width, _ = whole(sample.source).shape
  return png(result.pil().resize((width, height), Image.Resampling.BICUBIC))


def _saved(result) -> bytes:
  """A picture or clip as the bytes of its file."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'x.png' if isinstance(result, Picture) else 'x.mp4')
    result.save(path)
    return path.read_bytes()


def _put(data: bytes, target: epath.Path, partial: epath.Path):
  """The file appears whole or not at all, and nothing else ever lies beside it."""
  target.parent.mkdir(parents=True, exist_ok=True)
  if files.is_remote(target):
    target.write_bytes(data)
    return
  part = partial / hashlib.sha256(str(target).encode()).hexdigest()[:32]
  files.write_bytes(part, data)
  os.replace(part, target)
