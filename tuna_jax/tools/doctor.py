"""What this installation and machine can do, with one line of advice for each problem."""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import io
import os
import pathlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data import media
from tuna_jax.weights import published, store

# (Python, jax, libtpu) that pip resolves to, and where the tests run with them; docs/tpu.md 6.
TESTED = (
  ('3.11', '0.10.2', '0.0.42', 'each change, on a CPU; libtpu compiles for TPUs'),
  ('3.12', '0.12.0', '0.0.50', 'the workflow .github/workflows/ci.yml, on a CPU'),
  ('3.13', '0.12.0', '0.0.50', 'the workflow .github/workflows/ci.yml, on a CPU'),
)
PACKAGES = ('tuna_jax', 'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'grain')
SAMPLE = 48  # pictures that the loader's rate is measured on
SLOW = 20.0  # pictures of 512 per second and processor core; fewer hold a chip up
SPACE = 20  # GB of free disk


class Finding(NamedTuple):
  """One line: what was looked at, what was found, and what to do if it is a problem."""

  what: str
  found: str
  advice: str = ''

  def __str__(self):
    return f'{self.what:<14}{self.found}' + (f'\n{"":<12}! {self.advice}' if self.advice else '')


def examine(checkpoint: str = '') -> Iterator[Finding]:
  """Everything, in the order in which it is cheap to find out. checkpoint: a run or weights that
  are looked at as well."""
  checks: list[Callable[[], Finding]] = [versions, devices, memory, cache, disk, models, loader]
  for check in checks:
    yield check()
  if checkpoint:
    yield from parts_of(checkpoint)


def versions() -> Finding:
  """Of the packages that must fit each other, against TESTED."""
  found = {name: _version(name) for name in PACKAGES}
  said = ', '.join(f'{name} {version or "none"}' for name, version in found.items())
  python = '.'.join(platform.python_version_tuple()[:2])
  row = next((row for row in TESTED if row[0] == python), None)
  advice = ''
  if row is None:
    advice = f'Python {python} is not tested: use one of {", ".join(row[0] for row in TESTED)}'
  elif not found['jax'].startswith(row[1]):
    advice = f'jax {row[1]} is what was tested with Python {python}: pip install jax=={row[1]}'
  elif found['libtpu'] and not found['libtpu'].startswith(row[2]):
    advice = f'libtpu {row[2]} belongs to jax {row[1]}: pip install "jax[tpu]=={row[1]}"'
  elif found['jaxlib'].split('.')[:2] != found['jax'].split('.')[:2]:
    advice = f'jaxlib is of another release than jax: pip install jaxlib=={found["jax"]}'
  return Finding('versions', f'Python {platform.python_version()}, {said}', advice)


def devices() -> Finding:
  """What jax computes on, and whether an accelerator is left unused."""
  try:
    there = jax.devices()
  except RuntimeError as error:
    reason = str(error).partition('\n')[0]
    return Finding('devices', 'none', f'jax does not start ({reason}); JAX_PLATFORMS=cpu does')
  kinds = ', '.join(sorted({d.device_kind for d in there}))
  advice = ''
  if there[0].platform == 'cpu':
    if list(pathlib.Path('/dev').glob('accel*')) or list(pathlib.Path('/dev').glob('vfio/[0-9]*')):
      advice = "a TPU is here, and jax does not use it: pip install 'tuna_jax[tpu]'"
    elif pathlib.Path('/dev/nvidia0').exists():
      advice = "a GPU is here, and jax does not use it: pip install 'tuna_jax[gpu]'"
    if advice and os.environ.get('JAX_PLATFORMS'):
      advice = f'JAX_PLATFORMS={os.environ["JAX_PLATFORMS"]} hides an accelerator: unset it'
  return Finding('devices', f'{len(there)} x {kinds}', advice)


def memory() -> Finding:
  """Of one device, or of the host where jax computes on its processor; and what it holds."""
  stats = jax.local_devices()[0].memory_stats() or {}
  size = stats.get('bytes_limit') or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  where = 'per device' if 'bytes_limit' in stats else 'of the host'
  advice = '' if size >= 7.5e9 else 'under 8 GB: 2B does not fit even in int8; use --size=tiny'
  return Finding('memory', f'{size / 1e9:.1f} GB {where}', advice)


def cache() -> Finding:
  """Where compiled programs are kept from one process to the next."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder:
    set_it = 'export JAX_COMPILATION_CACHE_DIR=~/.cache/tuna_jax/xla, so that programs compile once'
    return Finding('compile cache', 'none', set_it)
  there = pathlib.Path(folder)
  count = len(list(there.iterdir())) if there.is_dir() else 0
  return Finding('compile cache', f'{folder}: {count} files')


def disk() -> Finding:
  """Free space where runs are written."""
  free = shutil.disk_usage('.').free / 1e9
  advice = (
    '' if free > SPACE else f'under {SPACE} GB are free: a checkpoint of 2B with Adam is 53 GB'
  )
  return Finding('disk', f'{free:.0f} GB free in {os.getcwd()}', advice)


def models() -> Finding:
  """Published models that were fetched."""
  there = [name for name in published.MODELS if store.is_stored(published.folder(name))]
  if there:
    return Finding('models', ', '.join(there))
  return Finding('models', 'none fetched', '`tuna-jax get` lists those that are published')


def loader() -> Finding:
  """How fast this machine reads pictures: JPEG files of 768 x 768 to the class of 512."""
  rng, file = np.random.default_rng(0), io.BytesIO()
  Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).resize((768, 768)).save(file, 'JPEG')
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  read = lambda _: media.read_image(file.getvalue(), '512')
  with concurrent.futures.ThreadPoolExecutor(cores) as pool:
    read(0)
    began = time.perf_counter()
    list(pool.map(read, range(SAMPLE)))
  rate = SAMPLE / (time.perf_counter() - began)
  advice = ''
  if rate < SLOW * cores:
    advice = f'under {SLOW:.0f} per core: `tuna-jax data encode` makes latents before training'
  return Finding('loader', f'{rate:.0f} pictures of 512 per second on {cores} cores', advice)


def parts_of(checkpoint: str) -> Iterator[Finding]:
  """The model, tokenizer and VAE of a run or weights."""
  try:
    root = published.locate(checkpoint)
    stored = store.open_stored(root)
  except UserError as error:
    yield Finding('checkpoint', checkpoint, str(error))
    return
  numbers = sum(leaf.nbytes for leaf in (stored.params or {}).values()) / 1e9
  design = stored.config.design if stored.config else 'a VAE alone'
  yield Finding('checkpoint', f'{root}: {design}, {numbers:.2f} GB')
  vae = store.located(stored.run['vae'], root) if stored.run else root / 'vae'
  if stored.config and stored.config.vae:
    there = store.is_stored(vae)
    yield Finding('VAE', str(vae), '' if there else 'not there: --vae=DIR says where it is')
  words = root / 'tokenizer' if stored.run else root
  there = bool(store.tokenizer_files(words))
  yield Finding('tokenizer', str(words), '' if there else 'not there: --tokenizer=DIR says where')


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''
