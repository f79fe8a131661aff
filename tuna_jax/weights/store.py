"""Directories of ours: written by conversions and training, read lazily whoever wrote them.

    WEIGHTS/config.json         kind 'tuna' or 'vae', the model's config, and notes: where it came
                                from; what is fresh, dropped or adapted, and why
    WEIGHTS/params/             {leaf name: float32} in safetensors, layers stacked
    WEIGHTS/vae/                the frozen VAE: a weights directory of kind 'vae'
    WEIGHTS/tokenizer*.json     the decoder's tokenizer files, if they were there

    RUN/config.json             kind 'run', the TrainConfig
    RUN/checkpoints/STEP/       params and ema (averages) as orbax writes them: weights/steps.py

A weights directory is complete once its config.json is there. That file also holds the digest of
every leaf, of the tokenizer files, and of its own content (weights/digest.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from tuna_jax import files, tree
from tuna_jax.config import TunaConfig, UserError, VaeConfig, nearest
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.weights import digest, lora, safetensors, steps, storage
from tuna_jax.weights.convert import place
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import CheckpointError, Damaged, Lazy, lazies, raise_faults

TOKENIZER_FILES = 'tokenizer.json tokenizer_config.json vocab.json merges.txt qwen.tiktoken'.split()
KINDS = ('run', 'tuna', 'vae')
FIELDS = {'kind', 'config', 'notes', 'digests', 'files', 'digest'}  # of config.json


@dataclasses.dataclass(frozen=True)
class Stored:
  """An opened directory; what it does not hold is None. run: a run's TrainConfig as JSON. Adapters
  that a run trained are part of `params`, and stand in `adapters` by themselves.
  """

  config: TunaConfig | None
  params: dict[str, Lazy] | None
  vae_config: VaeConfig | None
  vae: dict[str, Lazy] | None
  notes: dict
  run: dict | None = None
  adapters: dict[str, Lazy] | None = None


# ---- writing


def write(path, config: TunaConfig, params: Mapping, vae: Mapping | None, notes: dict, copied=()):
  """Writes a new weights directory, all or nothing, with the files `copied` beside the weights."""
  with files.new_folder(path) as folder:
    for file in copied:
      files.write_bytes(folder / epath.Path(file).name, epath.Path(file).read_bytes())
    if vae is not None:
      save(folder / 'vae', config.vae, vae, {'sources': notes.get('sources', {})})
    save(folder, config, params, notes)


def save(directory, config: TunaConfig | VaeConfig, params, notes: dict | None = None):
  """Makes `directory` a weights directory, replacing weights that it holds once the new ones are
  written.

  params: nested dicts (or {name: leaf}) of arrays or Lazy. notes: JSON, says where they come from.
  """
  root = files.path(directory)
  root.mkdir(parents=True, exist_ok=True)
  with files.replaced_folder(root / 'params', last=root / 'config.json') as folder:
    digests = safetensors.write_folder(folder, lazies(tree.flatten(params)))
  kind = 'vae' if isinstance(config, VaeConfig) else 'tuna'
  about = {'kind': kind, 'config': to_dict(config), 'notes': notes or {}, 'digests': digests}
  write_config(root, about, [root / name for name in TOKENIZER_FILES])


def write_config(root, about: dict, beside=()):
  """Writes config.json with its own digest and those of the files `beside` that are there."""
  root = files.path(root)
  known = {str(f.relative_to(root)): _sha256(f) for f in beside if f.exists()}
  about = json.loads(json.dumps({**about, 'files': known}))  # as it will be read
  files.write_json(root / 'config.json', {**about, 'digest': digest.of_json(about)})


def save_tree(file, value):
  """Writes a tree of arrays and numbers as one safetensors file, whole or not at all."""
  leaves = lazies({name: np.asarray(leaf) for name, leaf in tree.flatten(value).items()})
  digests = {name: digest.of_lazy(leaf) for name, leaf in leaves.items()}
  safetensors.write_file(file, leaves, {digest.FIELD: json.dumps(digests)})


def restore_tree(file, default):
  """What `save_tree` wrote, in the structure of `default`; `default` itself if there is no file.

  Raises Damaged if it is not what was written.
  """
  if not files.path(file).exists():
    return default
  leaves = safetensors.read_file(file)
  digest.check_stored(leaves)
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
  """{'kind': one of KINDS, 'config': ..., 'notes': ...} of a run or a weights directory.

  Raises Damaged where it, or a file whose digest it holds, is not what was written.
  """
  root = files.path(directory)
  path = root / 'config.json'
  if not path.exists():
    inside = [p.name for p in sorted(root.glob('*')) if is_stored(p)] if root.is_dir() else []
    raise CheckpointError(
      f'{directory}: no config.json there; expected a run or a weights directory'
      + (f', such as {", ".join(inside)} in it' if inside else '')
    )
  found = files.read_json(path)
  kind = found.get('kind') if isinstance(found, dict) else None
  if kind is None:
    raise CheckpointError(
      f'{path}: was not written here; `tuna-jax convert import` reads released checkpoints, and '
      '`convert assemble` their parts'
    )
  if kind not in KINDS or not isinstance(found.get('config'), dict):
    raise CheckpointError(
      f'{path}: kind {kind!r}, expected one of {sorted(KINDS)}{nearest(str(kind), KINDS)}'
    )
  if unknown := sorted(set(found) - FIELDS):
    raise CheckpointError(f'{path}: no such field: {unknown[0]}{nearest(unknown[0], FIELDS)}')
  saved = found.get('digest')
  if saved and saved != digest.of_json({k: v for k, v in found.items() if k != 'digest'}):
    raise Damaged(
      f'{path} is damaged: it differs from what was written; if you changed it, remove its digest'
    )
  for name, wanted in found.get('files', {}).items():
    if (root / name).exists() and _sha256(root / name) != wanted:
      raise Damaged(f'{root / name} is damaged: it differs from what was written')
  return {'notes': {}, 'digests': {}, **found}


def open_stored(path, *, step: int | None = None, ema: bool = True) -> Stored:
  """Opens a weights directory, a VAE's or a run; reads names and shapes only.

  step: of a run, default the newest that can be opened. ema: take a run's averages where it has
  them. Raises CheckpointError if it is none of these, Damaged naming what is damaged.
  """
  path = files.path(path)
  about = read_config(path)
  kind, config, notes = about['kind'], about['config'], about['notes']
  if kind == 'vae':
    vae = _config(VaeConfig, config, path)
    return Stored(None, None, vae, read_params(path / 'params', about['digests']), notes)
  vae = open_stored(path / 'vae') if (path / 'vae').exists() else Stored(*[None] * 4, {})
  adapters = None
  if kind == 'tuna':
    params, run = read_params(path / 'params', about['digests']), None
  else:
    verify = 'digest' in about and config.get('verify', True)
    read = lambda n: steps.read_weights(path, n, ema=ema, verify=verify)
    params, run, config = steps.newest_good(path, read, step), config, config.get('model')
    if 'base' in notes:
      adapters = {leaf: value for leaf, value in params.items() if lora.is_adapter(leaf)}
      params = lora.merged({**_base(path, run['init_from'], notes['base']), **params})
  model = _config(TunaConfig, config, path)
  return Stored(model, params, vae.vae_config, vae.vae, notes, run, adapters)


def identity(path) -> str:
  """What tells the weights in `path` from others: a digest of what they are."""
  about = read_config(path)
  if about['kind'] == 'run':
    return digest.of_json(steps.record(path, max(steps.committed(path))))
  return about.get('digest', '')


def located(given, root) -> epath.Path:
  """What a run in `root` names: where it says or, if both were moved, beside the run or in a folder
  beside it."""
  path = files.path(given)
  if path.exists():
    return path
  tails = path.name, f'{path.parent.name}/{path.name}'
  return next((p for f in root.parents[:2] for p in (f / t for t in tails) if p.exists()), path)


def _base(run, given: str, wanted: str) -> dict[str, Lazy]:
  """The leaves that a run of adapters started from."""
  found = located(given, run)
  if not is_stored(found):
    raise CheckpointError(f'{run}: its base {given} is not there, and the run holds adapters alone')
  if identity(found) != wanted:
    raise CheckpointError(
      f'{run}: its base {found} is not the one that its adapters were trained on'
    )
  return open_stored(found).params


def opened(path, use: Callable, *, step: int | None = None, ema: bool = True):
  """`use(stored)` of what `path` holds: of a run without `step`, of the newest checkpoint in which
  `use` meets no damage."""
  if read_config(path)['kind'] != 'run':
    return use(open_stored(path))
  return steps.newest_good(path, lambda n: use(open_stored(path, step=n, ema=ema)), step)


def checked(stored: Stored) -> Stored:
  """The same, after all of it was read and compared with its digests."""
  digest.check_stored(stored.params or {})
  digest.check_stored(stored.vae or {})
  return stored


def read_params(folder, digests: Mapping[str, str] | None = None) -> dict[str, Lazy]:
  """{leaf name: Lazy} of a params/ folder, in safetensors or as a run's checkpoint holds it."""
  folder = files.absolute(folder)
  if (folder / '_METADATA').exists():
    return steps.read_arrays(folder)
  if digests and not folder.exists():
    raise Damaged(f'{folder} is missing')
  found = open_checkpoint(folder)
  if digests and (wrong := sorted(set(digests) ^ set(found))):
    raise Damaged(f'{folder} is damaged: {wrong[0]} is not what was saved')
  return digest.attached(found, digests or {}, folder)


def load(leaves: Mapping[str, Lazy], abstract_params, shardings=None):
  """`leaves` (`Stored.params` or `.vae`) on devices, each reading only its own slice.

  Raises CheckpointError listing every missing, unused or misshapen leaf.
  """
  check('stored weights', leaves, abstract_params)
  return place(leaves, abstract_params, shardings)


def load_weights(
  directory,
  abstract_params,
  *,
  step: int | None = None,
  ema: bool = True,
  change=lambda leaves: leaves,
):
  """The parameters of a run or a weights directory on devices; see `open_stored` and `load`.

  change: a function of {leaf name: Lazy}, which says what is placed instead of the stored leaves.
  """

  def use(stored):
    if stored.params is None:
      raise CheckpointError(f'{directory}: holds a VAE alone; expected a run or weights of a model')
    leaves = change(stored.params)
    check(directory, leaves, abstract_params)
    return place(leaves, abstract_params)

  return opened(directory, use, step=step, ema=ema)


def load_vae(directory, dtype: str = 'float32'):
  """(VaeConfig, parameters in `dtype`) of a VAE's weights directory, on one local device."""
  config, leaves = open_vae(directory)
  return config, load(leaves, storage.held(vae_shapes(config), dtype))


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


def _sha256(file) -> str:
  return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
