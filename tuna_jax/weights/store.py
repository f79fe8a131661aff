"""Weights directories: what conversions write, `train` starts from and `export` reads.

    OUTPUT/config.json        kind 'tuna', the TunaConfig, and notes: sources; what is fresh, dropped, adapted, and why
    OUTPUT/params/            the trainable model: {leaf name: float32} in safetensors, layers stacked
    OUTPUT/vae/               the frozen VAE, likewise: config.json of kind 'vae', and params/
    OUTPUT/tokenizer*.json    the decoder's tokenizer files, if they were there

It is written as a stream under another name and renamed when complete: no reader ever sees half of
it. Directories and runs whose parameters `train` saved (orbax) are read too, slice by slice like
the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping

import numpy as np
import tensorstore
from etils import epath

from tuna_jax import tree
from tuna_jax.config import TunaConfig, VaeConfig, from_dict, nearest, to_dict
from tuna_jax.weights import safetensors
from tuna_jax.weights.convert import place
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import CheckpointError, Lazy, raise_faults

TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.json',
  'merges.txt',
  'qwen.tiktoken',
)
ORBAX_CACHE = 1 << 30  # bytes of decoded chunks kept: a layer is a slice of a chunk


@dataclasses.dataclass(frozen=True)
class Stored:
  """An opened directory; what it does not hold is None."""

  config: TunaConfig | None
  params: dict[str, Lazy] | None
  vae_config: VaeConfig | None
  vae: dict[str, Lazy] | None
  notes: dict


@contextlib.contextmanager
def new_folder(path):
  """Yields an empty folder that becomes `path` if the block ends well, and vanishes if it does not."""
  path = epath.Path(path)
  if path.exists():
    raise CheckpointError(f'{path}: exists already; choose another --output or remove it')
  working = path.parent / f'.{path.name}.{os.getpid()}.tmp'
  working.mkdir(parents=True)
  try:
    yield working
    working.rename(path)
  except BaseException:
    working.rmtree(missing_ok=True)
    raise


def write(
  path,
  config: TunaConfig,
  params: Mapping[str, Lazy],
  vae: Mapping[str, Lazy] | None,
  notes: dict,
  files=(),
):
  """Writes the directory, all or nothing. `files` are copied beside it."""
  with new_folder(path) as folder:
    _write_kind(folder, 'tuna', config, params, notes)
    if vae is not None:
      _write_kind(folder / 'vae', 'vae', config.vae, vae, {'sources': notes.get('sources', {})})
    for file in files:
      epath.Path(file).copy(folder / epath.Path(file).name)


def is_stored(path) -> bool:
  """Whether `path` is a directory of ours: converted weights, saved weights or a run."""
  path = epath.Path(path)
  return (
    path.is_dir()
    and (path / 'config.json').exists()
    and ((path / 'params').exists() or (path / 'checkpoints').exists())
  )


def open_stored(path, *, step: int | None = None, ema: bool = True) -> Stored:
  """Opens a directory of ours, reading names and shapes only.

  Args:
    path: a weights directory, a VAE's, or a run.
    step: of a run; default the latest.
    ema: take a run's averages where it has them.

  Raises CheckpointError if it is none of these.
  """
  path = epath.Path(path)
  if not is_stored(path):
    raise CheckpointError(
      f'{path}: not a weights directory or run of ours: no config.json with params/ or checkpoints/'
    )
  try:
    found = json.loads((path / 'config.json').read_text())
    kind, config, notes = found['kind'], found['config'], found.get('notes', {})
    if kind == 'vae':
      return Stored(None, None, from_dict(VaeConfig, config), read_params(path / 'params'), notes)
    config = from_dict(TunaConfig, {'tuna': config, 'run': config.get('model')}[kind])
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise CheckpointError(f'{path}/config.json: {type(error).__name__} {error}') from None
  params = (
    read_params(path / 'params') if kind == 'tuna' else _run_params(path / 'checkpoints', step, ema)
  )
  if not (path / 'vae').exists():
    return Stored(config, params, None, None, notes)
  vae = open_stored(path / 'vae')
  return Stored(config, params, vae.vae_config, vae.vae, notes)


def read_params(folder) -> dict[str, Lazy]:
  """{leaf name: Lazy} of a params/ folder, ours (safetensors) or orbax's."""
  folder = epath.Path(folder)
  if not (folder / '_METADATA').exists():
    return open_checkpoint(folder)
  metadata = json.loads((folder / '_METADATA').read_text())
  driver = 'zarr3' if metadata.get('use_zarr3') else 'zarr'
  base = str(folder) if '://' in str(folder) else f'file://{os.path.abspath(folder)}'
  context = tensorstore.Context({'cache_pool': {'total_bytes_limit': ORBAX_CACHE}})
  leaves = {}
  for entry in metadata['tree_metadata'].values():
    keys = [str(key['key']) for key in entry['key_metadata']]
    array = tensorstore.open(
      {
        'driver': driver,
        'kvstore': {'driver': 'ocdbt', 'base': base, 'path': '.'.join(keys) + '/'},
        'recheck_cached_data': 'open',
      },
      context=context,
      open=True,
      read=True,
    ).result()
    leaves['/'.join(keys)] = Lazy(
      tuple(array.shape),
      np.dtype(array.dtype.numpy_dtype),
      lambda index, array=array: np.asarray(array[index].read().result()),
    )
  return leaves


def load(leaves: Mapping[str, Lazy], abstract_params, shardings=None):
  """The parameters of a stored directory (`Stored.params` or `.vae`) on devices, each reading only
  its own slice.

  Raises CheckpointError listing every missing, unused or misshapen leaf.
  """
  check(leaves, abstract_params)
  return place(leaves, abstract_params, shardings)


def check(leaves: Mapping[str, Lazy], abstract_params):
  """Raises CheckpointError unless `leaves` are exactly those of `abstract_params`, in names and
  shapes.
  """
  wanted = tree.flatten(abstract_params)
  missing = [name for name in wanted if name not in leaves]
  unused = [name for name in leaves if name not in wanted]
  faults = [f'{name}: missing{nearest(name, unused)}' for name in missing]
  faults += [f'{name}: unused{nearest(name, missing)}' for name in unused]
  faults += [
    f'{name}: misshapen: found {list(leaves[name].shape)}, wanted {list(aval.shape)}'
    for name, aval in wanted.items()
    if name in leaves and leaves[name].shape != tuple(aval.shape)
  ]
  raise_faults('stored weights', faults)


def tokenizer_files(folder) -> list[epath.Path]:
  """The tokenizer files in a decoder's folder."""
  folder = epath.Path(folder)
  return [folder / name for name in TOKENIZER_FILES if folder.is_dir() and (folder / name).exists()]


def write_json(path, value):
  """Writes readable JSON with a final newline."""
  epath.Path(path).write_text(json.dumps(value, indent=2) + '\n')


def _write_kind(folder, kind, config, leaves, notes):
  (folder / 'params').mkdir(parents=True)
  write_json(folder / 'config.json', {'kind': kind, 'config': to_dict(config), 'notes': notes})
  safetensors.write_folder(folder / 'params', leaves)


def _run_params(checkpoints, step, ema):
  steps = sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
  if not steps or (step is not None and step not in steps):
    raise CheckpointError(
      f'{checkpoints}: no checkpoint{"" if step is None else f" of step {step}"}; it has {steps}'
    )
  here = checkpoints / str(steps[-1] if step is None else step)
  averages = read_params(here / 'ema') if ema and (here / 'ema').exists() else {}
  return read_params(here / 'params') | averages
