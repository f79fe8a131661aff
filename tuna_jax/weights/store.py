"""Directories of ours: written by conversions and training, read lazily whoever wrote them.

    WEIGHTS/config.json         kind 'tuna' or 'vae', the model's config, and notes: where it came
                                from; what is fresh, dropped or adapted, and why
    WEIGHTS/params/             {leaf name: float32} in safetensors, layers stacked
    WEIGHTS/vae/                the frozen VAE: a weights directory of kind 'vae'
    WEIGHTS/tokenizer*.json     the decoder's tokenizer files, if they were there

    RUN/config.json             kind 'run', the TrainConfig
    RUN/checkpoints/STEP/       params and ema (averages) as orbax writes them: train/checkpoint.py

A weights directory is complete once its config.json is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from tuna_jax import files, tree
from tuna_jax.config import TunaConfig, UserError, VaeConfig, from_dict, nearest, to_dict
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.weights import safetensors
from tuna_jax.weights.convert import place
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import CheckpointError, Lazy, lazies, raise_faults

TOKENIZER_FILES = 'tokenizer.json tokenizer_config.json vocab.json merges.txt qwen.tiktoken'.split()
KINDS = ('run', 'tuna', 'vae')
CACHE_BYTES = 1 << 30  # of decoded chunks of orbax's arrays: a layer is a slice of a chunk


@dataclasses.dataclass(frozen=True)
class Stored:
  """An opened directory; what it does not hold is None. run: a run's TrainConfig as JSON."""

  config: TunaConfig | None
  params: dict[str, Lazy] | None
  vae_config: VaeConfig | None
  vae: dict[str, Lazy] | None
  notes: dict
  run: dict | None = None


# ---- writing


def write(path, config: TunaConfig, params: Mapping, vae: Mapping | None, notes: dict, copied=()):
  """Writes a new weights directory, all or nothing, with the files `copied` beside the weights."""
  with files.new_folder(path) as folder:
    for file in copied:
      epath.Path(file).copy(folder / epath.Path(file).name)
    if vae is not None:
      save(folder / 'vae', config.vae, vae, {'sources': notes.get('sources', {})})
    save(folder, config, params, notes)


def save(directory, config: TunaConfig | VaeConfig, params, notes: dict | None = None):
  """Makes `directory` a weights directory, replacing weights that it holds.

  params: nested dicts (or {name: leaf}) of arrays or Lazy. notes: JSON, says where they come from.
  """
  root = files.path(directory)
  (root / 'config.json').unlink(missing_ok=True)
  (root / 'params').rmtree(missing_ok=True)
  root.mkdir(parents=True, exist_ok=True)
  with files.new_folder(root / 'params') as folder:
    safetensors.write_folder(folder, lazies(tree.flatten(params)))
  kind = 'vae' if isinstance(config, VaeConfig) else 'tuna'
  about = {'kind': kind, 'config': to_dict(config), 'notes': notes or {}}
  files.write_json(root / 'config.json', about)


def save_tree(file, value):
  """Writes a tree of arrays and numbers as one safetensors file, whole or not at all."""
  leaves = {name: np.asarray(leaf) for name, leaf in tree.flatten(value).items()}
  safetensors.write_file(file, lazies(leaves))


def restore_tree(file, default):
  """What `save_tree` wrote, in the structure of `default`; `default` itself if there is no file."""
  if not files.path(file).exists():
    return default
  leaves = safetensors.read_file(file)
  return jax.tree_util.tree_map_with_path(
    lambda at, _: jnp.asarray(leaves[tree.name_of(at)]), default
  )


# ---- reading


def is_stored(path) -> bool:
  """Whether `path` is a directory of ours: weights or a run."""
  path = files.path(path)
  ours = (path / 'params').exists() or (path / 'checkpoints').exists()
  return ours and (path / 'config.json').exists()


def read_config(directory) -> dict:
  """{'kind': one of KINDS, 'config': ..., 'notes': ...} of a run or a weights directory."""
  path = files.path(directory) / 'config.json'
  if not path.exists():
    raise CheckpointError(
      f'{directory}: no config.json there; expected a run or a weights directory'
    )
  found = files.read_json(path)
  kind = found.get('kind') if isinstance(found, dict) else None
  if kind not in KINDS or not isinstance(found.get('config'), dict):
    raise CheckpointError(
      f'{path}: kind {kind!r}, expected one of {sorted(KINDS)}{nearest(str(kind), KINDS)}'
    )
  return {'notes': {}, **found}


def committed_steps(run) -> list[int]:
  """The steps of a run's complete checkpoints, in order.

  Locally orbax renames a checkpoint when it is complete. On object storage, where it cannot, it
  adds a file.
  """
  folder = files.path(run) / 'checkpoints'
  found = [p for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
  if files.is_remote(folder):
    found = [p for p in found if (p / 'commit_success.txt').exists()]
  return sorted(int(p.name) for p in found)


def open_stored(path, *, step: int | None = None, ema: bool = True) -> Stored:
  """Opens a weights directory, a VAE's or a run; reads names and shapes only.

  step: of a run, default the newest that is complete. ema: take a run's averages where it has
  them. Raises CheckpointError if it is none of these.
  """
  path = files.path(path)
  about = read_config(path)
  kind, config, notes = about['kind'], about['config'], about['notes']
  if kind == 'vae':
    vae = _config(VaeConfig, config, path)
    return Stored(None, None, vae, read_params(path / 'params'), notes)
  vae = open_stored(path / 'vae') if (path / 'vae').exists() else Stored(*[None] * 4, {})
  if kind == 'tuna':
    params, run = read_params(path / 'params'), None
  else:
    params, run, config = _run_params(path, step, ema), config, config.get('model')
  model = _config(TunaConfig, config, path)
  return Stored(model, params, vae.vae_config, vae.vae, notes, run)


def read_params(folder) -> dict[str, Lazy]:
  """{leaf name: Lazy} of a params/ folder, in safetensors or as a run's checkpoint holds it."""
  folder = files.absolute(folder)
  if not (folder / '_METADATA').exists():
    return open_checkpoint(folder)
  metadata = files.read_json(folder / '_METADATA')
  if files.is_remote(folder):
    bucket, _, inside = str(folder).removeprefix('gs://').partition('/')
    base = {'driver': 'gcs', 'bucket': bucket, 'path': f'{inside}/'}
  else:
    base = {'driver': 'file', 'path': f'{folder}/'}
  driver = 'zarr3' if metadata.get('use_zarr3') else 'zarr'
  context = tensorstore.Context({'cache_pool': {'total_bytes_limit': CACHE_BYTES}})
  pending = {}
  for entry in metadata['tree_metadata'].values():
    keys = [str(key['key']) for key in entry['key_metadata']]
    kvstore = {'driver': 'ocdbt', 'base': base, 'path': '.'.join(keys) + '/'}
    spec = {'driver': driver, 'kvstore': kvstore, 'recheck_cached_data': 'open'}
    pending['/'.join(keys)] = tensorstore.open(spec, context=context, open=True, read=True)
  arrays = {name: array.result() for name, array in pending.items()}
  return {
    name: Lazy(
      tuple(array.shape),
      np.dtype(array.dtype.numpy_dtype),
      lambda index, array=array: np.asarray(array[index].read().result()),
    )
    for name, array in arrays.items()
  }


def load(leaves: Mapping[str, Lazy], abstract_params, shardings=None):
  """`leaves` (`Stored.params` or `.vae`) on devices, each reading only its own slice.

  Raises CheckpointError listing every missing, unused or misshapen leaf.
  """
  check('stored weights', leaves, abstract_params)
  return place(leaves, abstract_params, shardings)


def load_weights(directory, abstract_params, *, step: int | None = None, ema: bool = True):
  """The parameters of a run or a weights directory on devices; see `open_stored` and `load`."""
  stored = open_stored(directory, step=step, ema=ema)
  if stored.params is None:
    raise CheckpointError(f'{directory}: holds a VAE alone; expected a run or weights of a model')
  check(directory, stored.params, abstract_params)
  return place(stored.params, abstract_params)


def load_vae(directory):
  """(VaeConfig, parameters) of a VAE's weights directory, on one local device."""
  config, leaves = open_vae(directory)
  return config, load(leaves, vae_shapes(config))


def open_vae(directory) -> tuple[VaeConfig, dict[str, Lazy]]:
  """(VaeConfig, {leaf name: Lazy}) of a VAE's weights directory."""
  kind = read_config(directory)['kind']
  if kind != 'vae':
    raise CheckpointError(f'{directory}: is of kind {kind!r}; expected the weights of a VAE')
  stored = open_stored(directory)
  return stored.vae_config, stored.vae


def check(what, leaves: Mapping[str, Lazy], abstract):
  """Raises CheckpointError unless `leaves` are exactly those of `abstract`, by names and shapes."""
  wanted = tree.flatten(abstract)
  missing = [name for name in wanted if name not in leaves]
  unused = [name for name in leaves if name not in wanted]
  faults = [f'{name}: missing in the checkpoint{nearest(name, unused)}' for name in missing]
  faults += [f'{name}: not in this model{nearest(name, missing)}' for name in unused]
  faults += [
    f'{name}: shape {list(leaves[name].shape)}, this model has {list(aval.shape)}'
    for name, aval in wanted.items()
    if name in leaves and leaves[name].shape != tuple(aval.shape)
  ]
  raise_faults(str(what), faults)


def tokenizer_files(folder) -> list[epath.Path]:
  """The tokenizer files in a decoder's folder."""
  folder = files.path(folder)
  return [folder / name for name in TOKENIZER_FILES if folder.is_dir() and (folder / name).exists()]


def _config(cls, value, directory):
  try:
    return from_dict(cls, value)
  except (UserError, TypeError) as error:
    raise CheckpointError(f'{directory}/config.json: {error}') from None


def _run_params(run, step, ema):
  steps = committed_steps(run)
  if not steps or (step is not None and step not in steps):
    raise CheckpointError(
      f'{run}: no checkpoint{"" if step is None else f" of step {step}"}; it has {steps}'
    )
  here = run / 'checkpoints' / str(steps[-1] if step is None else step)
  averages = read_params(here / 'ema') if ema and (here / 'ema').exists() else {}
  return read_params(here / 'params') | averages
