"""Published models and parts: where they lie, what they need, and the way to weights of ours.

Files come from the Hugging Face hub, through its own client and into its own cache. Whatever the
hub publishes about a file is verified: its size, and its SHA-256 or git digest. Facts:
docs/showo2.md 0.1, docs/architecture.md 2 and 11.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping
from typing import NamedTuple

import huggingface_hub
import jax
from etils import epath
from huggingface_hub import errors

from tuna_jax import files, sizes
from tuna_jax.config import TunaConfig, UserError, nearest
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.weights import parts, store

_CHUNK = 1 << 24  # bytes read at once

Say = Callable[[str], None]


class Source(NamedTuple):
  """Files of one repository: those that match a pattern. flag: of `tuna-jax convert assemble` for a
  part; of a model '', which `convert import` takes. licence: as its page states it."""

  repo: str
  patterns: tuple[str, ...]
  flag: str = ''
  licence: str = 'Apache-2.0'


class Model(NamedTuple):
  """A published model. pictures: the sides of the squares that it was trained to draw."""

  title: str
  config: TunaConfig
  weights: Source
  vae: Source | None
  tokenizer: Source
  pictures: tuple[int, ...]


class File(NamedTuple):
  """What the hub says about a file. digest: in hexadecimal, SHA-256; git's SHA-1 of small files."""

  name: str
  size: int
  digest: str


class Listing(NamedTuple):
  """The files of a source at one commit."""

  source: Source
  commit: str
  files: tuple[File, ...]

  @property
  def size(self) -> int:
    return sum(file.size for file in self.files)


_TEXT = ('tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt')
_LLM = (*_TEXT, 'config.json', 'model*.safetensors', 'model.safetensors.index.json')

_TOWER = ('config.json', 'model*.safetensors*')

PARTS = {
  'wan2.1-vae': Source('Wan-AI/Wan2.1-T2V-14B', ('Wan2.1_VAE.pth',), 'vae'),
  'wan2.2-vae': Source('Wan-AI/Wan2.2-TI2V-5B', ('Wan2.2_VAE.pth',), 'vae'),
  'qwen2.5-1.5b': Source('Qwen/Qwen2.5-1.5B-Instruct', _LLM, 'decoder'),
  'qwen2.5-7b': Source('Qwen/Qwen2.5-7B-Instruct', _LLM, 'decoder'),
  'siglip2': Source('google/siglip2-so400m-patch16-512', _TOWER, 'vision'),
  'siglip': Source('google/siglip-so400m-patch14-384', _TOWER, 'vision'),
  'dinov3': Source('facebook/dinov3-vith16plus-pretrain-lvd1689m', _TOWER, 'vision', 'DINOv3'),
  'showo2-semantic-layers': Source(
    'Sierkinhane/pre-distilled_semantic_layers', ('*.pt',), 'vision', 'not stated'
  ),
}


def _showo2(name: str, size: str, pictures=(432,)) -> Model:
  source = Source(f'showlab/show-o2-{name}', ('config.json', 'pytorch_model*.bin*'))
  tokenizer = PARTS['qwen2.5-7b' if size.endswith('7b') else 'qwen2.5-1.5b']
  text = tokenizer._replace(patterns=_TEXT)
  return Model(f'Show-o2 {name}', sizes.size(size), source, PARTS['wan2.1-vae'], text, pictures)


MODELS: Mapping[str, Model] = {
  'showo2-1.5b': _showo2('1.5B', 'showo2-1.5b'),
  'showo2-1.5b-hq': _showo2('1.5B-HQ', 'showo2-1.5b', (512, 1024)),
  'showo2-1.5b-video': _showo2('1.5B-w-video-und', 'showo2-1.5b'),
  'showo2-7b': _showo2('7B', 'showo2-7b'),
  'showo2-7b-video': _showo2('7B-w-video-und', 'showo2-7b'),
}
NAMES = (*MODELS, *PARTS)


def check(name: str, known=NAMES) -> None:
  """Raises UserError with the known names, if it is none of them."""
  if name not in known:
    raise UserError(
      f'{name!r} is not published as a model or part{nearest(name, known)}; '
      f'expected one of {", ".join(known)}'
    )


def table() -> str:
  """One line for every model and part: its name, repositories and licence."""
  rows = [(name, model.weights, model.title) for name, model in MODELS.items()]
  rows += [(name, source, '') for name, source in PARTS.items()]
  lines = (f'{name:24}{source.repo:44}{source.licence:12}{title}' for name, source, title in rows)
  return '\n'.join(line.rstrip() for line in lines)


def folder(name: str) -> epath.Path:
  """Where the converted model lies: under $TUNA_JAX_CACHE, or ~/.cache/tuna_jax."""
  return files.cache() / name


def check_fetched(path: str) -> None:
  """Raises UserError where `path` is no path but a repository, or a part, that `tuna-jax get` knows
  by a name."""
  if files.path(path).exists():
    return
  repos = {source.repo: name for name, source in PARTS.items()}
  repos |= {model.weights.repo: name for name, model in MODELS.items()}
  if name := repos.get(path) or (path if path in PARTS else ''):
    says = ', and prints the folder' if name in PARTS else f'; it is called {name!r} here'
    raise UserError(f'{path}: no such file or folder; `tuna-jax get {name}` downloads it{says}')


def locate(checkpoint: str | os.PathLike) -> epath.Path:
  """The path, or where the model of that name was written. Raises UserError if it was not yet."""
  path = files.path(checkpoint)
  if path.exists():
    return path
  check_fetched(str(checkpoint))
  if str(checkpoint) not in MODELS:
    if os.sep not in str(checkpoint) and not files.is_remote(path):
      near = nearest(str(checkpoint), MODELS)
      raise UserError(f'{checkpoint}: no such folder, and no model that is published{near}')
    return path
  if not store.is_stored(folder(str(checkpoint))):
    raise UserError(
      f'{checkpoint}: not in {folder(str(checkpoint))} yet; `tuna-jax get {checkpoint}` fetches it'
    )
  return folder(str(checkpoint))


def sources(model: Model) -> list[Source]:
  """What is downloaded for a model."""
  return [source for source in (model.weights, model.vae, model.tokenizer) if source]


def converted_bytes(config: TunaConfig) -> int:
  """Bytes of a model and its VAE in float32: on disk once converted, and in memory to draw."""
  shapes = jax.tree.leaves((tuna_shapes(config), config.vae and vae_shapes(config.vae)))
  return sum(4 * math.prod(leaf.shape) for leaf in shapes)


def gigabytes(count: int) -> str:
  return f'{count / 1e9:.2f} GB'


# ---- the hub


def look_up(hub: huggingface_hub.HfApi, source: Source) -> Listing:
  """Asks the hub which files there are. Raises UserError saying what to do where it does not
  answer, or where a pattern matches nothing."""
  try:
    info = hub.model_info(source.repo, files_metadata=True)
  except (errors.HTTPError, OSError) as error:
    raise UserError(unreachable(hub, source, error)) from error
  found = []
  for file in info.siblings:
    if any(fnmatch.fnmatchcase(file.rfilename, pattern) for pattern in source.patterns):
      digest = file.lfs.sha256 if file.lfs else file.blob_id
      found.append(File(file.rfilename, file.size, digest))
  if not found:
    raise UserError(f'{source.repo}: holds none of {", ".join(source.patterns)} any more')
  return Listing(source, info.sha, tuple(found))


def fetch(hub: huggingface_hub.HfApi, listing: Listing, cache=None) -> epath.Path:
  """Downloads what the cache lacks, verifies every file, and returns their folder.

  A lost connection continues where it broke off; a file that was complete stays for the next run,
  and what a killed one left of another is removed once that is there. Raises UserError for a
  damaged file, which is removed.
  """
  source, where = listing.source, None
  for file in listing.files:
    try:
      where = hub.hf_hub_download(
        source.repo, file.name, revision=listing.commit, cache_dir=cache and os.fspath(cache)
      )
    except (errors.HTTPError, OSError) as error:
      raise UserError(unreachable(hub, source, error)) from error
    stored = epath.Path(os.path.realpath(where))
    for partial in stored.parent.glob(f'{stored.name}.*.incomplete'):
      partial.unlink(missing_ok=True)
    found = digest(where, len(file.digest))
    if found != file.digest:
      for path in {os.fspath(where), os.fspath(stored)}:  # the cache links where it can
        os.unlink(path)
      raise UserError(
        f'{source.repo}/{file.name}: the file that arrived is damaged: its digest is {found}, '
        f'and {file.digest} is published. It was removed; run the command again'
      )
  # A file may lie in a folder of the repository, so the folder of files is counted from the name.
  return epath.Path(where).parents[len(epath.Path(listing.files[-1].name).parts) - 1]


def digest(path: str | os.PathLike, length: int) -> str:
  """SHA-256 of a file or, where `length` is 40 digits, the SHA-1 by which git names it."""
  if length == 40:
    value = hashlib.sha1(b'blob %d\0' % os.path.getsize(path))
  else:
    value = hashlib.sha256()
  with open(path, 'rb') as file:
    while chunk := file.read(_CHUNK):
      value.update(chunk)
  return value.hexdigest()


def unreachable(hub: huggingface_hub.HfApi, source: Source, error: Exception) -> str:
  """What happened, and what to do about it."""
  said = (str(error).strip().splitlines() or [type(error).__name__])[0]
  takes = f'assemble --{source.flag}'
  if not source.flag:
    takes = 'import --source=showo2 --vae=Wan2.1_VAE.pth --input'
  return (
    f'{source.repo}: {hub.endpoint} did not give its files ({said}). Set HF_ENDPOINT to a mirror, '
    f'or download {", ".join(source.patterns)} of {hub.endpoint}/{source.repo} in any other way '
    f'into a folder, and `tuna-jax convert {takes}=FOLDER` takes it, or run the same command on '
    f'a machine that reaches the hub and copy a model, {folder("NAME")}, to the same place here'
  )


# ---- from nothing to weights


def needs(model: Model, listings: list[Listing], output) -> list[str]:
  """Lines that say what a model takes. Raises UserError if the disk is too small."""
  ours, there = converted_bytes(model.config), sum(listing.size for listing in listings)
  side = ' or '.join(f'{n}x{n}' for n in model.pictures)
  lines = [f'{model.title}: draws {side}, {gigabytes(ours)} in float32']
  lines += [
    f'  {entry.source.repo}  {len(entry.files)} files, {gigabytes(entry.size)}, '
    f'licence {entry.source.licence}'
    for entry in listings
  ]
  lines.append(f'disk: {gigabytes(there)} of downloads, {gigabytes(ours)} converted in {output}')
  lines.append(
    f'memory: {gigabytes(ours)} for the parameters, half of it with --dtype=bfloat16, and what the '
    'pictures take'
  )
  return lines


def check_disk(where: str | os.PathLike, size: int) -> None:
  """Raises UserError if the disk that holds the path has less room than `size` bytes."""
  path = files.absolute(where)
  while not path.exists():
    path = path.parent
  free = shutil.disk_usage(path).free
  if free < size:
    raise UserError(f'{path}: {gigabytes(free)} are free and {gigabytes(size)} are needed')


def obtain(
  hub: huggingface_hub.HfApi, model: Model, output, say: Say = print, *, cache=None, dry_run=False
) -> None:
  """Downloads a model and writes it to `output` as weights of ours, unless they are there already.

  What it needs is said first; a dry run ends after that.
  """
  if store.is_stored(output):
    say(f'{model.title}: already in {output}')
    return
  listings = [look_up(hub, source) for source in sources(model)]
  for line in needs(model, listings, output):
    say(line)
  if dry_run:
    return
  check_disk(output, converted_bytes(model.config))
  weights, *vae, words = (fetch(hub, listing, cache) for listing in listings)
  say('verified; converting')
  planned = parts.official(model.config, weights)
  autoencoder = parts.read_vae(model.config, vae[0] / listings[1].files[0].name) if vae else None
  notes = {
    'sources': {entry.source.repo: entry.commit for entry in listings},
    **planned.notes(),
    'pictures': list(model.pictures),
  }
  store.write(
    output,
    model.config,
    planned.leaves,
    autoencoder and autoencoder.leaves,
    notes,
    store.tokenizer_files(words),
  )
  say(f'wrote {output}')
