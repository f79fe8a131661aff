"""The parts of a model: assembled from public files, imported, exported under their own names."""

from __future__ import annotations

import dataclasses

from tuna_jax import files, sizes, tree
from tuna_jax.config import TunaConfig, VaeConfig
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.weights import designs, digest, hf, peft, tables
from tuna_jax.weights.convert import Plan, export, plan
from tuna_jax.weights.fresh import fresh
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.store import Stored
from tuna_jax.weights.tensors import CheckpointError, Lazy

PARTS = ('tuna', 'decoder', 'vision', 'vae', 'vae-diffusers', 'lora')


def assemble(config: TunaConfig, *, decoder=None, vision=None, seed: int) -> Plan:
  """Every leaf of `Tuna(config)`: from the paths given, the rest fresh and named so in the plan.

  decoder: a Qwen2.5 checkpoint. vision: a checkpoint of the encoder, or the distilled semantic
  layers of Show-o2. Raises CheckpointError as `plan` does.
  """
  shapes = tuna_shapes(config)
  result = Plan()
  for name, path in (('decoder', decoder), ('vision', vision)):
    if path is not None:
      if name not in shapes:
        raise CheckpointError(f'--{name}={path}: the design {config.design!r} has no such part')
      reader = open_checkpoint(path)
      hf.check_sizes(path, getattr(config, name), reader)
      if name == 'decoder':
        table = tables.qwen2(config.decoder)
      elif any(tensor.startswith('und_trans.') for tensor in reader):
        table = designs.distilled(config)
      else:
        table = tables.vision(config.vision, config.window)
      part = plan(table, reader, {name: shapes[name]})
      result.leaves |= part.leaves
      result.fresh |= part.fresh
      result.adapted |= part.adapted
      result.dropped |= {f'{name}: {tensor}': why for tensor, why in part.dropped.items()}
  for leaf, aval in tree.flatten(shapes).items():
    if leaf not in result.leaves:
      result.fresh.setdefault(leaf, 'no source: initial values')
      result.leaves[leaf] = fresh(leaf, aval, seed)
  return result


def named_size(decoder) -> TunaConfig:
  """The named size of Tuna that has a decoder of this size. CheckpointError if none does."""
  width, layers = hf.size_of(open_checkpoint(decoder))
  known = {name: sizes.SIZES[name].decoder for name in ('2b', '7b')}
  for name, tower in known.items():
    if (tower.dim, tower.num_layers) == (width, layers):
      return sizes.SIZES[name]
  said = ', '.join(f'{name} {t.dim} and {t.num_layers}' for name, t in known.items())
  raise CheckpointError(
    f'{decoder}: your decoder is {width} wide with {layers} layers, which no size has ({said}); '
    '--model=FILE.json gives one, as the config.json of a weights directory does'
  )


def official(config: TunaConfig, path, reader=None) -> Plan:
  """Every leaf of `Tuna(config)` from an official checkpoint of its design."""
  return plan(designs.official(config), reader or open_checkpoint(path), tuna_shapes(config))


def read_vae(config: TunaConfig, path) -> Plan:
  """Every leaf of `WanVae`: Wan2.2_VAE.pth or Wan2.1_VAE.pth, a diffusers folder, or an official
  checkpoint that carries the VAE."""
  if config.vae is None:
    raise CheckpointError(f'--vae={path}: the design {config.design!r} sees pixels and has no VAE')
  reader = open_checkpoint(path)
  first = ('encoder.conv1.weight', 'encoder.conv_in.weight')
  found = [value.shape for name, value in reader.items() if tables.bare(name).endswith(first)]
  if not found:
    raise CheckpointError(f'--vae={path}: holds no VAE of Wan')
  wan = ('2.1', '2.2')
  if (found[0][1] != 3) != config.vae.residual:
    here, wanted = wan[found[0][1] != 3], wan[config.vae.residual]
    raise CheckpointError(f'--vae={path}: is the VAE of Wan {here}; this model takes Wan {wanted}')
  diffusers = any(tables.bare(name).startswith('quant_conv.') for name in reader)
  table = tables.diffusers_vae if diffusers else tables.wan_vae
  return plan(table(config.vae), reader, vae_shapes(config.vae))


def with_statistics(config: TunaConfig, vae, trained=None, official: bool = False) -> TunaConfig:
  """The config with the mean and deviation of latents that belong to its weights.

  vae: the VAE that is taken, whose config.json may say them. trained: the checkpoint that is read;
  its model was trained with what it says itself, if it is one of our exports, or with those of
  `config`, if there are any. official: it is of Tuna's authors, whose training had the deviations
  in both places (docs/architecture.md 2.5).
  """
  if config.vae is None:
    return config
  own, found = config.vae, hf.statistics(vae) if vae else {}
  if trained:
    if exported := _exported_vae(trained):
      own = exported
    elif official:
      own = dataclasses.replace(own, latent_mean=own.latent_std)
    found = {} if own.latent_std else found
  return dataclasses.replace(config, vae=dataclasses.replace(own, **found))


def _exported_vae(path) -> VaeConfig | None:
  """The VAE's config of a folder that `export_part` made of a Tuna; None for others."""
  file = files.path(path) / 'config.json'
  found = files.read_object(file) if file.exists() else {}
  if found.get('model_type') != 'tuna' or digest.FIELD not in found or not found.get('vae'):
    return None
  return from_dict(VaeConfig, found['vae'], f'{file}: vae')


def export_part(name: str, stored: Stored) -> tuple[dict[str, Lazy], dict, str]:
  """({their tensor: Lazy}, config.json, file stem) of one of PARTS, or CheckpointError where
  `stored` has no such part."""
  config, vae = stored.config, stored.vae_config
  if name.startswith('vae'):
    if stored.vae is None:
      raise CheckpointError('--input holds no VAE; give the directory that does')
    if name == 'vae':
      stem = 'Wan2.2_VAE' if vae.residual else 'Wan2.1_VAE'
      return export(tables.wan_vae(vae), stored.vae), hf.vae_json(vae), stem
    tensors = export(tables.diffusers_vae(vae), stored.vae)
    return tensors, hf.vae_json(vae), 'diffusion_pytorch_model'
  if name == 'lora':
    if not stored.adapters:
      raise CheckpointError(
        '--input holds no adapters; give a run that trained with optimizer.lora'
      )
    return *peft.write(stored.adapters, config, stored.run['init_from']), peft.STEM
  if stored.params is None:
    raise CheckpointError('--input holds nothing but a VAE; use --part=vae or --part=vae-diffusers')
  if name == 'tuna':
    tensors = export(designs.official(config), stored.params)
    if config.design == 'late_fusion':
      return tensors, hf.showo2_json(config), 'pytorch_model'
    return tensors, {'model_type': 'tuna', **to_dict(config)}, 'model'
  leaves = {leaf: value for leaf, value in stored.params.items() if leaf.startswith(f'{name}/')}
  if not leaves:
    raise CheckpointError(f'a model of design {config.design} has no part called {name}')
  if name == 'decoder':
    return export(tables.qwen2(config.decoder), leaves), hf.qwen2_json(config.decoder), 'model'
  return (
    export(tables.vision(config.vision, config.window), leaves),
    hf.vision_json(config),
    'model',
  )
