"""Our leaf names beside everybody else's tensor names: one table a source, read both ways.

A row is (our path, torch name[, adaptation]). `{a,b}` on both sides stands for two rows. `{}` is an
index; an index that only torch has is a stacked axis of ours. Two rules do the rest: a leaf called
`kernel` moves [out, in, *window] to [*window, in, out], and shapes must then agree exactly. The
adaptations say what else may differ:

  Units(n)         torch keeps n trailing axes of size 1
  PadRows(real)    vocabulary: rows past `real` are not carried; ours are zero
  ResampleGrid()   a square position table of another size is resized
  FreshUnlessEqual fresh, by `weights.fresh`, unless the checkpoint has our shape; the leaves of a module together

Names and shapes: docs/architecture.md 11.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np

from tuna_jax.config import DecoderConfig, TunaConfig, UserError, VaeConfig, VisionConfig
from tuna_jax.models.vision import cubic_weights
from tuna_jax.weights.tensors import Lazy


class Misfit(Exception):
  """A tensor's shape does not suit its leaf."""


@dataclasses.dataclass(frozen=True)
class Exact:
  """The shapes are equal."""

  def to_ours(self, value: Lazy, shape) -> tuple[Lazy | None, str]:
    """`value` at `shape` (torch's axis order) and a note on what was changed. None: the leaf must
    be fresh.
    """
    if value.shape != tuple(shape):
      raise Misfit(f'found {list(value.shape)}, wanted {list(shape)}')
    return value, ''

  def to_torch(self, value: Lazy) -> Lazy:
    """What `to_ours` would accept to give `value`."""
    return value


@dataclasses.dataclass(frozen=True)
class Units(Exact):
  """Torch keeps `count` trailing axes of size 1: norm gains [C, 1, 1, 1], pointwise convolutions
  [out, in, 1, 1].
  """

  count: int

  def to_ours(self, value, shape):
    ones = (1,) * self.count
    if value.shape != (*shape, *ones):
      raise Misfit(f'found {list(value.shape)}, wanted {[*shape, *ones]}')
    unit = (slice(0, 1),) * self.count
    return Lazy(
      tuple(shape),
      value.dtype,
      lambda index: value.read((*index, *unit)).reshape([s.stop - s.start for s in index]),
    ), ''

  def to_torch(self, value):
    rank = len(value.shape)
    return Lazy(
      (*value.shape, *(1,) * self.count),
      value.dtype,
      lambda index: value.read(index[:rank]).reshape([s.stop - s.start for s in index]),
    )


@dataclasses.dataclass(frozen=True)
class PadRows(Exact):
  """Both sides pad the vocabulary differently: the first `real` rows are carried, ours beyond them
  are zero.
  """

  real: int

  def to_ours(self, value, shape):
    if value.shape[1:] != tuple(shape[1:]) or value.shape[0] < self.real:
      raise Misfit(
        f'found {list(value.shape)}, wanted at least [{self.real}, {", ".join(map(str, shape[1:]))}]'
      )

    def read(index):
      rows, *rest = index
      stop = max(rows.start, min(rows.stop, self.real))
      carried = value.read((slice(rows.start, stop), *rest)) if stop > rows.start else None
      if stop == rows.stop:
        return carried
      zeros = np.zeros((rows.stop - stop, *(s.stop - s.start for s in rest)), value.dtype)
      return zeros if carried is None else np.concatenate([carried, zeros])

    extra = value.shape[0] - self.real
    return Lazy(
      tuple(shape), value.dtype, read
    ), f'dropped {extra} rows from {self.real} on' if extra else ''

  def to_torch(self, value):
    return Lazy((self.real, *value.shape[1:]), value.dtype, value.read)


@dataclasses.dataclass(frozen=True)
class ResampleGrid(Exact):
  """A learned table over a square grid of another side: bicubic with a = -0.75, as the tower itself
  resizes.
  """

  def to_ours(self, value, shape):
    if value.shape == tuple(shape):
      return value, ''
    old, new = math.isqrt(value.shape[0]), math.isqrt(shape[0])
    if (
      len(value.shape) != 2
      or value.shape[1] != shape[1]
      or old * old != value.shape[0]
      or new * new != shape[0]
    ):
      raise Misfit(
        f'found {list(value.shape)}, wanted {list(shape)} or another square grid of that width'
      )

    def read(index):
      table = value[()].astype(np.float64).reshape(old, old, -1)
      weight = np.asarray(cubic_weights(np.arange(new), np.asarray(new), old), np.float64)
      resized = np.einsum('ai,bj,ijd->abd', weight, weight, table).reshape(shape)
      return resized[index].astype(np.float32)

    return Lazy(
      tuple(shape), np.dtype(np.float32), read
    ), f'resampled from {old}x{old} to {new}x{new}'


@dataclasses.dataclass(frozen=True)
class FreshUnlessEqual(Exact):
  """SigLIP's patch embedding sees 16x16 RGB, ours one latent cell: fresh unless it already has our
  shape.
  """

  equal: Exact

  def to_ours(self, value, shape):
    try:
      return self.equal.to_ours(value, shape)
    except Misfit as misfit:
      return None, str(misfit)

  def to_torch(self, value):
    return self.equal.to_torch(value)


@dataclasses.dataclass(frozen=True)
class Row:
  """One leaf of ours (or all the leaves that differ by indices) and its tensor or tensors."""

  ours: str
  torch: str
  adapt: Exact = Exact()

  def __post_init__(self):
    if self.ours.count('{}') not in (self.torch.count('{}'), self.torch.count('{}') - 1):
      raise UserError(
        f'{self.ours} <-> {self.torch}: torch has as many indices as ours, or one more (stacked)'
      )
    if self.stacked and '{}' in self.ours:
      raise UserError(f'{self.ours} <-> {self.torch}: a stacked axis beside other indices')

  @property
  def stacked(self) -> bool:
    return self.torch.count('{}') > self.ours.count('{}')

  def match(self, leaf: str) -> tuple[str, ...] | None:
    """The indices in `leaf`, or None if this row is not about it."""
    found = re.fullmatch(r'(\d+)'.join(re.escape(part) for part in self.ours.split('{}')), leaf)
    return found.groups() if found else None


@dataclasses.dataclass(frozen=True)
class Drop:
  """Tensors left out on purpose. `pattern` is searched in the raw name; `first`: only where its
  group is at least that.
  """

  pattern: str
  reason: str
  first: int | None = None

  def match(self, name: str) -> bool:
    found = re.search(self.pattern, name)
    return bool(found) and (self.first is None or int(found[1]) >= self.first)


@dataclasses.dataclass(frozen=True)
class Table:
  """A source. `prefixes` may stand before any name; `aliases` are second names {name: of}, equal
  where present.
  """

  source: str
  rows: tuple[Row, ...]
  drops: tuple[Drop, ...] = ()
  prefixes: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()


def rows(*lines) -> tuple[Row, ...]:
  """Rows from (ours, torch[, adaptation]) lines, `{a,b}` written out."""
  return tuple(Row(o, t, *adapt) for ours, torch, *adapt in lines for o, t in _expand(ours, torch))


def tuna_official(config: TunaConfig) -> Table:
  """Released Tuna checkpoints and the training callback's (docs/architecture.md 11.1, 11.2)."""
  return Table(
    'official Tuna',
    trunk(config, 'tuna.') + _vision('vision_model.', Units(2), Exact()) + rows(*CONNECTOR),
    drops=(Drop(r'(^|\.)vae\.', 'the VAE comes from its own file'), *BUFFERS),
    prefixes=('module.', 'tuna_model.'),
    aliases=tied(config.decoder, 'tuna.'),
  )


def trunk(config: TunaConfig, prefix: str) -> tuple[Row, ...]:
  """What the official checkpoints of every design share: decoder, time embedding and flow head."""
  return _decoder(config.decoder, prefix) + rows(
    ('time_embed/{fc1,fc2}/kernel', 'time_embed.mlp.{0,2}.weight'),
    ('time_embed/{fc1,fc2}/bias', 'time_embed.mlp.{0,2}.bias'),
    (
      'flow_head/layers/{input,post}_norm/scale',
      'diffusion_head_a.{}.{input,post_attention}_layernorm.weight',
    ),
    (
      'flow_head/layers/attn/{q,k,v,o}_proj/kernel',
      'diffusion_head_a.{}.self_attn.{q,k,v,o}_proj.weight',
    ),
    ('flow_head/layers/attn/{q,k}_norm/scale', 'diffusion_head_a.{}.self_attn.{q,k}_norm.weight'),
    (
      'flow_head/layers/mlp/{gate,up,down}_proj/kernel',
      'diffusion_head_a.{}.mlp.{gate,up,down}_proj.weight',
    ),
    (
      'flow_head/layers/adaln/{kernel,bias}',
      'diffusion_head_a.{}.adaLN_modulation.1.{weight,bias}',
    ),
    ('flow_head/final/norm/scale', 'diffusion_head_b.norm_final.weight'),
    ('flow_head/final/adaln/{kernel,bias}', 'diffusion_head_b.adaLN_modulation.1.{weight,bias}'),
    ('flow_head/final/linear/{kernel,bias}', 'diffusion_head_b.linear.{weight,bias}'),
  )


def qwen2(config: DecoderConfig) -> Table:
  """Qwen2.5 as transformers' Qwen2ForCausalLM."""
  return Table(
    'Qwen2.5', _decoder(config, ''), drops=BUFFERS, prefixes=('module.',), aliases=tied(config, '')
  )


def siglip2(config: VisionConfig) -> Table:
  """SigLIP-2 (fixed resolution) as transformers' SiglipModel or SiglipVisionModel, up to the layers
  we keep.
  """
  return Table(
    'SigLIP-2 vision',
    _vision('', FreshUnlessEqual(Units(2)), ResampleGrid()),
    drops=(
      Drop(r'^(text_model\.|logit_(scale|bias)$)', 'the text tower is not part of Tuna'),
      Drop(
        r'^(vision_model\.)?(post_layernorm|head)\.',
        'Tuna reads the features before the final norm',
      ),
      Drop(
        r'^(?:vision_model\.)?encoder\.layers\.(\d+)\.', 'past the feature layer', config.num_layers
      ),
      *BUFFERS,
    ),
    prefixes=('module.', 'vision_model.'),
  )


def wan_vae(config: VaeConfig) -> Table:
  """Wan2.2_VAE.pth and the VAE in an official training checkpoint (docs/architecture.md 11.3)."""
  block = (
    ('norm1/scale', '0.gamma', Units(3)),
    ('conv1/{kernel,bias}', '2.{weight,bias}'),
    ('norm2/scale', '3.gamma', Units(3)),
    ('conv2/{kernel,bias}', '6.{weight,bias}'),
  )
  lines = []
  for part, levels, last, resample in (
    ('encoder', 'downsamples', config.encoder_blocks, 'down'),
    ('decoder', 'upsamples', config.decoder_blocks, 'up'),
  ):
    at = f'{part}.{levels}.{{}}.{levels}.{{}}'
    lines += [(f'{part}/level_{{}}/block_{{}}/{o}', f'{at}.residual.{t}', *a) for o, t, *a in block]
    lines += _shortcut(f'{part}/level_{{}}/block_{{}}/shortcut', f'{at}.shortcut')
    last_at = f'{part}.{levels}.{{}}.{levels}.{last}'
    lines += [
      (
        f'{part}/level_{{}}/{resample}/conv/{{kernel,bias}}',
        f'{last_at}.resample.1.{{weight,bias}}',
      ),
      (
        f'{part}/level_{{}}/{resample}/time_conv/{{kernel,bias}}',
        f'{last_at}.time_conv.{{weight,bias}}',
      ),
      (f'{part}/conv_in/{{kernel,bias}}', f'{part}.conv1.{{weight,bias}}'),
      (f'{part}/norm_out/scale', f'{part}.head.0.gamma', Units(3)),
      (f'{part}/conv_out/{{kernel,bias}}', f'{part}.head.2.{{weight,bias}}'),
    ]
    for ours, torch in (('block_0', '0'), ('block_1', '2')):
      lines += [
        (f'{part}/middle/{ours}/{o}', f'{part}.middle.{torch}.residual.{t}', *a)
        for o, t, *a in block
      ]
    lines += _vae_attention(f'{part}/middle/attn', f'{part}.middle.1')
  lines += [
    line
    for ours, torch in (('quant', 'conv1'), ('post_quant', 'conv2'))
    for line in _shortcut(ours, torch)
  ]
  return Table(
    'Wan 2.2 VAE',
    rows(*lines),
    drops=(
      Drop(
        r'^(module\.|tuna_model\.)*(tuna|siglip_proj|time_embed|diffusion_head_[ab])\.',
        'not the VAE',
      ),
      Drop(r'^(module\.|tuna_model\.)*vision_model\.(embeddings|encoder)\.', 'not the VAE'),
    ),
    prefixes=('module.', 'tuna_model.', 'vision_model.', 'vae.', 'model.'),
  )


def diffusers_vae(config: VaeConfig) -> Table:
  """diffusers' AutoencoderKLWan in its Wan 2.2 form (is_residual=True)."""
  del config  # diffusers' names do not depend on the number of blocks
  block = (
    ('norm1/scale', 'norm1.gamma', Units(3)),
    ('conv1/{kernel,bias}', 'conv1.{weight,bias}'),
    ('norm2/scale', 'norm2.gamma', Units(3)),
    ('conv2/{kernel,bias}', 'conv2.{weight,bias}'),
  )
  lines = []
  for part, levels, sampler, resample in (
    ('encoder', 'down_blocks', 'downsampler', 'down'),
    ('decoder', 'up_blocks', 'upsampler', 'up'),
  ):
    at = f'{part}.{levels}.{{}}'
    lines += [
      (f'{part}/level_{{}}/block_{{}}/{o}', f'{at}.resnets.{{}}.{t}', *a) for o, t, *a in block
    ]
    lines += _shortcut(f'{part}/level_{{}}/block_{{}}/shortcut', f'{at}.resnets.{{}}.conv_shortcut')
    lines += [
      (
        f'{part}/level_{{}}/{resample}/conv/{{kernel,bias}}',
        f'{at}.{sampler}.resample.1.{{weight,bias}}',
      ),
      (
        f'{part}/level_{{}}/{resample}/time_conv/{{kernel,bias}}',
        f'{at}.{sampler}.time_conv.{{weight,bias}}',
      ),
      (f'{part}/{{conv_in,conv_out}}/kernel', f'{part}.{{conv_in,conv_out}}.weight'),
      (f'{part}/{{conv_in,conv_out}}/bias', f'{part}.{{conv_in,conv_out}}.bias'),
      (f'{part}/norm_out/scale', f'{part}.norm_out.gamma', Units(3)),
    ]
    lines += [
      (f'{part}/middle/block_{{}}/{o}', f'{part}.mid_block.resnets.{{}}.{t}', *a)
      for o, t, *a in block
    ]
    lines += _vae_attention(f'{part}/middle/attn', f'{part}.mid_block.attentions.0')
  lines += [line for name in ('quant', 'post_quant') for line in _shortcut(name, f'{name}_conv')]
  return Table('diffusers AutoencoderKLWan', rows(*lines))


CONNECTOR = (
  ('connector/norm/scale', 'siglip_proj.0.weight'),
  ('connector/{fc1,fc2}/kernel', 'siglip_proj.{1,3}.weight'),
  ('connector/{fc1,fc2}/bias', 'siglip_proj.{1,3}.bias'),
)


BUFFERS = (
  Drop(r'(^|\.)(rotary_emb\.)?inv_freq$', 'a rotary table, computed'),
  Drop(r'(^|\.)(image_)?position_ids$', 'an index buffer, computed'),
)


def _decoder(config: DecoderConfig, prefix: str) -> tuple[Row, ...]:
  layer = f'{prefix}model.layers.{{}}'
  head = (
    ()
    if config.tied
    else (('decoder/lm_head/kernel', f'{prefix}lm_head.weight', PadRows(config.vocab_size)),)
  )
  return rows(
    ('decoder/embed/embedding', f'{prefix}model.embed_tokens.weight', PadRows(config.vocab_size)),
    ('decoder/layers/{input,post}_norm/scale', layer + '.{input,post_attention}_layernorm.weight'),
    ('decoder/layers/attn/{q,k,v}_proj/kernel', layer + '.self_attn.{q,k,v}_proj.weight'),
    ('decoder/layers/attn/{q,k,v}_proj/bias', layer + '.self_attn.{q,k,v}_proj.bias'),
    ('decoder/layers/attn/o_proj/kernel', layer + '.self_attn.o_proj.weight'),
    ('decoder/layers/mlp/{gate,up,down}_proj/kernel', layer + '.mlp.{gate,up,down}_proj.weight'),
    ('decoder/norm/scale', f'{prefix}model.norm.weight'),
    *head,
  )


def tied(config: DecoderConfig, prefix: str):
  return ((f'{prefix}lm_head.weight', f'{prefix}model.embed_tokens.weight'),) if config.tied else ()


def _vision(prefix: str, patch: Exact, positions: Exact) -> tuple[Row, ...]:
  at = f'{prefix}embeddings.'
  layers = f'{prefix}encoder.layers.{{}}'
  return tower(f'{at}patch_embedding', f'{at}position_embedding', layers, patch, positions)


def tower(embed: str, place: str, layer: str, patch: Exact, positions: Exact) -> tuple[Row, ...]:
  """The vision tower: its patch embedding, its position table and a layer by their torch names."""
  bias = FreshUnlessEqual(Exact()) if isinstance(patch, FreshUnlessEqual) else Exact()
  return rows(
    ('vision/patch_embed/kernel', f'{embed}.weight', patch),
    ('vision/patch_embed/bias', f'{embed}.bias', bias),
    ('vision/position_embed/embedding', f'{place}.weight', positions),
    ('vision/layers/{norm1,norm2}/scale', layer + '.{layer_norm1,layer_norm2}.weight'),
    ('vision/layers/{norm1,norm2}/bias', layer + '.{layer_norm1,layer_norm2}.bias'),
    ('vision/layers/attn/{q,k,v,out}_proj/kernel', layer + '.self_attn.{q,k,v,out}_proj.weight'),
    ('vision/layers/attn/{q,k,v,out}_proj/bias', layer + '.self_attn.{q,k,v,out}_proj.bias'),
    ('vision/layers/mlp/{fc1,fc2}/kernel', layer + '.mlp.{fc1,fc2}.weight'),
    ('vision/layers/mlp/{fc1,fc2}/bias', layer + '.mlp.{fc1,fc2}.bias'),
  )


def _shortcut(ours: str, torch: str):
  return [(f'{ours}/kernel', f'{torch}.weight', Units(3)), (f'{ours}/bias', f'{torch}.bias')]


def _vae_attention(ours: str, torch: str):
  return [
    (f'{ours}/norm/scale', f'{torch}.norm.gamma', Units(2)),
    (f'{ours}/{{qkv,proj}}/kernel', f'{torch}.{{to_qkv,proj}}.weight', Units(2)),
    (f'{ours}/{{qkv,proj}}/bias', f'{torch}.{{to_qkv,proj}}.bias'),
  ]


def _expand(ours: str, torch: str):
  """Pairs with every `{a,b}` written out, the n-th group of one side with the n-th of the other."""
  sides = [re.split(r'\{([^{}]+)\}', side) for side in (ours, torch)]  # text, group, text, ...
  choices = [[group.split(',') for group in side[1::2]] for side in sides]
  if [len(c) for c in choices[0]] != [len(c) for c in choices[1]]:
    raise UserError(f'{ours} <-> {torch}: the brace groups differ')
  for picks in itertools.product(*(range(len(c)) for c in choices[0])):
    yield tuple(
      ''.join(
        text + (choices[s][i][picks[i]] if i < len(picks) else '')
        for i, text in enumerate(side[0::2])
      )
      for s, side in enumerate(sides)
    )
