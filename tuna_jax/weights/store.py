"""The checkpoint folder that conversions write and `train` starts from: our names, safetensors, and its own record.

    OUTPUT/config.json        the TunaConfig
    OUTPUT/conversion.json    sources; what is fresh, dropped and adapted, and why
    OUTPUT/params/            the trainable model: {leaf name: float32}, layers stacked
    OUTPUT/vae/               the frozen VAE, if one was given
    OUTPUT/tokenizer*.json    the decoder's tokenizer files, if they were there

It is written as a stream under another name and renamed when complete: no reader ever sees half of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping

from etils import epath

from tuna_jax import tree
from tuna_jax.config import TunaConfig, from_dict, nearest, to_dict
from tuna_jax.weights import safetensors
from tuna_jax.weights.convert import place, raise_faults
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import CheckpointError, Lazy

FORMAT = 'tuna_jax'
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt', 'qwen.tiktoken')


@dataclasses.dataclass(frozen=True)
class Stored:
  """An opened checkpoint folder. `vae` is None where it holds none."""

  config: TunaConfig
  params: dict[str, Lazy]
  vae: dict[str, Lazy] | None
  record: dict


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


def write(path, config: TunaConfig, params: Mapping[str, Lazy], vae: Mapping[str, Lazy] | None, record: dict, files=()):
  """Writes the folder, all or nothing. `files` are copied beside it."""
  with new_folder(path) as folder:
    write_json(folder / 'config.json', {'format': FORMAT, 'version': 1, 'model': to_dict(config)})
    write_json(folder / 'conversion.json', record)
    for file in files:
      epath.Path(file).copy(folder / epath.Path(file).name)
    (folder / 'params').mkdir()
    safetensors.write_folder(folder / 'params', params)
    if vae is not None:
      (folder / 'vae').mkdir()
      safetensors.write_folder(folder / 'vae', vae)


def is_stored(path) -> bool:
  """Whether `path` is a folder that `write` wrote."""
  path = epath.Path(path)
  return (path / 'params').is_dir() and (path / 'config.json').exists()


def open_stored(path) -> Stored:
  """Opens a folder that `write` wrote, reading headers only. Raises CheckpointError if it is none."""
  path = epath.Path(path)
  if not is_stored(path):
    raise CheckpointError(f'{path}: not a checkpoint folder of tuna_jax: no config.json with params/ beside it')
  try:
    config = json.loads((path / 'config.json').read_text())
    if config.get('format') != FORMAT or config.get('version') != 1:
      raise ValueError(f'format {config.get("format")!r} version {config.get("version")!r}')
    model = from_dict(TunaConfig, config['model'])
    record = json.loads((path / 'conversion.json').read_text())
  except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
    raise CheckpointError(f'{path}: unreadable config.json or conversion.json: {error}') from None
  vae = open_checkpoint(path / 'vae') if (path / 'vae').exists() else None
  return Stored(model, open_checkpoint(path / 'params'), vae, record)


def load(leaves: Mapping[str, Lazy], abstract_params, shardings=None):
  """The parameters of a stored folder (`Stored.params` or `.vae`) on devices, each reading only its own slice.

  Raises CheckpointError listing every missing, unused or misshapen leaf.
  """
  check(leaves, abstract_params)
  return place(leaves, abstract_params, shardings)


def check(leaves: Mapping[str, Lazy], abstract_params):
  """Raises CheckpointError unless `leaves` are exactly those of `abstract_params`, in names and shapes."""
  wanted = tree.flatten(abstract_params)
  missing = [name for name in wanted if name not in leaves]
  unused = [name for name in leaves if name not in wanted]
  faults = [f'{name}: missing{nearest(name, unused)}' for name in missing]
  faults += [f'{name}: unused{nearest(name, missing)}' for name in unused]
  faults += [f'{name}: misshapen: found {list(leaves[name].shape)}, wanted {list(aval.shape)}'
             for name, aval in wanted.items() if name in leaves and leaves[name].shape != tuple(aval.shape)]
  if faults:
    raise_faults(f'stored checkpoint: {len(faults)} faults', faults)


def tokenizer_files(folder) -> list[epath.Path]:
  """The tokenizer files in a decoder's folder."""
  folder = epath.Path(folder)
  return [folder / name for name in TOKENIZER_FILES if folder.is_dir() and (folder / name).exists()]


def write_json(path, value):
  """Writes readable JSON with a final newline."""
  epath.Path(path).write_text(json.dumps(value, indent=2) + '\n')
