"""The config of a golden case in our terms: every size from the case itself, what we do not have
refused by name.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

from tuna_jax import tree
from tuna_jax.config import (
  WAN_STD,
  DecoderConfig,
  FlowHeadConfig,
  PathConfig,
  TunaConfig,
  UserError,
  VaeConfig,
  VisionConfig,
)
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sizes import WAN21_VAE
from tuna_jax.weights import designs, hf, tables
from tuna_jax.weights.convert import convert
from tuna_jax.weights.tensors import CheckpointError, Lazy

# What the official options must be for our one way of doing it (docs/architecture.md 0).
ONLY = {
  'hidden_act': ('gelu_pytorch_tanh',),
  'attention_dropout': (0.0,),
  'siglip_patch_size': (1,),
  'patch_size': (1,),
  'add_time_embeds': (True,),
  'add_aspect_ratio_embeds': (False,),
  'mrope_type': ('dit_3drope_mm',),
  'path_type': ('Linear',),
  'prediction': ('velocity',),
  'snr_type': ('lognorm',),
  'do_shift': (True,),
  'und_max_t0': (1.0,),
  'dtype': ('float32',),
}
# Stands for a tower that the case does not have.
_TOWER = {
  'num_layers': 1,
  'dim': 16,
  'num_heads': 1,
  'num_kv_heads': 1,
  'head_dim': 16,
  'mlp_dim': 8,
}
_VAE = VaeConfig()  # Wan 2.2's own sizes
_tuna_shapes, _vae_shapes = functools.cache(tuna_shapes), functools.cache(vae_shapes)


def tuna(
  *, vision=None, decoder=None, flow_head=None, vae=_VAE, time_frequencies: int = 256, **design
) -> TunaConfig:
  """A float32 model with official behaviour; the towers that a case does not have are as small as
  can be.
  """
  dim = flow_head.dim if flow_head else decoder.dim if decoder else _TOWER['dim']
  small = {**_TOWER, 'dim': dim}
  return TunaConfig(
    vision=vision or (None if design.get('design') == 'pixel' else VisionConfig(**_TOWER, grid=2)),
    decoder=decoder or DecoderConfig(**small, vocab_size=8, vocab_multiple=8),
    flow_head=flow_head or FlowHeadConfig(**small),
    vae=vae,
    time_frequencies=time_frequencies,
    dtype='float32',
    remat='none',
    compat='official',
    **design,
  )


def vae_config(config: Mapping) -> VaeConfig:
  """z_dim, c_dim, dec_dim, dim_mult, num_res_blocks, temperal_downsample; those absent are Wan
  2.2's, whose official statistics have the std list in both places (B13).
  """
  blocks = config.get('num_res_blocks', _VAE.encoder_blocks)
  return VaeConfig(
    latent_channels=config.get('z_dim', _VAE.latent_channels),
    encoder_dim=config['c_dim'],
    decoder_dim=config['dec_dim'],
    dim_mult=tuple(config.get('dim_mult', _VAE.dim_mult)),
    encoder_blocks=blocks,
    decoder_blocks=blocks + 1,
    temporal_down=tuple(config.get('temperal_downsample', _VAE.temporal_down)),
    latent_mean=tuple(config.get('latent_mean', WAN_STD)),
    latent_std=tuple(config.get('latent_std', WAN_STD)),
    residual=config.get('version') != 'wan21',
  )


def vision_config(siglip: Mapping, grid: int, feature_layer: int) -> VisionConfig:
  """A Hugging Face SigLIP config up to the feature layer, with a position table of side `grid`."""
  _check(siglip, 'hidden_act', 'attention_dropout')
  return hf.vision_config(siglip, grid=grid, feature_layer=feature_layer)


def showo2_config(model: Mapping, vae: VaeConfig | None = None) -> TunaConfig:
  """Show-o2 of config['model'], whose towers stand apart: siglip, llm, head, showo."""
  options, head, siglip = model['showo'], model['head'], model['siglip']
  layers = options['num_diffusion_layers']
  return tuna(
    vision=vision_config(siglip, math.isqrt(siglip['positions']), -2),
    decoder=hf.decoder_config(model['llm'], model['token_ids']['llm_vocab_size']),
    flow_head=flow_head_config(head, layers, head['intermediate_size'], rotary='index'),
    vae=vae or dataclasses.replace(WAN21_VAE, latent_mean=(), latent_std=()),
    design='late_fusion',
    patch=options['patch_size'],
    layout='raster',
  )


# Tensors that one pixel variant alone has.
VARIANTS = {
  'tuna_2': ('vision_encoder.', 'mask_token'),
  'tuna_r': ('vision_model.', 'siglip_proj.'),
}


def pixel_config(model: Mapping, variant: str) -> TunaConfig:
  """Tuna-2 or Tuna-R of config['model']."""
  head, siglip, jit = model['flow_head'], model['siglip'], model['jit']
  vision = None
  if variant == 'tuna_r':
    side = math.isqrt(siglip['positions'])
    vision = vision_config(siglip, side, siglip['siglip_feature_layer'])
  noise = model['tuna_model']['noise_scale']
  return tuna(
    vision=vision,
    decoder=hf.decoder_config(model['llm'], model['token_ids']['llm_vocab_size']),
    flow_head=flow_head_config(head, head['num_layers'], head['intermediate_size']),
    vae=None,
    design='pixel_encoder' if vision else 'pixel',
    patch=model['patch_size'],
    layout='raster',
    path=PathConfig('clean', noise, jit['P_mean'], jit['P_std']),
  )


def load_pixel(case, variant: str):
  """(config, parameters) of one variant, from weights that both share."""
  config = pixel_config(case.config['model'], variant)
  others = tuple(prefix for name, own in VARIANTS.items() if name != variant for prefix in own)
  weights = {name: value for name, value in case.weights.items() if not name.startswith(others)}
  return config, load_tuna(config, weights)


def flow_head_config(
  config: Mapping, layers: int, mlp_dim: int, rotary: str = 'grid'
) -> FlowHeadConfig:
  """hidden_size, num_attention_heads, num_key_value_heads, head_dim (else their quotient)."""
  heads = config['num_attention_heads']
  return FlowHeadConfig(
    num_layers=layers,
    dim=config['hidden_size'],
    num_heads=heads,
    num_kv_heads=config['num_key_value_heads'],
    head_dim=config.get('head_dim') or config['hidden_size'] // heads,
    mlp_dim=mlp_dim,
    rotary=rotary,
  )


def flow_head_only(head_dim: int) -> TunaConfig:
  """A model whose flow head has heads of this size; nothing else matters."""
  return tuna(flow_head=FlowHeadConfig(**{**_TOWER, 'head_dim': head_dim}))


def connector(config: Mapping, time_frequencies: int) -> TunaConfig:
  """The connector from clip_latent_dim to hidden_size, and the time embedding of that width."""
  width, features = config['hidden_size'], config['clip_latent_dim']
  vision = VisionConfig(**{**_TOWER, 'dim': features, 'head_dim': features}, grid=2)
  flow_head = FlowHeadConfig(**{**_TOWER, 'dim': width})
  return tuna(vision=vision, flow_head=flow_head, time_frequencies=time_frequencies)


def model_config(model: Mapping, weights: Mapping[str, Lazy]) -> TunaConfig:
  """The whole model of config['model'].

  What that leaves open, the vocabulary and the number of timestep frequencies, is read off the
  weights.
  """
  if 'showo' in model:
    return showo2_config(model)
  options = model['tuna_model']
  _check(options, *(name for name in ONLY if name in options))
  llm = model['llm']
  return tuna(
    vision=vision_config(
      model['siglip'], options['siglip_image_size'], options['siglip_feature_layer']
    ),
    decoder=hf.decoder_config(llm, _rows(weights, 'tuna.model.embed_tokens.weight', 0)),
    flow_head=flow_head_config(
      options,
      options['flow_head_num'],
      options.get('intermediate_size') or llm['intermediate_size'],
    ),
    vae=vae_config({'z_dim': options['image_latent_dim'], **model['vae']}),
    time_frequencies=_rows(weights, 'time_embed.mlp.0.weight', 1),
  )


def load_tuna(config: TunaConfig, weights: Mapping[str, Lazy], *parts: str):
  """Our parameters from official names: all, or those below `parts` such as 'flow_head/bridge'."""
  shapes = _tuna_shapes(config)
  wanted = tree.unflatten(
    {
      name: shape
      for name, shape in tree.flatten(shapes).items()
      if not parts or name.startswith(tuple(f'{part}/' for part in parts))
    }
  )
  return convert(designs.official(config), weights, wanted)


def load_vae(config: VaeConfig, weights: Mapping[str, Lazy], *parts: str):
  """The VAE's parameters: all, or top-level `parts`."""
  shapes = _vae_shapes(config)
  return convert(tables.wan_vae(config), weights, {p: shapes[p] for p in parts or shapes})


def load_whole(model: Mapping, weights: Mapping[str, Lazy]):
  """(config, our parameters, the VAE's) of config['model']."""
  config = model_config(model, weights)
  return config, load_tuna(config, weights), load_vae(config.vae, weights)


def layer(params, index: int):
  """Layer `index` of stacked parameters."""
  return tree.unflatten({name: leaf[index] for name, leaf in tree.flatten(params).items()})


def _rows(weights, name: str, axis: int) -> int:
  if name not in weights:
    raise CheckpointError(f'{name}: missing')
  return weights[name].shape[axis]


def _check(options: Mapping, *names: str):
  for name in names:
    if name in options and options[name] not in ONLY[name]:
      raise UserError(f'{name}={options[name]!r}: this package has only {ONLY[name][0]!r}')
