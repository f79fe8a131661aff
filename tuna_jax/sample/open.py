"""`open_generator`: a run or a weights directory becomes a `Generator`."""

from __future__ import annotations

import inspect
import os

import jax

from tuna_jax import files, sharding, tree
from tuna_jax.config import UserError, nearest
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.mappings import from_dict
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.sample import familiar, showo2
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.image import Usual
from tuna_jax.weights import lora as adapters
from tuna_jax.weights import peft, published, storage, store


def open_generator(
  checkpoint: str | os.PathLike,
  *,
  vae: str | os.PathLike = '',
  tokenizer: str | os.PathLike = '',
  step: int | None = None,
  ema: bool = True,
  dtype: str = 'float32',
  lora: str | os.PathLike = '',
  mesh: jax.sharding.Mesh | None = None,
  **options,
) -> Generator:
  """Loads what training or `tuna-jax convert` wrote: 4 bytes per parameter, 2 in bfloat16, about 1
  in int8.

  Args:
    checkpoint: a run directory, a weights directory, or the name of a published model that
      `tuna-jax get` has fetched, such as 'showo2-1.5b'.
    vae, tokenizer: their directories, where the checkpoint does not say (a run remembers both;
      weights may hold both).
    step, ema: of a run: which checkpoint (default the latest), and whether its averages.
    dtype: how the parameters are held: 'float32', 'bfloat16', or 'int8' for the matrices of the
      towers (weights/storage.py). Where it is not float32, all else and the VAE are bfloat16.
    lora: a folder with an adapter of PEFT, which is merged.
    mesh: places the parameters over its devices; call the generator inside `jax.set_mesh(mesh)`
      then. Rows of a batch are split over `data` and `fsdp`.
    options: of `Generator`, such as media, tasks and batch_size; a run's own are the default.

  Raises UserError naming what is missing or does not fit.
  """
  root = published.locate(checkpoint)
  _known(options)
  familiar.check_types(Generator.__init__, options)
  familiar.check_types(open_generator, {'step': step, 'ema': ema, 'dtype': dtype})
  if lora and not files.path(lora).is_dir():
    raise UserError(f'lora={os.fspath(lora)!r}: no such folder')
  stored = store.open_stored(root, step=step, ema=ema)
  if stored.config is None:
    raise UserError(f'{root}: holds a VAE alone; expected a run or the weights of a model')
  if stored.run is None:
    found = {'vae': root / 'vae', 'tokenizer': root}
    defaults = as_trained(stored)
    if stored.config.design == 'late_fusion':
      defaults['pooled'] = showo2.FRAMES, showo2.POOLED
    if 'pictures' in stored.notes:  # sides of squares that a published model was trained to draw
      defaults['media'] = MediaConfig(image_size=str(stored.notes['pictures'][0]))
  else:
    defaults = as_trained(stored)
    vae_of_run = stored.run['vae'] and store.located(stored.run['vae'], root)
    learned = stored.notes.get('ground', {}).get('vae')
    if vae_of_run and not vae and learned and store.identity(vae_of_run) != learned:
      raise UserError(
        f'{root}: the VAE in {vae_of_run} is not the one that the run was trained with; --vae=DIR '
        'says which to take'
      )
    found = {'vae': vae_of_run, 'tokenizer': root / 'tokenizer'}
  vae_config = vae_params = None
  if stored.config.vae is not None and (vae or str(found['vae'])):  # a run on texts alone has none
    vae_config, vae_params = store.load_vae(
      _existing('vae', vae or found['vae'], 'config.json', root),
      dtype if dtype == 'float32' else 'bfloat16',
    )
  words = Tokenizer.from_dir(
    _existing('tokenizer', tokenizer or found['tokenizer'], 'tokenizer.json', root)
  )
  model = stored.config
  if words.vocab_size > model.decoder.vocab_size:
    raise UserError(
      f'{tokenizer or root}: {words.vocab_size} tokens, the model has {model.decoder.vocab_size}'
    )
  abstract = storage.held(tuna_shapes(model), dtype)
  placed = None
  if mesh is not None:
    placed = sharding.shardings(abstract, mesh)
    vae_params = jax.device_put(vae_params, jax.NamedSharding(mesh, jax.P()))

  def load(stored):
    leaves = stored.params
    if lora:
      leaves = adapters.merged({**leaves, **peft.read(lora, model)})
    return store.load(storage.fitted(leaves, tree.flatten(abstract)), abstract, placed)

  params = store.opened(root, load, step=step, ema=ema)
  return Generator(
    model, params, vae_params, words, vae_config=vae_config, **{**defaults, **options}
  )


def as_trained(stored: store.Stored) -> dict[str, TaskConfig | MediaConfig | Usual]:
  """Layouts of prompts, sizes and sampler of a run, or of weights that were merged from one."""
  run = stored.run or stored.notes.get('run')
  if run is None:
    return {}
  return {
    'tasks': from_dict(TaskConfig, run['data']['tasks']),
    'media': from_dict(MediaConfig, run['data']['media']),
    'usual': from_dict(Usual, run.get('sampling', {})),
  }


def _known(options) -> None:
  """Raises UserError for an option that no Generator takes, with the nearest that it does."""
  known = [
    n for n, p in inspect.signature(Generator).parameters.items() if p.kind == p.KEYWORD_ONLY
  ]
  known += [n for n in inspect.signature(open_generator).parameters if n != 'options']
  for name in options:
    if name not in known:
      raise UserError(f'open_generator takes no {name!r}{nearest(name, known)}')


def _existing(what: str, directory, file: str, root) -> str:
  """`directory`, if it holds `file` (a tokenizer may be a qwen.tiktoken)."""
  folder = files.path(directory)
  if not any((folder / f).exists() for f in (file, 'qwen.tiktoken')):
    raise UserError(
      f'{root}: no {what} in {directory}, seen from {os.getcwd()}; --{what}=DIR says where it is'
    )
  return str(folder)
