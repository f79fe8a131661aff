"""Golden cases of the whole model: weights, forward and gradients, training, flow matching.

Axes:  B rows   L positions   V latent cells   n images per row   C latent channels   D width
       K grid points"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax import flow, losses
from tuna_jax.batch import to_cells, to_tokens
from tuna_jax.models.tuna import TimeEmbed, Tuna
from tuna_jax.models.vae import WanVae, posterior_sample
from tuna_jax.parity import official, sizes
from tuna_jax.parity.case import Case, Outputs, Row
from tuna_jax.parity.towers import arguments_of, common_shape, flow_layers
from tuna_jax.sample import image as drawing
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.train import step as train_step_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.weights import designs, tables
from tuna_jax.weights.convert import export


def full_weights(case: Case) -> Outputs:
  """Every official tensor goes through the tables and comes back bit-equal."""
  if 'only' in case.config:
    return pixel_weights(case)
  config, params, vae_params = sizes.load_whole(case.config['model'], case.weights)
  vae = export(tables.wan_vae(config.vae), vae_params)
  back = {f'vae.model.{name}': value for name, value in vae.items()}
  back |= export(tables.tuna_official(config), params)
  rows = {}
  for name, tensor in case.weights.items():
    if name not in back or not np.array_equal(np.asarray(back[name]), np.asarray(tensor)):
      rows[name] = Row(
        case.name, f'w.{name}', False, tensor.shape, note='does not come back as it went in'
      )
  equal = f'{len(case.weights) - len(rows)} of {len(case.weights)} tensors come back bit-equal'
  rows[''] = Row(case.name, equal, not rows)
  return rows


def pixel_weights(case: Case) -> Outputs:
  """The same of Tuna-R and Tuna-2, whose weights share one file."""
  back = {}
  for variant in case.config['only']:
    config, params = sizes.load_pixel(case, variant)
    back |= export(designs.official(config), params)
  same = lambda name, w: name in back and np.array_equal(np.asarray(back[name]), np.asarray(w))
  equal = [same(name, tensor) for name, tensor in case.weights.items()]
  said = f'{sum(equal)} of {len(equal)} tensors come back bit-equal'
  return {'': Row(case.name, said, all(equal))}


# ---- forward and gradients


def forward(config, params, batch, x, t, masked=None) -> dict:
  """One call of the model and what flows between its towers, by the official names."""
  if config.design == 'late_fusion':
    params = with_absent(config, params, t)
  with arguments_of('decoder', 'flow_head') as calls:
    out = Tuna(config).apply({'params': params}, batch, x, t, masked=masked)
  (embeds, *_), (hidden, span, time, owner, in_span, *_) = calls
  inside = flow_layers(config, params['flow_head'], hidden, span, time, owner, in_span)
  heads = {f'head{i}': inside[f'block{i}'] for i in range(config.flow_head.num_layers)}
  logits = Tuna(config).apply({'params': params}, out.hidden, method='logits')[
    ..., : config.decoder.vocab_size
  ]
  seen = {
    'input_embeds': embeds,
    'llm_hidden': out.hidden,
    'logits': logits,
    'v_pred': inside['final'],
    'velocity': out.velocity,
    **heads,
  }
  if config.design == 'late_fusion' and x.shape[1]:
    where = (batch.coords, batch.image, batch.grid)
    seen['fused'] = Tuna(config).apply({'params': params}, x, *where, method='features')
    seen['bridged'] = inside['bridged']
  return seen


def with_absent(config, params, t):
  """Parameters whose words past the vocabulary are the time tokens of t [B, M], one after another.

  The official Show-o2 puts the time token of an absent span, (0, 0), at position 0 as if it were
  text (F5): there `tokens` holds the word of its image."""
  time = TimeEmbed(config).apply({'params': params['time_embed']}, t.reshape(-1))
  token = params['time_token']
  return with_words(config, params, time @ token['kernel'] + token['bias'])


def with_words(config, params, words):
  """Parameters whose embeddings past the vocabulary are `words` [n, D]."""
  first, embed = config.decoder.vocab_size, params['decoder']['embed']['embedding']
  table = jax.lax.dynamic_update_slice_in_dim(embed, words.astype(embed.dtype), first, axis=0)
  return {**params, 'decoder': {**params['decoder'], 'embed': {'embedding': table}}}


def official_means(ntp: losses.Sum, velocity: losses.Sum | None, options) -> dict:
  """loss_ntp, 0 where nothing is learned (not a number in Show-o2, F15); loss_flow, not a number
  there (B3) and 0 without pictures; their sum."""
  loss_ntp = ntp.mean()
  if 'num_diffusion_layers' in options:
    loss_ntp = jnp.sum(ntp.total) / jnp.sum(ntp.count)
  loss_flow = (
    jnp.float32(0) if velocity is None else jnp.sum(velocity.total) / jnp.sum(velocity.count)
  )
  loss = options['flow_coeff'] * loss_flow + options['ntp_coeff'] * loss_ntp
  return {'loss_ntp': loss_ntp, 'loss_flow': loss_flow, 'loss': loss}


def outcome(config, options):
  """(params, batch, x, t, velocity, selected, coefficients of flow and text, masked) -> (the sum to
  minimise, what `forward` gives and the official means)."""

  def loss(params, batch, x, t, velocity, selected, coefficients, masked=None):
    seen = forward(config, params, batch, x, t, masked)
    zeros = jnp.zeros_like(batch.tokens)
    logits = functools.partial(Tuna(config).apply, {'params': params}, method='logits')
    ntp = losses.next_token(logits, seen['llm_hidden'], batch.labels, batch.label_weight, zeros, 1)
    total, error = coefficients[1] * ntp.mean(), None
    if x.shape[1]:
      error = losses.velocity_error(
        seen['velocity'], velocity, selected, zeros[:, :1].repeat(x.shape[1], 1), 1
      )
      total += coefficients[0] * error.mean()
    return total, {**seen, **official_means(ntp, error, options)}

  return loss


def full_forward(case: Case) -> Outputs:
  """i: the model in training, with gradients by official name, and in inference."""
  model = case.config['model']
  options = model['showo'] if 'showo' in model else model['tuna_model']
  config = sizes.model_config(model, case.weights)
  params = sizes.load_tuna(config, case.weights)
  table, vocab = designs.official(config), config.decoder.vocab_size
  train = quick_jit(jax.grad(outcome(config, options), has_aux=True))
  subs = case.config['subs']
  layouts = {}
  for sub, s in subs.items():
    grid, tokens = s['thw'] if 'thw' in s else s['grid'], case.given(sub, 'text_tokens')
    positions = case.given(sub, 'mp') if case.has(sub, 'mp') else np.full((len(tokens), 1, 2), -1)
    layouts[sub] = positions, grid and tuple(grid), tokens.shape[1]
  pictures = {sub: l for sub, l in layouts.items() if l[1]}
  out = {}
  for sub, (positions, grid, length) in layouts.items():
    rows, images = positions.shape[:2]
    cells = images * int(np.prod(grid)) if grid else 0
    shape = common_shape(pictures) if grid else (rows, length, 0, images)
    batch = official.to_batch(
      case.given(sub, 'text_tokens'), positions, grid, config.token_dim, shape
    )
    if case.has(sub, 'text_labels'):
      labels, weight = official.to_next_token(case.given(sub, 'text_labels'), shape[1])
      batch.labels[:rows], batch.label_weight[:rows] = labels, weight
    for row, image in np.argwhere((positions[..., 0] == 0) & (positions[..., 1] == 0)):
      batch.tokens[row, 0] = vocab + row * shape[3] + image  # `with_absent`
    x, velocity = np.zeros_like(batch.latents), np.zeros_like(batch.latents)
    t = np.ones((shape[0], shape[3]), np.float32)
    selected = np.zeros(batch.image.shape, bool)
    image_masks = np.zeros(batch.tokens.shape, bool)
    if case.has(sub, 'image_masks'):
      image_masks[:rows, :length] = case.given(sub, 'image_masks')
    if grid:
      x[:rows, :cells] = token_rows(config, case.given(sub, 'image_latents'), rows)
      t[:rows, :images] = case.given(sub, 't').reshape(rows, images)
      selected = np.take_along_axis(image_masks, batch.place, axis=1) & official.placed(batch)
      if case.has(sub, 'image_labels'):
        velocity[:rows, :cells] = token_rows(config, case.given(sub, 'image_labels'), rows)
    # The official loss is not a number where nothing is drawn: gradients of loss_ntp alone.
    defined = selected.any() or not grid
    coefficients = (options['flow_coeff'], options['ntp_coeff']) if defined else (0.0, 1.0)
    gradients, seen = train(params, batch, x, t, velocity, selected, np.float32(coefficients))
    seen = dict(seen)
    if (drawn := seen.pop('velocity')) is not None and grid:
      if subs[sub].get('first_frame_as_cond'):
        drawn = drawing.hold(drawn, batch.coords)
      still = case.given(sub, 'image_latents').ndim == 4
      drawn = to_grids(config, drawn[:rows, :cells], images, grid)
      out[f'out.{sub}.v_img'] = drawn[:, :, 0] if still else drawn
    if 'fused' in seen:
      fused = seen.pop('fused')[:rows, :cells]
      out[f'out.{sub}.fused'] = rearrange(fused, 'b (n v) d -> (b n) v d', n=images)
    out.update(
      {
        f'out.{sub}.{name}': value[:rows, :length] if value.ndim else value
        for name, value in seen.items()
      }
    )
    out.update(_spliced(case, sub, batch, velocity, selected, rows, length))
    out.update(gradients_by_name(case, sub, export(table, gradients), vocab))
  return out


def _spliced(case: Case, sub: str, batch, velocity, selected, rows: int, length: int) -> Outputs:
  """Flow targets and their mask, at their sequence positions."""
  targets, mask = (
    np.zeros((*batch.tokens.shape, velocity.shape[-1]), np.float32),
    np.zeros_like(batch.tokens),
  )
  row, cell = np.nonzero(official.placed(batch))
  targets[row, batch.place[row, cell]] = velocity[row, cell]
  mask[row, batch.place[row, cell]] = selected[row, cell]
  return {
    f'out.{sub}.new_image_labels': targets[:rows, :length],
    f'out.{sub}.new_image_masks': mask[:rows, :length],
  }


def gradients_by_name(case: Case, sub: str, gradients, vocab: int) -> Outputs:
  """By official name. A norm of -1 is torch's 'no gradient', which is a gradient of zero here."""
  gradients = {name: np.asarray(value) for name, value in gradients.items()}
  embed = next(v for name, v in gradients.items() if name.endswith('embed_tokens.weight'))[:vocab]
  out = {f'out.{sub}.grad.{name}': value for name, value in gradients.items()}
  out[f'out.{sub}.grad_embed_rowsum'] = embed.sum(axis=1)
  if case.wants(sub, 'gradnorms'):
    norms = np.float32(
      [np.linalg.norm(gradients[name]) for name in case.config['grad_param_order']]
    )
    absent = case.tensors[f'out.{sub}.gradnorms'] == -1
    out[f'out.{sub}.gradnorms'] = np.where(absent & (norms == 0), -1, norms)
  return out


def token_rows(config, x, rows: int):
  """Official cells [(b n), c, t, h, w], stills without t -> rows of `Batch.latents` [b, V, C]."""
  x = x[:, :, None] if x.ndim == 4 else x
  x = to_tokens(rearrange(x, 'm c t h w -> m t h w c'), config.patch, config.layout)
  return x.reshape(rows, -1, config.token_dim)


def to_grids(config, x, images: int, grid):
  """The inverse of `token_rows`, of clips; grid: (frames, rows, columns) in tokens."""
  x = x.reshape(len(x) * images, *grid, config.token_dim)
  return rearrange(to_cells(x, config.patch, config.layout), 'm t h w c -> m c t h w')


# ---- the training wrapper


def encode(config, vae_params, images, noise):
  """Pixels [m, F, H, W, 3] and posterior noise [m, C, T, h, w] -> official latents like it."""
  moments = WanVae(config.vae).apply({'params': vae_params}, images, method='encode')
  noise = rearrange(noise, 'm c t h w -> m t h w c')
  return rearrange(
    posterior_sample(config.vae, moments, noise, config.compat), 'm t h w c -> m c t h w'
  )


def train_step(case: Case) -> Outputs:
  """i: from pixels and fixed draws to losses, through the train step's own loss."""
  options = case.config['model']['tuna_model']
  config, params, vae_params = sizes.load_whole(case.config['model'], case.weights)
  training = TrainConfig(
    model=config,
    stage='parity',
    steps=1,
    rows=1,
    length=1,
    visual=0,
    images=1,
    ntp_coeff=options['ntp_coeff'],
    flow_coeff=options['flow_coeff'],
  )
  encoder = quick_jit(functools.partial(encode, config))

  @quick_jit
  def run(params, batch, noise, t):
    draws = train_step_lib.Draws(noise, t, None)
    sums = train_step_lib.loss_sums(params, batch, draws, config=training)
    x_t = batch.latents
    if x_t.shape[1]:
      x_t, _ = flow.interpolate(
        x_t, noise, jnp.take_along_axis(t, jnp.maximum(batch.image - 1, 0), axis=1)
      )
    out = Tuna(config).apply({'params': params}, batch, x_t, t, flow=False)
    logits = Tuna(config).apply({'params': params}, out.hidden, method='logits')[
      ..., : config.decoder.vocab_size
    ]
    return {**official_means(sums['ntp'], sums.get('flow'), options), 'logits': logits}

  layouts = {}
  for sub, s in case.config['subs'].items():
    seen = s['type'] != 'mmu_text'  # its pictures are never looked at
    grid = case.given(sub, 'draw0').shape[2:] if seen else None
    layouts[sub] = case.given(sub, 'mp'), grid, case.given(sub, 'text_tokens').shape[1]
  pictures = {sub: l for sub, l in layouts.items() if l[1]}
  out = {}
  for sub, (positions, grid, length) in layouts.items():
    rows, images = positions.shape[:2]
    shape = common_shape(pictures) if grid else (rows, length, 0, images)
    batch = official.to_batch(
      case.given(sub, 'text_tokens'), positions, grid, config.vae.latent_channels, shape
    )
    noise, t = np.zeros_like(batch.latents), np.zeros(batch.target.shape, np.float32)
    if grid:
      kind, cells = case.config['subs'][sub], images * int(np.prod(grid))
      pixels = official.whole_chunks(_clips(case.given(sub, 'images'), kind))
      clean = np.asarray(encoder(vae_params, pixels, case.given(sub, 'draw0')))
      x0 = np.concatenate([case.given(sub, f'draw{1 + 2 * i}') for i in range(rows * images)])
      u = np.concatenate([case.given(sub, f'draw{2 + 2 * i}') for i in range(rows * images)])
      batch.target[:rows, images - 1] = kind['type'] != 'mmu'  # of an edit, the result
      drawn = flow.time_shift(jax.nn.sigmoid(u), flow.TRAIN_SHIFT).reshape(rows, images)
      t[:rows, :images] = jnp.where(batch.target[:rows, :images], drawn, 1.0)
      own_t = t[:rows, :images].reshape(-1)
      x_t, velocity = flow.interpolate(clean, x0, jnp.asarray(own_t))
      out.update(
        {
          f'out.{sub}.clean': clean,
          f'out.{sub}.xt': x_t,
          f'out.{sub}.ut': velocity,
          f'out.{sub}.t': own_t,
          f'out.{sub}.masks': case.given(sub, 'image_masks') * (kind['type'] != 'mmu'),
        }
      )
      batch.latents[:rows, :cells], noise[:rows, :cells] = (
        token_rows(config, clean, rows),
        token_rows(config, x0, rows),
      )
    batch.labels[:rows], batch.label_weight[:rows] = official.to_next_token(
      case.given(sub, 'text_labels'), shape[1]
    )
    seen = dict(run(params, batch, noise, t))
    out[f'out.{sub}.logits'] = seen.pop('logits')[:rows, :length]
    out.update({f'out.{sub}.{name}': value for name, value in seen.items()})
  return out


def _clips(images, sub):
  """[B, 3, H, W], [B, n, 3, H, W] or [B, 3, F, H, W] -> [(b n), F, H, W, 3]."""
  if images.ndim == 4:
    return rearrange(images, 'b c h w -> b 1 h w c')
  if sub.get('n', 1) > 1:
    return rearrange(images, 'b n c h w -> (b n) 1 h w c')
  return rearrange(images, 'b c f h w -> b f h w c')


CASES = {'full_weights': full_weights, 'full_forward': full_forward, 'train_step': train_step}
