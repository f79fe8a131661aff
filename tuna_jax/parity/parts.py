"""What each kind of golden case computes with our modules: {'out.<sub>.<x>': array}, and 'dbg.'
where it costs nothing.

Axes:  B rows   L positions   V latent cells   M image slots   n images a row   C latent channels   D width
All subs of a case are laid into one Batch shape, so each case compiles once, as training does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax import batch as batches
from tuna_jax.models import rope
from tuna_jax.models.attention import visible
from tuna_jax.models.decoder import Decoder, DecoderBlock
from tuna_jax.models.flow_head import FinalLayer, FlowBlock
from tuna_jax.models.layers import Mlp, Span
from tuna_jax.models.tuna import Connector, TimeEmbed, sinusoid
from tuna_jax.models.vae import WanVae, normalize, posterior_sample
from tuna_jax.models.vision import Vision, patches, position_weights
from tuna_jax.parity import official
from tuna_jax.parity import sizes as sizes
from tuna_jax.parity.cases import Case

BLOCKED = -(2.0**63)  # the additive mask of the official sdpa path
Outputs = Mapping[str, object]


# ---- the VAE


def vae_encode(case: Case) -> Outputs:
  """a: posterior, features, normalised latents and their sample."""
  config = sizes.vae_config(case.config)
  params = sizes.load_vae(config, case.weights, 'encoder', 'quant')
  encode = _seen_through(config, 'encode')
  out = {}
  for sub in case.config['subs']:
    x = official.whole_chunks(rearrange(case.given(sub, 'x'), 'b c f h w -> b f h w c'))
    moments, seen = encode(params, x)
    seen = _intermediates(seen['intermediates'])
    eps = rearrange(case.given(sub, 'eps'), 'b c f h w -> b f h w c')
    values = {
      'mu_raw': moments.mean,
      'logvar': moments.logvar,
      'feat': seen['encoder'],
      'latent': normalize(config, moments.mean),
      'sample': posterior_sample(config, moments, eps, compat='official'),
    }
    out.update({f'out.{sub}.{name}': _channels_first(value) for name, value in values.items()})
    out.update(_chunks(case, config, sub, seen, 'encoder', x.shape[1]))
  return out


def vae_decode(case: Case) -> Outputs:
  """b: pixels, before and after the clamp."""
  config = sizes.vae_config(case.config)
  params = sizes.load_vae(config, case.weights, 'decoder', 'post_quant')
  decode = _seen_through(config, 'decode')
  out = {}
  for sub in case.config['subs']:
    z = rearrange(case.given(sub, 'z'), 'b c f h w -> b f h w c')
    pixels, seen = decode(params, z)
    out[f'out.{sub}.raw'] = _channels_first(pixels)
    out[f'out.{sub}.img'] = jnp.clip(out[f'out.{sub}.raw'], -1, 1)
    seen = _intermediates(seen['intermediates'])
    out.update(_chunks(case, config, sub, seen, 'decoder', z.shape[1]))
  return out


def _seen_through(config, method: str):
  """(params, x) -> (what the VAE's method gives, what every module in it gave)."""
  return sizes.quick_jit(
    lambda params, x: WanVae(config).apply(
      {'params': params}, x, method=method, capture_intermediates=True
    )
  )


def _chunks(case: Case, config, sub: str, seen, part: str, frames: int) -> Outputs:
  """Intermediates as the official code sees them: one chunk holds frame 0, the others equal shares
  of the rest.
  """
  names = {
    'conv1': 'conv_in',
    'middle.0': 'middle/block_0',
    'middle.1': 'middle/attn',
    'middle.2': 'middle/block_1',
    'head.2': 'conv_out',
  }
  chunks = 1 + (frames - 1) // 4 if part == 'encoder' else frames
  out = {}
  for entry in case.entries:
    found = re.fullmatch(rf'dbg\.{re.escape(sub)}\.(.+)\.c(\d+)', entry)
    if not found:
      continue
    name, chunk = found[1], int(found[2])
    value = seen.get(f'{part}/{names.get(name) or _level_of(config, part, name)}')
    if value is None:
      continue
    share = (value.shape[1] - 1) // (chunks - 1) if chunks > 1 else 0
    part_of = value[:, :1] if not chunk else value[:, 1 + (chunk - 1) * share : 1 + chunk * share]
    out[entry] = _channels_first(part_of)
  return out


def _level_of(config, part: str, name: str) -> str:
  """Our path of 'downsamples.3': a level, or in the flat list of Wan 2.1 a block or a resample."""
  number = int(name.rpartition('.')[2])
  if config.residual:
    return f'level_{number}'
  blocks, resample = {
    'encoder': (config.encoder_blocks, 'down'),
    'decoder': (config.decoder_blocks, 'up'),
  }[part]
  level, block = divmod(number, blocks + 1)
  return f'level_{level}/{resample if block == blocks else f"block_{block}"}'


def _channels_first(x):
  return rearrange(x, 'b f h w c -> b c f h w')


def _intermediates(tree) -> dict:
  """{module path: its output} of a capture."""
  found = {}

  def walk(node, path):
    for name, value in node.items():
      if isinstance(value, Mapping):
        walk(value, (*path, name))
      elif name == '__call__':
        found['/'.join(path)] = value[0]

  walk(tree, ())
  return found


# ---- the vision tower, the connector, the time embedding


def siglip(case: Case) -> Outputs:
  """c: positions and features at every grid, clips included."""
  c = case.config
  config = sizes.tuna(
    vision=sizes.vision_config(c['siglip'], c['image_size'], c['feature_layer']),
    vae=sizes.VaeConfig(latent_channels=c['num_channels'], latent_mean=(), latent_std=()),
  )
  params = sizes.load_tuna(config, case.weights, 'vision')['vision']
  return tower(case, config, params, {sub: case.given(sub, 'latents') for sub in c['subs']})


def tower(case: Case, config, params, clips: Mapping) -> Outputs:
  """The vision tower taken apart, for {sub: official cells [B, c, h, w] or [B, c, T, h, w]}."""
  laid = {sub: pictures(config, x) for sub, x in clips.items()}
  shape = np.max([batch.image.shape for batch, _ in laid.values()], axis=0)

  @sizes.quick_jit
  def run(params, tokens, batch):
    where = (batch.coords, batch.image, batch.grid)
    if config.patch > 1:
      tokens = patches(tokens, *where, config.patch)
    size = jnp.take_along_axis(batch.grid, jnp.maximum(batch.image - 1, 0)[..., None], axis=1)
    weights = position_weights(batch.coords, size[..., 1:], config.vision.grid)
    embed = params['patch_embed']
    seen = {
      'pos': weights @ params['position_embed']['embedding'],
      'patch': tokens @ embed['kernel'] + embed['bias'],
    }
    layers = config.vision.num_layers
    for depth in range(layers + 1):  # a tower of the first layers alone ends where they end
      part = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, num_layers=depth)
      )
      first = jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params['layers'])
      variables = {'params': {**params, 'layers': first}}
      seen[f'layer{depth - 1}'] = Vision(part).apply(variables, tokens, *where)
    return {**seen, 'emb': seen['layer-1'], 'hidden': seen[f'layer{layers - 1}']}

  out = {}
  for sub, (batch, tokens) in laid.items():
    rows, count = batch.image.shape
    padded = [(0, shape[0] - rows), (0, shape[1] - count), (0, 0)]
    batch = batch._replace(
      coords=np.pad(batch.coords, padded),
      image=np.pad(batch.image, padded[:2]),
      grid=np.pad(batch.grid, [padded[0], (0, 0), (0, 0)]),
    )
    for name, value in run(params, np.pad(tokens, padded), batch).items():
      value = rearrange(value[:rows, :count], 'b (f v) d -> (b f) v d', f=batch.grid[0, 0, 0])
      group = 'out' if name in ('hidden', 'pos', 'patch') else 'dbg'
      out[f'{group}.{sub}.{name}'] = value[:1] if name == 'pos' else value
  return out


def pictures(config, x) -> tuple[batches.Batch, np.ndarray]:
  """(coords, image and grid, tokens) of one picture or clip a row: x [B, c, h, w] or [B, c, T, h, w]."""
  x = x[:, :, None] if x.ndim == 4 else x
  tokens = batches.to_tokens(np.moveaxis(x, 1, -1), config.patch, config.layout)
  rows, *grid, size = tokens.shape
  batch = batches.empty(rows, 1, int(np.prod(grid)), 1, 0)
  batch.coords[:] = official.segments.coordinates(tuple(grid))
  batch.image[:], batch.grid[:, 0] = 1, grid
  return batch, tokens.reshape(rows, -1, size)


@contextlib.contextmanager
def arguments_of(*names: str):
  """A list that fills with the arguments of every call of the modules of these names, in order."""
  calls = []

  def keep(call, args, kwargs, context):
    if context.module.name in names and context.method_name == '__call__':
      calls.append(args)
    return call(*args, **kwargs)

  with nn.intercept_methods(keep):
    yield calls


def connector_time(case: Case) -> Outputs:
  """d: connector and time embedding."""
  width, frequencies = case.config['hidden_size'], case.weights['time_embed.mlp.0.weight'].shape[1]
  vision = sizes.VisionConfig(
    num_layers=1,
    dim=case.config['clip_latent_dim'],
    num_heads=1,
    num_kv_heads=1,
    head_dim=case.config['clip_latent_dim'],
    mlp_dim=8,
    grid=2,
  )
  flow_head = sizes.FlowHeadConfig(
    num_layers=1, dim=width, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=8
  )
  config = sizes.tuna(vision=vision, flow_head=flow_head, time_frequencies=frequencies)
  params = sizes.load_tuna(config, case.weights, 'connector', 'time_embed')
  features = {
    name.removeprefix('in.feat'): x
    for name, x in case.tensors.items()
    if name.startswith('in.feat')
  }

  @sizes.quick_jit
  def run(params, t, features):
    project = {
      name: Connector(config).apply({'params': params['connector']}, x)
      for name, x in features.items()
    }
    return {
      'out.freq': sinusoid(t, frequencies),
      'out.emb': TimeEmbed(config).apply({'params': params['time_embed']}, t),
      **{f'out.proj{name}': y for name, y in project.items()},
    }

  return run(params, case.given('t'), features)


# ---- rotary tables and masks


def rotary(case: Case) -> Outputs:
  """e: every table, and queries and keys of mixed sequences."""
  return sizes.quick_jit(lambda tensors: _rotary(case, tensors))(
    {name: x for name, x in case.tensors.items() if name.endswith(('.q', '.k'))}
  )


def _rotary(case: Case, tensors) -> Outputs:
  c, position = case.config, case.given('pos')
  out = {}
  for frames, rows, columns, dim in c['tables']:
    angle = rope.visual_angles(official.segments.coordinates((frames, rows, columns)), dim)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    out[f'out.rope3d.T{frames}h{rows}w{columns}d{dim}'] = jnp.stack(
      [jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2
    )
  for dim in c['head_dims']:
    text = np.ones((1, len(position)), bool)
    table = rope.flow_rotary(position[None], np.zeros((*text.shape, 3), np.int32), text, ~text, dim)
    out[f'out.head1d.d{dim}.inv_freq'] = rope.scaled_frequencies(dim)
    out[f'out.head1d.d{dim}.cos'], out[f'out.head1d.d{dim}.sin'] = table.cos[0], table.sin_half[0]
  for theta, dim in c['llm']:
    table = rope.decoder_rotary(position[None], dim, theta)
    name = f'out.llm1d.theta{theta:.0f}d{dim}'
    out[f'{name}.cos'], out[f'{name}.sin'] = table.cos[0], table.sin_half[0]
  for sub, s in c['apply'].items():
    batch = official.to_batch(
      np.zeros(tensors[f'in.{sub}.q'].shape[::2], np.int32),
      case.given(sub, 'mp'),
      tuple(s['thw']),
      1,
    )
    table = flow_rotary(batch, s['d'])
    for name in ('q', 'k'):
      x = rearrange(tensors[f'in.{sub}.{name}'], 'b h l d -> b l h d')
      out[f'out.{sub}.{name}'] = rearrange(rope.rotate(x, table), 'b l h d -> b h l d')
  return out


def flow_rotary(batch, head_dim: int) -> rope.Rotary:
  """The flow head's tables for a Batch."""
  images = batch.grid.shape[1]
  is_text, is_visual = batch.slot < 0, batch.slot >= images
  cell = np.maximum(batch.slot - images, 0)
  coords = np.take_along_axis(batch.coords, cell[..., None], axis=1)
  return rope.flow_rotary(batch.position, coords, is_text, is_visual, head_dim)


def masks(case: Case) -> Outputs:
  """f: who sees whom."""
  return sizes.quick_jit(lambda: _masks(case))()


def _masks(case: Case) -> Outputs:
  out = {}
  for sub, s in case.config['subs'].items():
    positions = case.given(sub, 'mp')
    batch = official.to_batch(np.zeros((len(positions), s['L']), np.int32), positions, None, 1)
    seen = visible(batch.kv_limit, batch.segment, batch.segment)
    out[f'out.{sub}.sdpa'] = jnp.where(seen, 0.0, BLOCKED)[:, None]
    out[f'out.{sub}.flex_llm'] = out[f'out.{sub}.flex_head'] = seen.astype(jnp.int32)
  return out


# ---- the decoder and the flow head, layer by layer


def qwen2(case: Case) -> Outputs:
  """g: hidden states of every layer and logits, under the omni mask and causal."""
  config = sizes.tuna(decoder=sizes.decoder_config(case.config['llm'], case.config['vocab']))
  params = sizes.load_tuna(config, case.weights, 'decoder')['decoder']
  embeds, small, positions = case.given('embeds'), case.given('embeds_small'), case.given('mp')
  rows, own = embeds.shape[:2]
  length = max(own, small.shape[1])
  omni = official.to_batch(np.zeros((rows, length), np.int32), positions, None, 1)
  causal = np.broadcast_to(np.arange(length, dtype=np.int32), (rows + len(small), length))
  # Nothing sees what is padded behind it.
  x = np.concatenate(
    [np.pad(e, [(0, 0), (0, length - e.shape[1]), (0, 0)]) for e in (embeds, embeds, small)]
  )
  kv_limit = np.concatenate([omni.kv_limit, causal])

  @sizes.quick_jit
  def run(params, x, kv_limit):
    d, one = config.decoder, jnp.ones_like(kv_limit)
    position = jnp.broadcast_to(jnp.arange(x.shape[1]), kv_limit.shape)
    span = Span(rope.decoder_rotary(position, d.head_dim, d.rope_theta), kv_limit, one, one)
    last, _ = Decoder(config).apply({'params': params}, x, span)
    logits = Decoder(config).apply({'params': params}, last, method='logits')[..., : d.vocab_size]
    return (*decoder_layers(config, params, x, span)[:-1], last), logits

  hidden, logits = run(params, x, kv_limit)
  out = {f'out.hidden{i}': h[:rows, :own] for i, h in enumerate(hidden)}
  return {
    **out,
    'out.logits': logits[:rows, :own],
    'out.logits_causal': logits[rows : 2 * rows, :own],
    'out.hidden_causal': hidden[-1][rows : 2 * rows, :own],
    'out.logits_small_causal': logits[2 * rows :, : small.shape[1]],
  }


def decoder_layers(config, params, x, span: Span) -> list:
  """The residual stream before the first layer and after each, before the final norm."""

  def step(x, layer):
    x, _ = DecoderBlock(config).apply({'params': layer}, x, span)
    return x, x

  return [x, *jax.lax.scan(step, x, params['layers'])[1]]


def flow_head(case: Case) -> Outputs:
  """h: adaLN, attention, blocks and the final layer at every token."""
  c = case.config
  config = sizes.tuna(
    flow_head=sizes.flow_head_config(c, c['num_layers'], c['intermediate_size']),
    vae=sizes.VaeConfig(latent_channels=c['image_latent_dim'], latent_mean=(), latent_std=()),
  )
  params = sizes.load_tuna(config, case.weights, 'flow_head')['flow_head']
  grids = {sub: s['thw'] and tuple(s['thw']) for sub, s in c['subs'].items()}
  return flow_head_subs(case, config, params, grids)


def flow_head_subs(case: Case, config, params, grids: Mapping) -> dict:
  """Every sub through the head's layers; {sub: (frames, rows, columns), or None for no picture}.

  Where the rotary tells nothing of the grid, that of the first span's length will do.
  """
  subs = {}
  for sub, grid in grids.items():
    positions = case.given(sub, 'mp')
    if config.flow_head.rotary == 'index':
      grid = (1, 1, max(int(positions[..., 1].max()) - 1, 1))
    subs[sub] = positions, grid
  shape = common_shape(
    {sub: (*layout, case.given(sub, 'hidden').shape[1]) for sub, layout in subs.items()}
  )
  run = sizes.quick_jit(lambda *args: flow_layers(config, *args))
  direct = sizes.quick_jit(lambda *args: final_layer(config, *args))
  out = {}
  for sub, (positions, grid) in subs.items():
    hidden = case.given(sub, 'hidden')
    rows, length = hidden.shape[:2]
    batch = official.to_batch(np.zeros((rows, length), np.int32), positions, grid, 1, shape)
    x = np.zeros((*shape[:2], hidden.shape[2]), np.float32)
    x[:rows, :length] = hidden
    time = np.zeros((shape[0], shape[3], hidden.shape[2]), np.float32)
    time[:rows, : positions.shape[1]] = case.given(sub, 'temb').reshape(rows, -1, hidden.shape[2])
    args = flow_arguments(config, batch, time, rotate=grid is not None)
    seen = dict(run(params, x, *args))
    mod0 = seen.pop('mod0')[:rows, : positions.shape[1]]
    out.update({f'out.{sub}.{name}': value[:rows, :length] for name, value in seen.items()})
    out[f'out.{sub}.mod0'] = mod0.reshape(-1, mod0.shape[-1])
    if case.wants(sub, 'final_direct'):
      out[f'out.{sub}.final_direct'] = direct(params['final'], x, *args[1:])[:rows, :length]
  return out


def common_shape(subs) -> tuple[int, int, int, int]:
  """(B, L, V, M) that holds every {sub: (positions, grid, length)}."""
  each = [
    (len(positions), length, positions.shape[1] * int(np.prod(grid or 1)), positions.shape[1])
    for positions, grid, length in subs.values()
  ]
  return tuple(np.max(each, axis=0).tolist())


def flow_arguments(config, batch, time, *, rotate: bool = True):
  """(span, time, owner, in_span) of the flow head; without `rotate`, the official head on a batch
  without pictures.
  """
  images, head_dim = batch.grid.shape[1], config.flow_head.head_dim
  if config.flow_head.rotary == 'index':
    rotary = rope.index_rotary(batch.position, head_dim)
  else:
    rotary = flow_rotary(batch, head_dim) if rotate else rope.no_rotary(batch.position, head_dim)
  cell = np.maximum(batch.slot - images, 0)
  owner = np.where(
    batch.slot >= images,
    np.take_along_axis(batch.image, cell, axis=1) - 1,
    np.maximum(batch.slot, 0),
  )
  return Span(rotary, batch.kv_limit, batch.segment, batch.segment), time, owner, batch.slot >= 0


def flow_layers(config, params, hidden, span, time, owner, in_span) -> dict:
  """{'mod0', 'attn0', 'block{i}', 'final'}: the flow head taken apart."""
  seen, x = {}, hidden
  if 'bridge' in params:
    width = config.flow_head.dim
    bridge = Mlp(width, width, config.dtype, approximate=False)
    x = seen['bridged'] = bridge.apply({'params': params['bridge']}, hidden)
  for i in range(config.flow_head.num_layers):
    (x, _), inside = FlowBlock(config).apply(
      {'params': sizes.layer(params['layers'], i)},
      x,
      (span, time, owner, in_span),
      capture_intermediates=True,
    )
    if not i:
      inside = inside['intermediates']
      seen['mod0'] = inside['adaln']['__call__'][0]
      seen['attn0'] = inside['attn']['__call__'][0][0]
    seen[f'block{i}'] = x
  seen['final'] = final_layer(config, params['final'], x, time, owner, in_span)
  return seen


def final_layer(config, params, x, time, owner, in_span):
  """The final layer at every token; those outside spans are not modulated, which is a modulation of
  zeros.
  """
  plain = {**params, 'adaln': jax.tree.map(jnp.zeros_like, params['adaln'])}
  modulated, unmodulated = (
    FinalLayer(config).apply({'params': p}, x, time, owner) for p in (params, plain)
  )
  return jnp.where(in_span[..., None], modulated, unmodulated)


CASES = {
  'vae_encode': vae_encode,
  'vae_decode': vae_decode,
  'vae21_encode': vae_encode,
  'vae21_decode': vae_decode,
  'siglip': siglip,
  'connector_time': connector_time,
  'rope': rotary,
  'masks': masks,
  'qwen2': qwen2,
  'flow_head': flow_head,
}
