"""Our leaf names beside everybody else's tensor names: one table per source, read both ways.

A line is (our path, torch name[, adaptation of weights/adapt.py]). `{a,b}` on both sides stands for
two rows. `{}` is an index; an index that only torch has is a stacked axis of ours. Two rules do the
rest: a leaf called `kernel` (or `lora_a`, `lora_b`) moves [out, in, *window] to [*window, in, out],
and shapes must then agree exactly.

Names and shapes: docs/architecture.md 11.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import string

from tuna_jax.config import DecoderConfig, TunaConfig, VaeConfig, VisionConfig
from tuna_jax.weights.adapt import Exact, FreshUnlessEqual, PadRows, ResampleGrid, Units, Window

_DECODER = """
decoder/embed/embedding                       ${p}model.embed_tokens.weight                rows
decoder/norm/scale                            ${p}model.norm.weight
decoder/layers/{input,post}_norm/scale        ${l}.{input,post_attention}_layernorm.weight
decoder/layers/attn/{q,k,v}_proj/kernel       ${l}.self_attn.{q,k,v}_proj.weight
decoder/layers/attn/{q,k,v}_proj/bias         ${l}.self_attn.{q,k,v}_proj.bias
decoder/layers/attn/o_proj/kernel             ${l}.self_attn.o_proj.weight
decoder/layers/mlp/{gate,up,down}_proj/kernel ${l}.mlp.{gate,up,down}_proj.weight
"""
_LM_HEAD = 'decoder/lm_head/kernel  ${p}lm_head.weight  rows'

_TOWER = """
vision/patch_embed/kernel                         ${embed}.weight  patch
vision/patch_embed/bias                           ${embed}.bias    bias
vision/position_embed/embedding                   ${place}.weight  grid
vision/layers/{norm1,norm2}/{scale,bias}          ${l}.{layer_norm1,layer_norm2}.{weight,bias}
vision/layers/attn/{q,k,v,out}_proj/{kernel,bias} ${l}.self_attn.{q,k,v,out}_proj.{weight,bias}
vision/layers/mlp/{fc1,fc2}/{kernel,bias}         ${l}.mlp.{fc1,fc2}.{weight,bias}
"""

_DINOV3 = """
vision/patch_embed/kernel                         embeddings.patch_embeddings.weight  patch
vision/patch_embed/bias                           embeddings.patch_embeddings.bias    bias
vision/{cls_token,register_tokens}                embeddings.{cls_token,register_tokens}
vision/layers/{norm1,norm2}/{scale,bias}          layer.{}.{norm1,norm2}.{weight,bias}
vision/layers/attn/k_proj/kernel                  layer.{}.attention.k_proj.weight
vision/layers/attn/{q,v,out}_proj/{kernel,bias}   layer.{}.attention.{q,v,o}_proj.{weight,bias}
vision/layers/{layer_scale1,layer_scale2}         layer.{}.{layer_scale1,layer_scale2}.lambda1
vision/layers/mlp/{gate,up,down}_proj/{kernel,bias} layer.{}.mlp.{gate,up,down}_proj.{weight,bias}
"""
_DINOV3_NORM = 'vision/norm/{scale,bias}  norm.{weight,bias}'

CONNECTOR = """
connector/norm/scale                            siglip_proj.0.weight
connector/{fc1,fc2}/{kernel,bias}               siglip_proj.{1,3}.{weight,bias}
"""

_GENERATION = """
time_embed/{fc1,fc2}/{kernel,bias}              time_embed.mlp.{0,2}.{weight,bias}
flow_head/layers/{input,post}_norm/scale        ${l}.{input,post_attention}_layernorm.weight
flow_head/layers/attn/{q,k,v,o}_proj/kernel     ${l}.self_attn.{q,k,v,o}_proj.weight
flow_head/layers/attn/{q,k}_norm/scale          ${l}.self_attn.{q,k}_norm.weight
flow_head/layers/mlp/{gate,up,down}_proj/kernel ${l}.mlp.{gate,up,down}_proj.weight
flow_head/layers/adaln/{kernel,bias}            ${l}.adaLN_modulation.1.{weight,bias}
flow_head/final/norm/scale                      diffusion_head_b.norm_final.weight
flow_head/final/adaln/{kernel,bias}             diffusion_head_b.adaLN_modulation.1.{weight,bias}
flow_head/final/linear/{kernel,bias}            diffusion_head_b.linear.{weight,bias}
"""

# The VAE. h: its half. o, b: a block or resample of ours and of theirs. m: the middle.
_WAN_BLOCK = """
${h}/${o}/{norm1,norm2}/scale                       ${b}.residual.{0,3}.gamma                units3
${h}/${o}/{conv1,conv2}/{kernel,bias}               ${b}.residual.{2,6}.{weight,bias}
${h}/${o}/shortcut/kernel                           ${b}.shortcut.weight                     units3
${h}/${o}/shortcut/bias                             ${b}.shortcut.bias
"""
_WAN_HALF = """
${h}/middle/{block_0,block_1}/{norm1,norm2}/scale   ${h}.middle.{0,2}.residual.{0,3}.gamma   units3
${h}/middle/{block_0,block_1}/conv1/{kernel,bias}   ${h}.middle.{0,2}.residual.2.{weight,bias}
${h}/middle/{block_0,block_1}/conv2/{kernel,bias}   ${h}.middle.{0,2}.residual.6.{weight,bias}
${h}/middle/attn/norm/scale                         ${h}.middle.1.norm.gamma                 units2
${h}/middle/attn/{qkv,proj}/kernel                  ${h}.middle.1.{to_qkv,proj}.weight       units2
${h}/middle/attn/{qkv,proj}/bias                    ${h}.middle.1.{to_qkv,proj}.bias
${h}/{conv_in,conv_out}/{kernel,bias}               ${h}.{conv1,head.2}.{weight,bias}
${h}/norm_out/scale                                 ${h}.head.0.gamma                        units3
"""
_WAN_QUANT = """
{quant,post_quant}/kernel  {conv1,conv2}.weight  units3
{quant,post_quant}/bias    {conv1,conv2}.bias
"""
_RESAMPLE = '${h}/${o}/{conv,time_conv}/{kernel,bias}  ${b}.{resample.1,time_conv}.{weight,bias}'

_DIFFUSERS_BLOCK = """
${h}/${o}/{norm1,norm2}/scale                       ${b}.{norm1,norm2}.gamma                 units3
${h}/${o}/{conv1,conv2}/{kernel,bias}               ${b}.{conv1,conv2}.{weight,bias}
${h}/${o}/shortcut/kernel                           ${b}.conv_shortcut.weight                units3
${h}/${o}/shortcut/bias                             ${b}.conv_shortcut.bias
"""
_DIFFUSERS_HALF = """
${h}/middle/block_{}/{norm1,norm2}/scale            ${m}.resnets.{}.{norm1,norm2}.gamma      units3
${h}/middle/block_{}/{conv1,conv2}/{kernel,bias}    ${m}.resnets.{}.{conv1,conv2}.{weight,bias}
${h}/middle/attn/norm/scale                         ${m}.attentions.0.norm.gamma             units2
${h}/middle/attn/{qkv,proj}/kernel                  ${m}.attentions.0.{to_qkv,proj}.weight   units2
${h}/middle/attn/{qkv,proj}/bias                    ${m}.attentions.0.{to_qkv,proj}.bias
${h}/{conv_in,conv_out}/{kernel,bias}               ${h}.{conv_in,conv_out}.{weight,bias}
${h}/norm_out/scale                                 ${h}.norm_out.gamma                      units3
"""
_DIFFUSERS_QUANT = """
{quant,post_quant}/kernel  {quant_conv,post_quant_conv}.weight  units3
{quant,post_quant}/bias    {quant_conv,post_quant_conv}.bias
"""


@dataclasses.dataclass(frozen=True)
class Row:
  """One leaf of ours, or all the leaves that differ by indices, and its tensor or tensors."""

  ours: str
  torch: str
  adapt: Exact = Exact()

  def __post_init__(self):
    if self.torch.count('{}') - self.ours.count('{}') not in (0, 1):
      raise ValueError(
        f'{self.ours} <-> {self.torch}: torch has as many indices as ours, or one more (stacked)'
      )
    if self.stacked and '{}' in self.ours:
      raise ValueError(f'{self.ours} <-> {self.torch}: a stacked axis beside other indices')

  @property
  def stacked(self) -> bool:
    return self.torch.count('{}') > self.ours.count('{}')

  def match(self, leaf: str) -> tuple[str, ...] | None:
    """The indices in `leaf`, or None if this row is not about it."""
    found = re.fullmatch(r'(\d+)'.join(re.escape(part) for part in self.ours.split('{}')), leaf)
    return found.groups() if found else None


@dataclasses.dataclass(frozen=True)
class Drop:
  """Tensors left out on purpose: `pattern` is searched in the name without WRAPPERS. With `first`,
  only those whose number (the pattern's group) is at least that."""

  pattern: str
  reason: str
  first: int | None = None

  def match(self, name: str) -> bool:
    found = re.search(self.pattern, name)
    return bool(found) and (self.first is None or int(found[1]) >= self.first)


@dataclasses.dataclass(frozen=True)
class Table:
  """A source. `prefixes` may stand before any name; `aliases` are second names (name, of) of one
  tensor, equal where present."""

  source: str
  rows: tuple[Row, ...]
  drops: tuple[Drop, ...] = ()
  prefixes: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()


WRAPPERS = re.compile(r'^(module\.)+|_orig_mod\.')  # of DistributedDataParallel and torch.compile
BUFFERS = (
  Drop(r'(^|\.)(rotary_emb\.)?inv_freq$', 'a rotary table, computed'),
  Drop(r'(^|\.)(image_)?position_ids$', 'an index buffer, computed'),
)
_UNITS = {'units2': Units(2), 'units3': Units(3)}


def bare(name: str) -> str:
  """The name without what DistributedDataParallel and torch.compile put into it."""
  return WRAPPERS.sub('', WRAPPERS.sub('', name))


def rows(text: str, **values) -> tuple[Row, ...]:
  """Rows of the lines: text values replace `${name}`, the others are what an adaptation's name
  means."""
  adapt = {name: value for name, value in values.items() if not isinstance(value, str)}
  words = {name: value for name, value in values.items() if isinstance(value, str)}
  lines = string.Template(text).substitute(words).strip().splitlines()
  return tuple(
    Row(o, t, *(adapt[name] for name in rest))
    for ours, torch, *rest in map(str.split, lines)
    for o, t in _expand(ours, torch)
  )


def tuna_official(config: TunaConfig) -> Table:
  """Released Tuna checkpoints and the training callback's (docs/architecture.md 11.1, 11.2)."""
  return Table(
    'official Tuna',
    trunk(config, 'tuna.') + tower('vision_model.', Units(2), Exact(), Exact()) + rows(CONNECTOR),
    drops=(Drop(r'(^|\.)vae\.', 'the VAE comes from its own file'), *BUFFERS),
    prefixes=('tuna_model.',),
    aliases=tied(config.decoder, 'tuna.'),
  )


def trunk(config: TunaConfig, prefix: str) -> tuple[Row, ...]:
  """What the official checkpoints of every design share: decoder, time embedding and flow head."""
  return _decoder(config.decoder, prefix) + rows(_GENERATION, l='diffusion_head_a.{}')


def qwen2(config: DecoderConfig) -> Table:
  """Qwen2.5 as transformers' Qwen2ForCausalLM."""
  return Table('Qwen2.5', _decoder(config, ''), BUFFERS, aliases=tied(config, ''))


def vision(config: VisionConfig, patch: int = 1) -> Table:
  """The public tower that `config.encoder` names. patch: as in `siglip2`."""
  return {'siglip': siglip2, 'dinov3': dinov3}[config.encoder](config, patch)


def dinov3(config: VisionConfig, patch: int = 1) -> Table:
  """DINOv3 with SwiGLU as transformers' DINOv3ViTModel, up to the layers we keep: as its files are,
  or with `model.` before the layers, as its class has them since transformers 5. patch: as in
  `siglip2`."""
  own = FreshUnlessEqual(Units(2) if patch == 1 else Window(patch))
  found = rows(_DINOV3, patch=own, bias=FreshUnlessEqual(Exact()))
  drops = (Drop(r'mask_token$', 'of its training'),)
  drops += (Drop(r'(?:^|\.)layer\.(\d+)\.', 'past the feature layer', config.num_layers),)
  if config.final_norm:
    found += rows(_DINOV3_NORM)
  else:
    drops += (Drop(r'^norm\.', 'the features are read before the final norm'),)
  return Table('DINOv3 vision', found, drops, prefixes=('model.',))


def siglip2(config: VisionConfig, patch: int = 1) -> Table:
  """SigLIP-2 (fixed resolution) as transformers' SiglipModel or SiglipVisionModel, up to the layers
  we keep. patch: cells of a token's side; a tower that sees pixels keeps SigLIP's own embedding."""
  own = Units(2) if patch == 1 else Window(patch)
  layer = r'^(?:vision_model\.)?encoder\.layers\.(\d+)\.'
  after = r'^(vision_model\.)?(post_layernorm|head)\.'
  return Table(
    'SigLIP-2 vision',
    tower('', FreshUnlessEqual(own), FreshUnlessEqual(Exact()), ResampleGrid()),
    drops=(
      Drop(r'^(text_model\.|logit_(scale|bias)$)', 'the text tower is not part of Tuna'),
      Drop(after, 'Tuna reads the features before the final norm'),
      Drop(layer, 'past the feature layer', config.num_layers),
      *BUFFERS,
    ),
    prefixes=('vision_model.',),
  )


def wan_vae(config: VaeConfig) -> Table:
  """Wan2.2_VAE.pth, Wan2.1_VAE.pth, and the VAE in an official training checkpoint
  (docs/architecture.md 11.3, docs/showo2.md 2)."""
  model = r'(tuna|siglip_proj|time_embed|diffusion_head_[ab])\.'
  found = rows(_WAN_QUANT, **_UNITS)
  for half, levels in (('encoder', 'downsamples'), ('decoder', 'upsamples')):
    at = f'{half}.{levels}'
    found += rows(_WAN_HALF, h=half, **_UNITS)
    if config.residual:
      own = f'{at}.{{}}.{levels}'
      found += _level(_WAN_BLOCK, half, '{}', f'{own}.{{}}', f'{own}.{_blocks(config, half)}')
    else:
      found += _flat_levels(_WAN_BLOCK, config, half, at)
  return Table(
    f'Wan {"2.2" if config.residual else "2.1"} VAE',
    found,
    drops=(
      Drop(rf'^(tuna_model\.)*{model}', 'not the VAE'),
      Drop(r'^(tuna_model\.)*vision_model\.(embeddings|encoder)\.', 'not the VAE'),
    ),
    prefixes=('tuna_model.', 'vision_model.', 'vae.', 'model.'),
  )


def diffusers_vae(config: VaeConfig) -> Table:
  """diffusers' AutoencoderKLWan in its Wan 2.2 form (is_residual=True), or in that of Wan 2.1."""
  found = rows(_DIFFUSERS_QUANT, **_UNITS)
  for half, levels, sampler in (
    ('encoder', 'down_blocks', 'downsampler'),
    ('decoder', 'up_blocks', 'upsampler' if config.residual else 'upsamplers.0'),
  ):
    at = f'{half}.{levels}'
    found += rows(_DIFFUSERS_HALF, h=half, m=f'{half}.mid_block', **_UNITS)
    if config.residual or half == 'decoder':
      found += _level(
        _DIFFUSERS_BLOCK, half, '{}', f'{at}.{{}}.resnets.{{}}', f'{at}.{{}}.{sampler}'
      )
    else:
      found += _flat_levels(_DIFFUSERS_BLOCK, config, half, at)
  return Table('diffusers AutoencoderKLWan', found)


def _blocks(config: VaeConfig, half: str) -> int:
  return config.encoder_blocks if half == 'encoder' else config.decoder_blocks


def _level(text: str, half: str, level, block: str, resample: str, number='{}') -> tuple[Row, ...]:
  """The rows of a level's blocks and of its resample, by their names."""
  own = {'encoder': 'down', 'decoder': 'up'}[half]
  return rows(text, h=half, o=f'level_{level}/block_{number}', b=block, **_UNITS) + rows(
    _RESAMPLE, h=half, o=f'level_{level}/{own}', b=resample
  )


def _flat_levels(text: str, config: VaeConfig, half: str, at: str) -> tuple[Row, ...]:
  """The levels of Wan 2.1, whose blocks and resamples lie in one list `at`."""
  blocks, found = _blocks(config, half), ()
  for level in range(len(config.dim_mult)):
    first = level * (blocks + 1)
    for block in range(blocks):
      found += _level(text, half, level, f'{at}.{first + block}', f'{at}.{first + blocks}', block)
  return tuple(dict.fromkeys(found))


def _decoder(config: DecoderConfig, prefix: str) -> tuple[Row, ...]:
  text = _DECODER if config.tied else _DECODER + _LM_HEAD
  vocabulary = PadRows(config.vocab_size)
  return rows(text, p=prefix, l=f'{prefix}model.layers.{{}}', rows=vocabulary)


def tied(config: DecoderConfig, prefix: str) -> tuple[tuple[str, str], ...]:
  """The head is a second name of the embedding where the config ties them."""
  return ((f'{prefix}lm_head.weight', f'{prefix}model.embed_tokens.weight'),) if config.tied else ()


def tower(prefix: str, patch: Exact, bias: Exact, grid: Exact, **names: str) -> tuple[Row, ...]:
  """The vision tower under SigLIP's names, or others for `embed`, `place` and `l` (a layer)."""
  theirs = {
    'embed': f'{prefix}embeddings.patch_embedding',
    'place': f'{prefix}embeddings.position_embedding',
    'l': f'{prefix}encoder.layers.{{}}',
  }
  return rows(_TOWER, **{**theirs, **names}, patch=patch, bias=bias, grid=grid)


def _expand(ours: str, torch: str):
  """Pairs with every `{a,b}` written out, the n-th group of one side with the n-th of the other."""
  sides = [re.split(r'\{([^{}]+)\}', side) for side in (ours, torch)]  # text, group, text, ...
  choices = [[group.split(',') for group in side[1::2]] for side in sides]
  if [len(c) for c in choices[0]] != [len(c) for c in choices[1]]:
    raise ValueError(f'{ours} <-> {torch}: the brace groups differ')
  for picks in itertools.product(*(range(len(c)) for c in choices[0])):
    yield tuple(
      ''.join(
        text + (choices[s][i][picks[i]] if i < len(picks) else '')
        for i, text in enumerate(side[0::2])
      )
      for s, side in enumerate(sides)
    )
