"""config.json of Hugging Face libraries, read, compared and written by one table of fields each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tuna_jax import files
from tuna_jax.config import ENCODERS, DecoderConfig, TunaConfig, VaeConfig, VisionConfig
from tuna_jax.weights.tensors import CheckpointError, raise_faults

_TOWER = """num_layers:num_hidden_layers dim:hidden_size num_heads:num_attention_heads
  mlp_dim:intermediate_size"""
_QWEN2 = f"""{_TOWER} num_kv_heads:num_key_value_heads norm_eps:rms_norm_eps
  tied:tie_word_embeddings rope_theta:rope_theta"""
_SIGLIP = f'{_TOWER} norm_eps:layer_norm_eps'
_LATENTS = 'latent_mean:latents_mean latent_std:latents_std'
_WAN = f"""encoder_dim:base_dim decoder_dim:decoder_base_dim latent_channels:z_dim dim_mult:dim_mult
  encoder_blocks:num_res_blocks temporal_down:temperal_downsample {_LATENTS}
  temporal_stride:scale_factor_temporal spatial_stride:scale_factor_spatial"""


def decoder_config(found: Mapping, vocab_size: int) -> DecoderConfig:
  """The decoder of a Qwen2 config.json, with a vocabulary of its own."""
  values = {**_read(_QWEN2, found), 'vocab_size': vocab_size}
  head_dim = found.get('head_dim') or values['dim'] // values['num_heads']
  return DecoderConfig(**{**values, 'rope_theta': float(values['rope_theta'])}, head_dim=head_dim)


def vision_config(found: Mapping, *, grid: int, feature_layer: int = -1) -> VisionConfig:
  """The vision tower of a SigLIP config.json up to `feature_layer`, as transformers numbers hidden
  states, with a position table of side `grid`."""
  values = _read(_SIGLIP, found)
  layers = values['num_layers']
  values['num_layers'] = layers + feature_layer + 1 if feature_layer < 0 else feature_layer
  heads = values['num_heads']
  return VisionConfig(**values, num_kv_heads=heads, head_dim=values['dim'] // heads, grid=grid)


def check_sizes(folder, config: DecoderConfig | VisionConfig, reader: Mapping):
  """Raises CheckpointError if a part is of another size than `config`: in one line by its width and
  layers, which `reader`'s tensors tell; then by the config.json of `folder`, if there is one.

  The number of vocabulary rows may differ, and a vision tower may have more layers.
  """
  what = 'vision tower' if isinstance(config, VisionConfig) else 'decoder'
  width, layers = size_of(reader)
  more = layers >= config.num_layers if what == 'vision tower' else layers == config.num_layers
  if layers and not (width == config.dim and more):
    raise CheckpointError(
      f'{folder}: your {what} is {width} wide with {layers} layers; the model (--size or --model) '
      f'wants {config.dim} and {config.num_layers}'
    )
  path = files.path(folder) / 'config.json'
  if not path.exists():
    return
  found = files.read_object(path)
  if isinstance(config, VisionConfig):
    table, found, free = _SIGLIP, found.get('vision_config', found), ('num_layers',)
  else:
    table, free = _QWEN2, ()
  faults = [
    f'{theirs} is {found[theirs]}; the model (--size or --model) has {getattr(config, ours)}'
    for ours, theirs in _pairs(table)
    if ours not in free and theirs in found and found[theirs] != getattr(config, ours)
  ]
  raise_faults(f'{path}: another size', faults)


def size_of(reader: Mapping) -> tuple[int, int]:
  """(width, layers) of a transformer, by its tensors; (0, 0) where they are called otherwise."""
  layer = re.compile(r'(?:^|\.)layers?\.(\d+)\..*norm\w*\.weight$')
  found = {int(m[1]): value.shape[0] for name, value in reader.items() if (m := layer.search(name))}
  return (found[0], max(found) + 1) if 0 in found else (0, 0)


def qwen2_json(config: DecoderConfig) -> dict:
  """config.json of the decoder, for transformers."""
  return {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'hidden_act': 'silu',
    **_write(_QWEN2, config),
    'vocab_size': config.vocab_size,
    'max_position_embeddings': 32768,
    'attention_dropout': 0.0,
    'use_sliding_window': False,
  }


def vision_json(config: TunaConfig) -> dict:
  """config.json of the vision tower, for transformers."""
  shape = {
    **_write(_SIGLIP, config.vision),
    'attention_dropout': 0.0,
    'image_size': config.vision.grid * config.window,
    'patch_size': config.window,
    'num_channels': 3 if config.seen_dim else config.channels,
  }
  if config.vision.encoder == 'dinov3':
    kind = {'architectures': ['DINOv3ViTModel'], 'model_type': 'dinov3_vit', 'hidden_act': 'silu'}
    registers = {'num_register_tokens': ENCODERS['dinov3'] - 1}
    return {**kind, **shape, **registers, 'use_gated_mlp': True, 'key_bias': False}
  return {
    'architectures': ['SiglipVisionModel'],
    'model_type': 'siglip_vision_model',
    'hidden_act': 'gelu_pytorch_tanh',
    **shape,
    'vision_use_head': False,
  }


def showo2_json(config: TunaConfig) -> dict:
  """config.json of Show-o2's own class, for its scripts."""
  side = config.vision.grid
  return {
    '_class_name': 'Showo2Qwen2_5',
    'llm_vocab_size': config.decoder.vocab_size,
    'hidden_size': config.decoder.dim,
    'image_latent_dim': config.vae.latent_channels,
    'image_latent_height': side,
    'image_latent_width': side,
    'patch_size': config.patch,
    'clip_latent_dim': config.vision.dim,
    'num_diffusion_layers': config.flow_head.num_layers,
    'add_time_embeds': True,
  }


def drawn_sides(path, stride: int) -> list[int]:
  """The side in pixels of the squares that a Show-o2 folder was trained to draw, if it says so.
  stride: pixels of a token's side."""
  file = files.path(path) / 'config.json'
  tokens = files.read_json(file).get('image_latent_height') if file.exists() else None
  return [stride * tokens] if isinstance(tokens, int) else []


def vae_json(config: VaeConfig) -> dict:
  """config.json of the VAE, for diffusers."""
  channels = 12 if config.residual else 3
  pixels = {'in_channels': channels, 'out_channels': channels}
  pixels['patch_size'] = 2 if config.residual else None
  rest = {'attn_scales': [], 'dropout': 0.0, 'is_residual': config.residual}
  return {'_class_name': 'AutoencoderKLWan', **_write(_WAN, config), **rest, **pixels}


def statistics(path) -> dict[str, tuple[float, ...]]:
  """The mean and standard deviation of latents that the config.json of a VAE says, as fields of
  VaeConfig; none without that file. path: the VAE's folder, or a file in it."""
  where = files.path(path)
  file = (where if where.is_dir() else where.parent) / 'config.json'
  found = files.read_object(file) if file.exists() else {}
  return {ours: tuple(found[theirs]) for ours, theirs in _pairs(_LATENTS) if found.get(theirs)}


def _pairs(table: str) -> list[list[str]]:
  return [pair.split(':') for pair in table.split()]


def _read(table: str, found: Mapping) -> dict:
  missing = [theirs for _, theirs in _pairs(table) if theirs not in found]
  if missing:
    raise CheckpointError(f'config.json: no {", ".join(missing)}; it has {", ".join(found)}')
  return {ours: found[theirs] for ours, theirs in _pairs(table)}


def _write(table: str, config) -> dict:
  values = {theirs: getattr(config, ours) for ours, theirs in _pairs(table)}
  return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
