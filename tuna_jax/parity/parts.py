"""Golden cases of the VAE, the vision tower, the connector, rotary tables and masks. Each function
gives {'out.<sub>.<x>': array}, plus 'dbg.' intermediates that are computed anyway.

Axes:  B rows   L positions   V latent cells   M image slots   n images per row   D width
All subs of a case are laid into one Batch shape, so each case compiles once, as training does.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax import batch as batches
from tuna_jax import flow
from tuna_jax.models import rope
from tuna_jax.models.attention import visible
from tuna_jax.models.tuna import Connector, TimeEmbed, flow_inputs, sinusoid
from tuna_jax.models.vae import WanVae, normalize, posterior_sample
from tuna_jax.models.vision import Vision, patches, position_weights
from tuna_jax.parity import official, sizes
from tuna_jax.parity.case import Case, Outputs
from tuna_jax.tools.xla_cpu import quick_jit

BLOCKED = -(2.0**63)  # the additive mask of the official sdpa path


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
  return quick_jit(
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

  @quick_jit
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
  """(coords, image and grid, tokens) of one picture or clip per row: x [B, c(, T), h, w]."""
  x = x[:, :, None] if x.ndim == 4 else x
  tokens = batches.to_tokens(np.moveaxis(x, 1, -1), config.patch, config.layout)
  rows, *grid, size = tokens.shape
  batch = batches.empty(rows, 1, int(np.prod(grid)), 1, 0)
  batch.coords[:] = official.segments.coordinates(tuple(grid))
  batch.image[:], batch.grid[:, 0] = 1, grid
  return batch, tokens.reshape(rows, -1, size)


def connector_time(case: Case) -> Outputs:
  """d: connector and time embedding."""
  frequencies = case.weights['time_embed.mlp.0.weight'].shape[1]
  config = sizes.connector(case.config, frequencies)
  params = sizes.load_tuna(config, case.weights, 'connector', 'time_embed')
  features = {
    name.removeprefix('in.feat'): x
    for name, x in case.tensors.items()
    if name.startswith('in.feat')
  }

  @quick_jit
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
  return quick_jit(lambda tensors: _rotary(case, tensors))(
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
    table, _ = flow_inputs(sizes.flow_head_only(s['d']), batch)
    for name in ('q', 'k'):
      x = rearrange(tensors[f'in.{sub}.{name}'], 'b h l d -> b l h d')
      out[f'out.{sub}.{name}'] = rearrange(rope.rotate(x, table), 'b l h d -> b h l d')
  return out


def masks(case: Case) -> Outputs:
  """f: who sees whom."""
  return quick_jit(lambda: _masks(case))()


def _masks(case: Case) -> Outputs:
  out = {}
  for sub, s in case.config['subs'].items():
    positions = case.given(sub, 'mp')
    batch = official.to_batch(np.zeros((len(positions), s['L']), np.int32), positions, None, 1)
    seen = visible(batch.kv_limit, batch.segment, batch.segment)
    out[f'out.{sub}.sdpa'] = jnp.where(seen, 0.0, BLOCKED)[:, None]
    out[f'out.{sub}.flex_llm'] = out[f'out.{sub}.flex_head'] = seen.astype(jnp.int32)
  return out


# ---- flow matching


def transport(case: Case) -> Outputs:
  """j: times, path, grids, Euler."""
  u, r, x0, x1, t = (jnp.asarray(case.given(name)) for name in ('u', 'r', 'x0', 'x1', 't'))
  lognormal = jax.nn.sigmoid(u)
  shift = functools.partial(flow.time_shift, shift=flow.TRAIN_SHIFT)
  x_t, velocity = flow.interpolate(x1, x0, t)
  out = {
    'out.mu': np.float32(np.log(flow.TRAIN_SHIFT)),
    'out.xt': x_t,
    'out.ut': velocity,
    'out.t_lognorm': lognormal,
    'out.t_lognorm_shift': shift(lognormal),
    'out.t_uniform': r,
    'out.t_uniform_shift': shift(r),
    'out.t_maxt0_1': shift(jnp.ones_like(u)),
  }
  for points in case.config['steps']:
    for factor in case.config['shifts']:
      out[f'out.grid.n{points}.s{"none" if factor is None else factor}'] = flow.times(
        points, factor or 1.0
      )
  for points, level in case.config['noise_levels']:
    out[f'out.grid_noise.n{points}.nl{level}'] = flow.times(points)[int((1 - level) * points) :]
  x, grid = jnp.asarray(case.given('x_toy')), flow.times(len(case.tensors['out.euler_toy']))
  states = [x] + [
    flow.solve(lambda x, t: -0.5 * x + t, x, grid[: k + 1]) for k in range(1, len(grid))
  ]
  return {**out, 'out.euler_toy': jnp.stack(states)}


CASES = {
  'transport': transport,
  'vae_encode': vae_encode,
  'vae_decode': vae_decode,
  'vae21_encode': vae_encode,
  'vae21_decode': vae_decode,
  'siglip': siglip,
  'connector_time': connector_time,
  'rope': rotary,
  'masks': masks,
}
