"""Moves weights between public files, official checkpoints and ours, and compares them.

  tuna-jax convert assemble --decoder=DIR --vision=DIR --vae=PATH --output=DIR
  tuna-jax convert import [--source=showo2] --input=PATH [--vae=PATH] --output=DIR [--recover]
  tuna-jax convert export --input=DIR --part=tuna --output=DIR [--dtype=bfloat16]
  tuna-jax convert merge --input=RUN [--lora=FOLDER] --output=DIR
  tuna-jax convert inspect PATH
  tuna-jax convert diff A B

assemble  puts Qwen2.5, SigLIP-2 and the Wan 2.2 VAE together, and lists what is fresh. The decoder
          tells the size, without --size or --model.
import    reads a released checkpoint (.safetensors, .pt, .pth, .bin or a folder) of Tuna or, with
          --source, of Show-o2, Tuna-R or Tuna-2. Its tensors tell the size; --size or --model is
          for sizes that were not published. --weights=ema takes the averages of a .pt file; what
          else is in it is listed as ignored.
export    writes the official names, or one part (--part) under its own; --part=lora writes the
          adapters that a run trained, as PEFT has them.
merge     writes a run, or weights with an adapter of PEFT (--lora), as weights without adapters.
inspect   prints names, shapes, types, bytes and checksums.
diff      prints what differs between two checkpoints; the exit code is 1 if anything does.

Everything that does not fit is reported together, and nothing is written then. --dry-run shows what
would be done. --verify=DIR also compares the model with tensors that PyTorch computed from the same
weights (tuna_jax/parity/certificate.py lists them) and writes OUTPUT/certificate.json and .md; the
exit code is 1 if a stage of the model disagrees.
"""

import dataclasses
import time

from absl import flags

from tuna_jax import config as configs
from tuna_jax import files, sizes
from tuna_jax.cli import app
from tuna_jax.config import UserError
from tuna_jax.mappings import from_dict
from tuna_jax.tools import recover
from tuna_jax.weights import (
  compare,
  designs,
  digest,
  hf,
  lora,
  parts,
  peft,
  published,
  safetensors,
  store,
  torchfile,
)
from tuna_jax.weights.open import ignored, open_checkpoint, verify
from tuna_jax.weights.tensors import Lazy, cast

PICKLE_BYTES = 10_000_000_000  # of a file of the published Show-o2 checkpoints

_SIZE = flags.DEFINE_enum('size', None, sorted(sizes.SIZES), 'The named size of the model.')
_MODEL = flags.DEFINE_string(
  'model', None, 'A config.json of ours that holds the model, instead of --size.'
)
_DECODER = flags.DEFINE_string(
  'decoder', None, 'assemble: the Qwen2.5 to take, a Hugging Face folder or a file.'
)
_VISION = flags.DEFINE_string(
  'vision', None, 'assemble: the SigLIP-2 of fixed resolution to take, a folder or a file.'
)
_VAE = flags.DEFINE_string(
  'vae', None, 'assemble, import: the VAE to take, Wan2.2_VAE.pth or a diffusers folder.'
)
_INPUT = flags.DEFINE_string(
  'input', None, 'import: the official checkpoint. export, merge: a run or weights of ours.'
)
_SOURCE = flags.DEFINE_enum(
  'source', 'tuna', list(designs.SOURCES), 'import: whose released checkpoint the input is.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'The directory to write; it must not exist yet.')
_WEIGHTS = flags.DEFINE_enum(
  'weights', 'model', ['model', 'ema'], 'import: which weights of a torch file that holds both.'
)
_LORA = flags.DEFINE_string('lora', None, 'merge: a folder with an adapter of PEFT.')
_PART = flags.DEFINE_enum(
  'part', 'tuna', parts.PARTS, 'export: the part to write, under its own names.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'export: the type of the written values.'
)
_STEP = flags.DEFINE_integer('step', None, 'export: the step of a run; the newest by default.')
_EMA = flags.DEFINE_bool('ema', True, 'export: take the averaged weights where a run has them.')
_SEED = flags.DEFINE_integer('seed', 0, 'assemble: the seed of the values that no part supplies.')
_DRY = flags.DEFINE_bool('dry-run', False, 'Check everything and print the plan, write nothing.')
_RECOVER = flags.DEFINE_bool(
  'recover',
  False,
  'import: also write recover.json, which lists the layers that look re-initialised, and '
  'recover.py, a stage that trains those first.',
)
_VERIFY = flags.DEFINE_string(
  'verify',
  None,
  'assemble, import, export: a golden set of tensors of PyTorch to compare the result with.',
)
_CHECKSUMS = flags.DEFINE_bool('checksums', True, 'inspect: read all values, for checksums.')


def main(argv):
  action, *paths = argv[1:]
  wanted = {'inspect': 1, 'diff': 2}.get(action, 0)
  if len(paths) != wanted:
    raise UserError(f'convert {action}: expected {wanted} paths, found {len(paths)}')
  if _VERIFY.value and not paths:  # is readable: conversion takes minutes
    from tuna_jax.parity import certificate

    certificate.check(_VERIFY.value)
  for flag in (_DECODER, _VISION, _VAE, _INPUT):
    if flag.value:
      published.check_fetched(flag.value)
  actions = {'assemble': assemble, 'import': import_, 'export': export, 'merge': merge}
  return {**actions, 'inspect': inspect, 'diff': diff}[action](*paths)


def assemble():
  """Parts to a checkpoint of ours."""
  _need('assemble', output=_OUTPUT)
  own = _DECODER.value and not (_SIZE.value or _MODEL.value)
  config = parts.named_size(_DECODER.value) if own else _config()
  sources = {'decoder': _DECODER.value, 'vision': _VISION.value, 'vae': _VAE.value}
  if not any(sources.values()):
    raise UserError('convert assemble: give at least one of --decoder, --vision, --vae')
  config = parts.with_statistics(config, _VAE.value)
  planned = parts.assemble(
    config, decoder=sources['decoder'], vision=sources['vision'], seed=_SEED.value
  )
  return _write(config, planned, sources, {'seed': _SEED.value})


def import_():
  """An official checkpoint to one of ours."""
  _need('import', input=_INPUT, output=_OUTPUT)
  if peft.is_adapter(_INPUT.value):
    raise UserError(
      f'{_INPUT.value}: is an adapter of PEFT; `tuna-jax convert merge --input=MODEL '
      f'--lora={_INPUT.value} --output=DIR` adds it to a model'
    )
  if store.is_stored(_INPUT.value):
    raise UserError(f'{_INPUT.value}: is a model of ours, which needs no import')
  reader = open_checkpoint(_INPUT.value, _WEIGHTS.value)
  found = designs.identify(_INPUT.value, reader, _SOURCE.value)
  if found.size and _SIZE.value not in (None, found.size):
    raise UserError(f'{_INPUT.value}: this is {found.title}; --size={found.size}, or none')
  if found.size and not (_SIZE.value or _MODEL.value):
    config = sizes.size(found.size)
  else:
    config = _config()
  if designs.SOURCES[_SOURCE.value] != config.design:
    raise UserError(
      f'--source={_SOURCE.value} needs a model of another design than {config.design}'
    )
  official = _SOURCE.value == 'tuna'
  config = parts.with_statistics(config, _VAE.value, _INPUT.value, official)
  planned = parts.official(config, _INPUT.value, reader)
  fresh = recover.reinitialised(planned.leaves) if _RECOVER.value else None
  record = {'ignored': ignored(_INPUT.value, _WEIGHTS.value)}
  if sides := hf.drawn_sides(_INPUT.value, config.strides[1]):
    record['pictures'] = sides
  return _write(config, planned, {'input': _INPUT.value, 'vae': _VAE.value}, record, fresh)


def export():
  """A checkpoint of ours to somebody else's names."""
  _need('export', input=_INPUT, output=_OUTPUT)
  stored = _opened()
  tensors, config_json, stem = parts.export_part(_PART.value, stored)
  tensors = cast(tensors, _DTYPE.value)
  print(f'{len(tensors)} tensors, {compare.size(tensors)}, as {_PART.value} in {_DTYPE.value}')
  if _DRY.value:
    print('\n'.join(f'  {name}  {list(value.shape)}' for name, value in sorted(tensors.items())))
    return 0
  with files.new_folder(_OUTPUT.value) as folder:
    if _PART.value in ('tuna', 'decoder'):
      for file in store.tokenizer_files(_INPUT.value):
        files.write_bytes(folder / file.name, file.read_bytes())
    if stem.startswith('Wan2.'):
      torchfile.write_file(folder / f'{stem}.pth', tensors)
      files.write_json(folder / 'config.json', config_json)  # the statistics of latents
    elif stem == peft.STEM:
      safetensors.write_file(folder / f'{stem}.safetensors', tensors)
      files.write_json(folder / peft.CONFIG, config_json)
    elif stem == 'pytorch_model':
      torch = {'write': torchfile.write_file, 'end': '.bin', 'shard_bytes': PICKLE_BYTES}
      safetensors.write_folder(folder, tensors, stem=stem, **torch)
      files.write_json(folder / 'config.json', config_json)
    else:
      digests = safetensors.write_folder(folder, tensors, stem=stem)
      about = {**config_json, 'torch_dtype': _DTYPE.value, digest.FIELD: digests}
      files.write_json(folder / 'config.json', about)
  print(f'wrote {_OUTPUT.value}')
  params, vae = (leaves and cast(leaves, _DTYPE.value) for leaves in (stored.params, stored.vae))
  return _certify(dataclasses.replace(stored, params=params, vae=vae))


def merge():
  """A run, or weights and an adapter, to weights."""
  _need('merge', input=_INPUT, output=_OUTPUT)
  stored = _opened()
  if stored.params is None:
    raise UserError(f'{_INPUT.value}: holds a VAE alone; expected a run or weights of a model')
  leaves, sources = stored.params, {'input': _INPUT.value}
  if _LORA.value:
    sources['lora'] = _LORA.value
    leaves = lora.merged({**leaves, **peft.read(_LORA.value, stored.config)})
  notes = {**{k: v for k, v in stored.notes.items() if k != 'base'}, 'sources': sources}
  if stored.run:
    notes['run'] = stored.run
    if stored.vae is None and (named := stored.run['vae']):
      print(f'the VAE {named} is not there: {_OUTPUT.value} is opened with --vae=DIR')
  copied = [
    file
    for folder in (_INPUT.value, f'{_INPUT.value}/tokenizer')
    for file in store.tokenizer_files(folder)
  ]
  store.write(_OUTPUT.value, stored.config, leaves, stored.vae, notes, copied)
  print(f'wrote {_OUTPUT.value}')


def inspect(path):
  for line in compare.listing(_open(path), _CHECKSUMS.value):
    print(line)


def diff(a, b):
  first = _open(a)
  lines = list(compare.differences((a, first), (b, _open(b))))
  print('\n'.join(lines) if lines else f'equal: {len(first)} tensors')
  return int(bool(lines))


def _write(config, planned, sources, record, found=None):
  """Prints the plan; then, unless it is a dry run, the folder."""
  given = {name: str(path) for name, path in sources.items() if path}
  vae = parts.read_vae(config, given['vae']) if 'vae' in given else None
  record = {'sources': given, **record, **planned.notes()}
  if vae is not None:
    record['dropped'] |= {f'vae: {name}': why for name, why in vae.dropped.items()}
  if found is not None:
    record['reinitialised'] = found
  for kind in ('fresh', 'adapted', 'dropped', 'ignored'):
    if kind not in record:
      continue
    print(f'{kind}: {len(record[kind])}')
    for name, why in record[kind].items():
      print(f'  {name}: {why}')
  if found is not None:
    print(recover.describe(found))
  if vae is not None and not config.vae.latent_std:
    print('latents: no mean and deviation of channels is known, so they stay as the VAE makes them')
  print(
    f'{len(planned.leaves)} leaves, {compare.size(planned.leaves)}'
    + (f'; VAE {len(vae.leaves)} leaves, {compare.size(vae.leaves)}' if vae else '; no VAE')
  )
  if _DRY.value:
    print(f'dry run: {_OUTPUT.value} was not written')
    return 0
  for path in given.values():
    verify(path)
  copied = store.tokenizer_files(given['decoder']) if 'decoder' in given else ()
  store.write(_OUTPUT.value, config, planned.leaves, vae and vae.leaves, record, copied)
  if found is not None:
    output = files.path(_OUTPUT.value)
    files.write_json(output / 'recover.json', found)
    files.write_text(output / 'recover.py', recover.stage(found, _OUTPUT.value))
  print(f'wrote {_OUTPUT.value}')
  return _certify(store.open_stored(_OUTPUT.value))


def _certify(stored) -> int:
  """Writes the certificate beside what was written, if it is asked for. Returns 1 if the model
  disagrees."""
  if not _VERIFY.value:
    return 0
  import jax

  from tuna_jax.parity import certificate

  rows = certificate.certify(stored, _VERIFY.value)
  about = {
    'checkpoint': _OUTPUT.value,
    'golden': _VERIFY.value,
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'date': time.strftime('%Y-%m-%d'),
  }
  print(certificate.write(files.path(_OUTPUT.value), rows, about))
  return int(not all(row.passed for row in rows))


def _config():
  if bool(_SIZE.value) == bool(_MODEL.value):
    raise UserError('give the model as --size or as --model=FILE.json, and not both')
  if _SIZE.value:
    return sizes.size(_SIZE.value)
  text = files.read_object(_MODEL.value)
  return from_dict(configs.TunaConfig, text.get('config', text))


def _need(action, **needed):
  for name, flag in needed.items():
    if not flag.value:
      raise UserError(f'convert {action}: --{name} is required')


def _opened() -> store.Stored:
  """--input, a run with the VAE that it names, if that is there. It alone knows the statistics of
  the latents."""
  stored = store.opened(_INPUT.value, store.checked, step=_STEP.value, ema=_EMA.value)
  if stored.run and stored.vae is None and (named := stored.run['vae']):
    there = store.located(named, files.path(_INPUT.value))
    if store.is_stored(there):
      found = store.checked(store.open_stored(there))
      config = dataclasses.replace(stored.config, vae=found.vae_config)
      return dataclasses.replace(stored, config=config, vae_config=found.vae_config, vae=found.vae)
  return stored


def _open(path) -> dict[str, Lazy]:
  """Any checkpoint; the two trees of one of ours under 'params/' and 'vae/'."""
  if not store.is_stored(path):
    return open_checkpoint(path)
  stored = store.open_stored(path)
  trees = {'params': stored.params or {}, 'vae': stored.vae or {}}
  return {f'{tree}/{n}': value for tree, leaves in trees.items() for n, value in leaves.items()}


if __name__ == '__main__':
  app.run(main, positional=('assemble|import|export|merge|inspect|diff', 'PATH?', 'PATH?'))
