"""The parts of a model and their homes: what is read from where, and what is written back.

`assemble` puts Qwen2.5, SigLIP-2 and the Wan VAE together with fresh connector, time embedding and
flow head; `official` reads a Tuna checkpoint; `home` turns our leaves back into a part's own names
and config.json.
"""

from __future__ import annotations

from tuna_jax import tree
from tuna_jax.config import DecoderConfig, TunaConfig, VaeConfig, to_dict
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.weights import tables
from tuna_jax.weights.convert import Plan, export, plan
from tuna_jax.weights.fresh import fresh
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.store import Stored
from tuna_jax.weights.tensors import CheckpointError, Lazy

HOMES = ('tuna', 'decoder', 'vision', 'vae', 'vae-diffusers')


def assemble(config: TunaConfig, *, decoder=None, vision=None, seed: int) -> Plan:
  """Every leaf of `Tuna(config)`: from the paths given, the rest fresh and named so in the plan.

  decoder: a Qwen2.5 checkpoint. vision: a SigLIP-2 checkpoint. Raises CheckpointError as `plan`
  does.
  """
  shapes = tuna_shapes(config)
  result = Plan()
  for name, path, table in (
    ('decoder', decoder, tables.qwen2(config.decoder)),
    ('vision', vision, tables.siglip2(config.vision)),
  ):
    if path is not None:
      _merge(result, plan(table, open_checkpoint(path), {name: shapes[name]}), name)
  for leaf, aval in tree.flatten(shapes).items():
    if leaf not in result.leaves:
      result.fresh.setdefault(leaf, 'no source: initial values')
      result.leaves[leaf] = fresh(leaf, aval, seed)
  return result


def official(config: TunaConfig, path) -> Plan:
  """Every leaf of `Tuna(config)` from an official checkpoint."""
  return plan(tables.tuna_official(config), open_checkpoint(path), tuna_shapes(config))


def read_vae(config: TunaConfig, path) -> Plan:
  """Every leaf of `WanVae`: Wan2.2_VAE.pth, a diffusers folder, or an official checkpoint that
  carries the VAE.
  """
  reader = open_checkpoint(path)
  table = (
    tables.diffusers_vae
    if any(name.startswith('quant_conv.') for name in reader)
    else tables.wan_vae
  )
  return plan(table(config.vae), reader, vae_shapes(config.vae))


def home(name: str, stored: Stored) -> tuple[dict[str, Lazy], dict, str]:
  """({their tensor: Lazy}, config.json, file stem) for one of HOMES. Raises CheckpointError if
  `stored` has no such part.
  """
  if name.startswith('vae'):
    if stored.vae is None:
      raise CheckpointError(
        'there is no VAE in it: convert export wants the directory that holds one'
      )
    table = (
      tables.wan_vae(stored.vae_config)
      if name == 'vae'
      else tables.diffusers_vae(stored.vae_config)
    )
    stem = 'Wan2.2_VAE' if name == 'vae' else 'diffusion_pytorch_model'
    return export(table, stored.vae), vae_json(stored.vae_config), stem
  if stored.params is None:
    raise CheckpointError(
      'there is nothing but a VAE in it: use --part=vae or --part=vae-diffusers'
    )
  config = stored.config
  if name == 'tuna':
    return (
      export(tables.tuna_official(config), stored.params),
      {'model_type': 'tuna', **to_dict(config)},
      'model',
    )
  leaves = {leaf: value for leaf, value in stored.params.items() if leaf.startswith(f'{name}/')}
  if name == 'decoder':
    return export(tables.qwen2(config.decoder), leaves), qwen2_json(config.decoder), 'model'
  return export(tables.siglip2(config.vision), leaves), siglip_json(config), 'model'


def _merge(result: Plan, part: Plan, name: str):
  result.leaves.update(part.leaves)
  result.fresh.update(part.fresh)
  result.adapted.update(part.adapted)
  result.dropped.update({f'{name}: {tensor}': why for tensor, why in part.dropped.items()})


def qwen2_json(config: DecoderConfig) -> dict:
  """config.json of the decoder, for transformers."""
  d = config
  return {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'hidden_act': 'silu',
    'hidden_size': d.dim,
    'intermediate_size': d.mlp_dim,
    'num_hidden_layers': d.num_layers,
    'num_attention_heads': d.num_heads,
    'num_key_value_heads': d.num_kv_heads,
    'rms_norm_eps': d.norm_eps,
    'rope_theta': d.rope_theta,
    'max_position_embeddings': 32768,
    'tie_word_embeddings': d.tied,
    'vocab_size': d.vocab_size,
    'attention_dropout': 0.0,
    'use_sliding_window': False,
  }


def siglip_json(config: TunaConfig) -> dict:
  """config.json of the vision tower, for transformers."""
  v = config.vision
  return {
    'architectures': ['SiglipVisionModel'],
    'model_type': 'siglip_vision_model',
    'hidden_act': 'gelu_pytorch_tanh',
    'hidden_size': v.dim,
    'intermediate_size': v.mlp_dim,
    'num_hidden_layers': v.num_layers,
    'num_attention_heads': v.num_heads,
    'layer_norm_eps': v.norm_eps,
    'attention_dropout': 0.0,
    'image_size': v.grid,
    'patch_size': 1,
    'num_channels': config.vae.latent_channels,
    'vision_use_head': False,
  }


def vae_json(config: VaeConfig) -> dict:
  """config.json of the VAE, for diffusers."""
  v = config
  return {
    '_class_name': 'AutoencoderKLWan',
    'base_dim': v.encoder_dim,
    'decoder_base_dim': v.decoder_dim,
    'z_dim': v.latent_channels,
    'dim_mult': list(v.dim_mult),
    'num_res_blocks': v.encoder_blocks,
    'attn_scales': [],
    'temperal_downsample': list(v.temporal_down),
    'dropout': 0.0,
    'is_residual': True,
    'in_channels': 12,
    'out_channels': 12,
    'patch_size': 2,
    'scale_factor_temporal': v.temporal_stride,
    'scale_factor_spatial': v.spatial_stride,
    'latents_mean': list(v.latent_mean),
    'latents_std': list(v.latent_std),
  }
