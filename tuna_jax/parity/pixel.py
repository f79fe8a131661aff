"""Golden cases of Tuna-R and Tuna-2 (docs/pixel.md), which see pixels and predict a picture.

Axes:  B rows   L positions   n images per row   P side of a patch   H, W pixels
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import batch as batches
from tuna_jax import flow, losses
from tuna_jax.models import rope
from tuna_jax.models.tuna import Connector, Tuna
from tuna_jax.models.vision import Patches, patches
from tuna_jax.parity import models, official, parts, sizes, towers
from tuna_jax.parity.case import Case, Outputs
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.weights import designs
from tuna_jax.weights.convert import export

# ---- parts


def patch_embed(case: Case) -> Outputs:
  """Tuna-2's tokens; of pictures so faint that the epsilon of the norm shows, too."""
  config, params = sizes.load_pixel(case, 'tuna_2')
  out, own = {}, params['patches']
  for sub in (*case.config['subs'], 'small', 'frames'):
    batch, tokens = parts.pictures(config, case.given(sub, 'pixels'))
    where = (batch.coords, batch.image, batch.grid)
    embed = own['embed']
    if sub == 'small':
      embed = {**embed, 'bias': embed['bias'] * np.float32(1e-4)}
    rows = patches(tokens, *(jnp.asarray(x) for x in where), config.patch)
    out[f'out.{sub}.conv'] = rows @ embed['kernel'] + embed['bias']
    out[f'out.{sub}.tokens'] = Patches(config).apply({'params': {**own, 'embed': embed}}, rows)
  return out


def siglip(case: Case) -> Outputs:
  """Tuna-R's tower on pixels, and its connector."""
  config, params = sizes.load_pixel(case, 'tuna_r')
  pixels = {sub: case.given(sub, 'pixels') for sub in case.config['subs']}
  out = dict(parts.tower(case, config, params['vision'], pixels))
  for sub in pixels:
    hidden = out[f'out.{sub}.hidden']
    out[f'out.{sub}.tokens'] = Connector(config).apply({'params': params['connector']}, hidden)
  return out


def pixel_layout(case: Case) -> Outputs:
  """Which pixels a row of targets and predictions holds."""
  config, out = sizes.pixel_config(case.config['model'], 'tuna_2'), {}
  for sub in case.config['subs']:
    image = case.given(sub, 'image')
    out[f'out.{sub}.tokens'] = models.token_rows(config, image, len(image))
  channels, *sides = case.given('a', 'image').shape[1:]
  numbers = np.arange(channels * np.prod(sides), dtype=np.int32).reshape(1, *sides, channels)
  index = batches.to_tokens(numbers, config.patch, config.layout)
  return {**out, 'out.index': index.reshape(-1, config.token_dim)}


def flow_head(case: Case) -> Outputs:
  """The blocks and the wide final layer."""
  config, params = sizes.load_pixel(case, 'tuna_2')
  grids = {sub: (1, *case.config['grid']) for sub in case.config['subs']}
  seen = towers.flow_head_subs(case, config, params['flow_head'], grids)
  angle = rope.visual_angles(official.segments.coordinates(grids['one']), config.flow_head.head_dim)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  out = {'out.rope3d': jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)}
  for sub in grids:
    offset, size = case.given(sub, 'mp')[0, -1]
    out[f'out.{sub}.block0'] = seen[f'out.{sub}.block0']
    out[f'out.{sub}.x'] = seen[f'out.{sub}.final'][:, offset - 1 : offset + size]
    if case.wants(sub, 'final_direct'):
      out[f'out.{sub}.final_direct'] = seen[f'out.{sub}.final_direct'][:, offset : offset + 3]
  return out


def jit(case: Case) -> Outputs:
  """Times, path, weights and loss; the sampler on a toy network."""
  path = sizes.pixel_config(case.config['model'], 'tuna_2').path
  x, noise, t = (jnp.asarray(case.given(name)) for name in ('x', 'noise', 't'))
  z, _ = flow.interpolate(x, path.noise * noise, t)
  plain, _ = flow.interpolate(x, noise, t)
  left = jnp.maximum(1 - t, flow.MIN_TIME_LEFT)
  predicted, target = (jnp.asarray(case.given(name)) for name in ('pred', 'target'))
  tokens = jnp.broadcast_to(t[:, None], predicted.shape[:2])
  selected, zeros = jnp.asarray(case.config['mask']), jnp.zeros(predicted.shape[:2], jnp.int32)

  def loss(tokens, selected):
    a, b = (flow.velocity_to(y, jnp.zeros_like(y), tokens) for y in (predicted, target))
    return losses.velocity_error(a, b, selected, zeros, 1).mean()

  out = {
    'out.t_sampled': flow.lognormal_t(jnp.asarray(case.given('u')), path),
    'out.zt': z,
    'out.zt_scale1': plain,
    'out.x_from_v': z + left[:, None, None, None, None] * (x - z),
    'out.weight': left**-2,
    'out.loss': loss(tokens, selected),
    'out.loss_unweighted': loss(jnp.zeros_like(tokens), selected),
    'out.loss_no_mask': loss(tokens, jnp.ones_like(selected)),
  }
  for run, (method, steps, scale, interval) in case.config['runs'].items():
    low, high = interval or (0.0, 1.0)
    seen = []

    def velocity(z, t, scale=scale, low=low, high=high, seen=seen):
      conditional = jnp.tanh(0.3 * z) * (1 - 0.5 * t) + 0.2
      other = 0.5 * conditional + 0.1 * z
      guidance = jnp.where((t < high) & ((low == 0) | (t > low)), scale, 1.0)
      jax.debug.callback(lambda *now: seen.append(now), z, t, guidance, ordered=True)
      clean = flow.guide(conditional, other, guidance)
      return (clean - z) / jnp.maximum(1 - t, flow.MIN_TIME_LEFT)

    final = flow.solve(velocity, jnp.asarray(case.given('z')), flow.times(steps + 1, 1.0), method)
    jax.effects_barrier()
    states, times, scales = (np.stack(values) for values in zip(*seen))
    names = {'final': final, 'states': states[:, 0], 't': times, 'g': scales}
    out |= {f'out.{run}.{name}': value for name, value in names.items()}
  return out


# ---- the whole model


def _laid(case: Case, sub: str, config, grid, shape=None):
  """The Batch of one sub, labels filled in."""
  tokens, positions = case.given(sub, 'text_tokens'), case.given(sub, 'mp')
  batch = official.to_batch(tokens, positions, grid, config.token_dim, shape)
  labels, weight = official.to_next_token(case.given(sub, 'text_labels'), batch.tokens.shape[1])
  batch.labels[: len(labels)], batch.label_weight[: len(labels)] = labels, weight
  return batch


def full_forward(case: Case) -> Outputs:
  """The model in training, with gradients, and in inference."""
  c, variant = case.config, case.config['variant']
  config, params = sizes.load_pixel(case, variant)
  table, vocab = designs.official(config), config.decoder.vocab_size
  options = c['model']['tuna_model']
  train = quick_jit(jax.grad(models.outcome(config, options), has_aux=True))
  layouts = {sub: (case.given(sub, 'mp'), (1, *s['grid']), s['L']) for sub, s in c['subs'].items()}
  shape, out = towers.common_shape(layouts), {}
  for sub, (positions, grid, length) in layouts.items():
    rows, images = positions.shape[:2]
    own = (slice(rows), slice(images * int(np.prod(grid))))
    batch = _laid(case, sub, config, grid, shape)
    x, clean = np.zeros_like(batch.latents), np.zeros_like(batch.latents)
    t = np.ones((shape[0], shape[3]), np.float32)
    x[own] = models.token_rows(config, case.given(sub, 'zt'), rows)
    t[:rows, :images] = case.given(sub, 't').reshape(rows, images)
    if case.has(sub, 'clean'):
      clean[own] = models.token_rows(config, case.given(sub, 'clean'), rows)
    marks = np.zeros(batch.tokens.shape, bool)
    marks[:rows, :length] = case.given(sub, 'image_masks')
    selected = np.take_along_axis(marks, batch.place, axis=1) & official.placed(batch)
    per_token = np.take_along_axis(t, np.maximum(batch.image - 1, 0), axis=1)
    velocity = flow.velocity_to(clean, x, per_token)
    masked = np.zeros(batch.image.shape, bool)
    if case.has(sub, 'mask_ratio'):
      masked[own] = _masked(case, sub, grid).reshape(rows, -1)
    weights = (options['flow_coeff'], options['ntp_coeff']) if selected.any() else (0.0, 1.0)
    gradients, seen = train(params, batch, x, t, velocity, selected, np.float32(weights), masked)
    predicted = np.asarray(seen['v_pred'])
    spans = [positions[row, -1] + (1, 0) for row in range(rows)]
    values = {name: value for name, value in seen.items() if value is not None}
    values |= {
      'x_span': np.stack(
        [predicted[row, first : first + size - 1] for row, (first, size) in enumerate(spans)]
      ),
      'x_text': predicted[:rows, :2],
      't_for_loss': t[:rows, images - 1],
      'last_logits': np.asarray(seen['logits'])[:rows, length - 1],
    }
    drawn = np.take_along_axis(predicted, batch.place[..., None], axis=1)[own]
    values['x_img'] = models.to_grids(config, drawn, images, grid)
    flags = np.zeros(batch.tokens.shape, np.int32)
    labels = np.zeros((*batch.tokens.shape, config.token_dim), np.float32)
    row, token = np.nonzero(official.placed(batch))
    flags[row, batch.place[row, token]] = selected[row, token]
    labels[row, batch.place[row, token]] = clean[row, token]
    values['new_image_masks'] = flags
    values['new_image_labels'] = np.stack(
      [labels[row, first - 1 : first + size - 1] for row, (first, size) in enumerate(spans)]
    )
    whole = ('logits', 'input_embeds', 'llm_hidden', 'new_image_masks')
    for name, value in values.items():
      cut = name in whole or name.startswith('head')
      out[f'out.{sub}.{name}'] = np.asarray(value)[:rows, :length] if cut else value
    if case.has(sub, 'clean'):
      out.update(models.gradients_by_name(case, sub, export(table, gradients), vocab))
  return out


def _masked(case: Case, sub: str, grid) -> np.ndarray:
  """bool[images, tokens] from the official ratio and permutation of each image."""
  count = int(np.prod(grid))
  masked = np.zeros((len(case.given(sub, 'mask_ratio')), count), bool)
  for image, (ratio, order) in enumerate(
    zip(case.given(sub, 'mask_ratio'), case.given(sub, 'mask_perm'))
  ):
    masked[image, order[: max(int(count * ratio), 0)]] = True
  return masked


def train_step(case: Case) -> Outputs:
  """From pixels and fixed draws to losses; the last token of each span is dropped (B2)."""
  c = case.config
  config, params = sizes.load_pixel(case, c['variant'])
  options, path = c['model']['tuna_model'], config.path
  outcome = quick_jit(models.outcome(config, options))
  out = {}
  for sub, s in c['subs'].items():
    grid = None if s['type'] == 'mmu_text' else (1, *s['grid'])  # its pictures are never looked at
    batch = _laid(case, sub, config, grid)
    rows, images = case.given(sub, 'mp').shape[:2]
    x, clean = np.zeros_like(batch.latents), np.zeros_like(batch.latents)
    t, own = np.ones(batch.target.shape, np.float32), params
    if grid:
      pixels = case.given(sub, 'images')
      pixels = pixels.reshape(-1, *pixels.shape[-3:])
      draws = range(rows * images)
      normal = np.concatenate([case.given(sub, f'draw{2 * i}') for i in draws])
      noise_of = np.concatenate([case.given(sub, f'draw{2 * i + 1}') for i in draws]) * path.noise
      batch.target[:, images - 1] = s['type'] != 'mmu'  # of an edit, the result
      drawn = np.asarray(flow.lognormal_t(normal, path)).reshape(rows, images)
      t = np.where(batch.target, drawn, np.float32(1 - s['mmu_noise'])).astype(np.float32)
      clean[:] = models.token_rows(config, pixels, rows)
      z, _ = flow.interpolate(pixels[:, :, None], noise_of, jnp.asarray(t.reshape(-1)))
      x[:] = models.token_rows(config, z, rows)
      marks = case.given(sub, 'image_masks') * (s['type'] != 'mmu')
      out |= {f'out.{sub}.zt': z, f'out.{sub}.t': t.reshape(-1), f'out.{sub}.masks': marks}
    if case.has(sub, 'images_clip'):
      own = _leaked(case, sub, config, params, batch)
    owner = np.maximum(batch.image - 1, 0)
    selected = official.placed(batch) & np.take_along_axis(batch.target, owner, axis=1)
    per_token = np.take_along_axis(t, owner, axis=1)
    velocity = flow.velocity_to(clean, x, per_token)
    ones = np.ones(2, np.float32)
    seen = outcome(own, batch, x, t, velocity, selected, ones)[1]
    seen['last_logits'] = seen['logits'][:, -1]
    out |= {f'out.{sub}.{name}': value for name, value in seen.items() if value is not None}
  return out


def _leaked(case: Case, sub: str, config, params, batch):
  """P2: parameters and tokens in which the companion picture stands over the text before boi."""
  image, tokens = parts.pictures(config, case.given(sub, 'images_clip'))
  where = (image.coords, image.image, image.grid)
  words = Tuna(config).apply({'params': params}, tokens, *where, method='features')[0]
  boi = int(case.given(sub, 'mp')[0, 0, 0]) - 1
  first = config.decoder.vocab_size
  batch.tokens[0, boi - len(words) : boi] = first + np.arange(len(words))
  return models.with_words(config, params, words)


CASES = {
  'pixel_patch_embed': patch_embed,
  'pixel_siglip': siglip,
  'pixel_layout': pixel_layout,
  'pixel_flow_head': flow_head,
  'jit': jit,
  'pixel_full_forward': full_forward,
  'pixel_train_step': train_step,
}
