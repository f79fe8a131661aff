"""Golden cases of the whole model: forward and gradients, the training wrapper, transport, sampling, text, layouts.

Axes:  B rows   L positions   V latent cells   n images a row   C latent channels   D width   K grid points
"""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax import flow, losses
from tuna_jax.data import official, tasks
from tuna_jax.data.segments import Image, Text, Video, layout
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.tuna import Tuna
from tuna_jax.models.vae import WanVae, posterior_sample
from tuna_jax.sample import image as drawing
from tuna_jax.sample import text as writing
from tuna_jax.sample.prompt import collate, split, strides
from tuna_jax.train import step as train_step_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.weights import parity_sizes as sizes
from tuna_jax.weights import tables
from tuna_jax.weights.convert import export
from tuna_jax.weights.parity import Case, Row
from tuna_jax.weights.parity_parts import Outputs, arguments_of, common_shape, flow_layers

TOKENIZER = 'tiny_tokenizer'


def full_weights(case: Case) -> Outputs:
  """Every official tensor goes through the tables and comes back bit-equal."""
  config = sizes.model_config(case.config['model'], case.weights)
  back = {**export(tables.tuna_official(config), sizes.load_tuna(config, case.weights)),
          **{f'vae.model.{name}': value for name, value in
             export(tables.wan_vae(config.vae), sizes.load_vae(config.vae, case.weights)).items()}}
  rows = {}
  for name, tensor in case.weights.items():
    equal = name in back and np.array_equal(np.asarray(back[name]), np.asarray(tensor))
    if not equal:
      rows[name] = Row(case.name, f'w.{name}', False, tensor.shape, note='does not come back as it went in')
  rows[''] = Row(case.name, f'{len(case.weights) - len(rows)} of {len(case.weights)} tensors come back bit-equal', not rows)
  return rows


# ---- forward and gradients


def forward(config, params, batch, x, t) -> dict:
  """One call of the model and what flows between its towers, by the official names."""
  with arguments_of('decoder', 'flow_head') as calls:
    out = Tuna(config).apply({'params': params}, batch, x, t)
  (embeds, *_), (hidden, span, time, owner, in_span, *_) = calls
  inside = flow_layers(config, params['flow_head'], hidden, span, time, owner, in_span)
  heads = {f'head{i}': inside[f'block{i}'] for i in range(config.flow_head.num_layers)}
  logits = Tuna(config).apply({'params': params}, out.hidden, method='logits')[..., :config.decoder.vocab_size]
  return {'input_embeds': embeds, 'llm_hidden': out.hidden, 'logits': logits, 'v_pred': inside['final'],
          'velocity': out.velocity, **heads}


def official_means(ntp: losses.Sum, velocity: losses.Sum | None, options) -> dict:
  """loss_ntp, 0 where nothing is learned; loss_flow, not a number there (B3) and 0 without pictures; their sum."""
  loss_ntp = ntp.mean()
  loss_flow = jnp.float32(0) if velocity is None else jnp.sum(velocity.total) / jnp.sum(velocity.count)
  loss = options['flow_coeff'] * loss_flow + options['ntp_coeff'] * loss_ntp
  return {'loss_ntp': loss_ntp, 'loss_flow': loss_flow, 'loss': loss}


def full_forward(case: Case) -> Outputs:
  """i: the model in training, with gradients by official name, and in inference."""
  options = case.config['model']['tuna_model']
  config = sizes.model_config(case.config['model'], case.weights)
  params = sizes.load_tuna(config, case.weights)
  table = tables.tuna_official(config)
  channels, vocab = config.vae.latent_channels, config.decoder.vocab_size

  def loss(params, batch, x, t, velocity, selected, coefficients):
    seen = forward(config, params, batch, x, t)
    zeros = jnp.zeros_like(batch.tokens)
    logits = functools.partial(Tuna(config).apply, {'params': params}, method='logits')
    ntp = losses.next_token(logits, seen['llm_hidden'], batch.labels, batch.label_weight, zeros, 1)
    total, error = coefficients[1] * ntp.mean(), None
    if x.shape[1]:
      error = losses.velocity_error(seen['velocity'], velocity, selected, zeros[:, :1].repeat(x.shape[1], 1), 1)
      total += coefficients[0] * error.mean()
    return total, {**seen, **official_means(ntp, error, options)}

  train = sizes.quick_jit(jax.grad(loss, has_aux=True))
  subs = case.config['subs']
  layouts = {sub: (case.given(sub, 'mp'), s['thw'] and tuple(s['thw']), s['L']) for sub, s in subs.items()}
  pictures = {sub: l for sub, l in layouts.items() if l[1]}
  out = {}
  for sub, (positions, grid, length) in layouts.items():
    rows, images = positions.shape[:2]
    cells = images * int(np.prod(grid)) if grid else 0
    shape = common_shape(pictures) if grid else (rows, length, 0, images)
    batch = official.to_batch(case.given(sub, 'text_tokens'), positions, grid, channels, shape)
    labels, weight = official.to_next_token(case.given(sub, 'text_labels'), shape[1])
    batch.labels[:rows], batch.label_weight[:rows] = labels, weight
    x, velocity = np.zeros_like(batch.latents), np.zeros_like(batch.latents)
    t = np.ones((shape[0], shape[3]), np.float32)
    selected = np.zeros(batch.image.shape, bool)
    image_masks = np.zeros(batch.tokens.shape, bool)
    image_masks[:rows, :length] = case.given(sub, 'image_masks')
    if grid:
      x[:rows, :cells] = _cells(case.given(sub, 'image_latents'), rows)
      t[:rows, :images] = case.given(sub, 't').reshape(rows, images)
      selected = np.take_along_axis(image_masks, batch.place, axis=1) & official.placed(batch)
      if case.has(sub, 'image_labels'):
        velocity[:rows, :cells] = _cells(case.given(sub, 'image_labels'), rows)
    defined = selected.any() or not grid  # the official loss is not a number elsewhere: gradients of loss_ntp alone
    coefficients = (options['flow_coeff'], options['ntp_coeff']) if defined else (0.0, 1.0)
    gradients, seen = train(params, batch, x, t, velocity, selected, np.float32(coefficients))
    seen = dict(seen)
    if (drawn := seen.pop('velocity')) is not None and grid:
      out[f'out.{sub}.v_img'] = _grids(drawn[:rows, :cells], images, grid)
    out.update({f'out.{sub}.{name}': value if value.ndim == 0 else value[:rows, :length] for name, value in seen.items()})
    out.update(_spliced(case, sub, batch, velocity, selected, rows, length))
    out.update(_gradients(case, sub, export(table, gradients), vocab))
  return out


def _spliced(case: Case, sub: str, batch, velocity, selected, rows: int, length: int) -> Outputs:
  """Flow targets and their mask, at their sequence positions."""
  targets, mask = np.zeros((*batch.tokens.shape, velocity.shape[-1]), np.float32), np.zeros_like(batch.tokens)
  row, cell = np.nonzero(official.placed(batch))
  targets[row, batch.place[row, cell]] = velocity[row, cell]
  mask[row, batch.place[row, cell]] = selected[row, cell]
  return {f'out.{sub}.new_image_labels': targets[:rows, :length], f'out.{sub}.new_image_masks': mask[:rows, :length]}


def _gradients(case: Case, sub: str, gradients, vocab: int) -> Outputs:
  """By official name. A norm of -1 is torch's 'no gradient', which is a gradient of zero here."""
  gradients = {name: np.asarray(value) for name, value in gradients.items()}
  embed = gradients['tuna.model.embed_tokens.weight'][:vocab]
  out = {f'out.{sub}.grad.{name}': value for name, value in gradients.items()}
  out[f'out.{sub}.grad_embed_rowsum'] = embed.sum(axis=1)
  if case.wants(sub, 'gradnorms'):
    norms = np.float32([np.linalg.norm(gradients[name]) for name in case.config['grad_param_order']])
    absent = case.tensors[f'out.{sub}.gradnorms'] == -1
    out[f'out.{sub}.gradnorms'] = np.where(absent & (norms == 0), -1, norms)
  return out


def _cells(x, rows: int):
  """[(b n), c, t, h, w] -> [b, (n t h w), c]."""
  return rearrange(x, '(b n) c t h w -> b (n t h w) c', b=rows)


def _grids(x, images: int, grid):
  """The inverse of `_cells`."""
  return rearrange(x, 'b (n t h w) c -> (b n) c t h w', n=images, t=grid[0], h=grid[1], w=grid[2])


# ---- the training wrapper


def encode(config, vae_params, images, noise):
  """Pixels [m, F, H, W, 3] and posterior noise [m, C, T, h, w] -> official latents [m, C, T, h, w]."""
  moments = WanVae(config.vae).apply({'params': vae_params}, images, method='encode')
  noise = rearrange(noise, 'm c t h w -> m t h w c')
  return rearrange(posterior_sample(config.vae, moments, noise, config.compat), 'm t h w c -> m c t h w')


def train_step(case: Case) -> Outputs:
  """i: from pixels and fixed draws to losses, through the train step's own loss."""
  options = case.config['model']['tuna_model']
  config = sizes.model_config(case.config['model'], case.weights)
  params, vae_params = sizes.load_tuna(config, case.weights), sizes.load_vae(config.vae, case.weights)
  training = TrainConfig(model=config, stage='parity', steps=1, rows=1, length=1, visual=0, images=1,
                         ntp_coeff=options['ntp_coeff'], flow_coeff=options['flow_coeff'])
  encoder = sizes.quick_jit(functools.partial(encode, config))

  @sizes.quick_jit
  def run(params, batch, noise, t):
    sums = train_step_lib.loss_sums(params, batch, noise, t, config=training)
    x_t = batch.latents
    if x_t.shape[1]:
      x_t, _ = flow.interpolate(x_t, noise, jnp.take_along_axis(t, jnp.maximum(batch.image - 1, 0), axis=1))
    out = Tuna(config).apply({'params': params}, batch, x_t, t, flow=False)
    logits = Tuna(config).apply({'params': params}, out.hidden, method='logits')[..., :config.decoder.vocab_size]
    return {**official_means(sums['ntp'], sums.get('flow'), options), 'logits': logits}

  out = {}
  for sub, s in case.config['subs'].items():
    tokens, positions = case.given(sub, 'text_tokens'), case.given(sub, 'mp')
    rows, images = positions.shape[:2]
    if s['type'] == 'mmu_text':  # its pictures are never looked at
      batch = official.to_batch(tokens, positions, None, config.vae.latent_channels, (*tokens.shape, 0, images))
      noise, t = np.zeros_like(batch.latents), np.zeros((rows, images), np.float32)
    else:
      pixels = _clips(case.given(sub, 'images'), s)
      clean = np.asarray(encoder(vae_params, official.whole_chunks(pixels), case.given(sub, 'draw0')))
      x0 = np.concatenate([case.given(sub, f'draw{1 + 2 * i}') for i in range(rows * images)])
      u = np.concatenate([case.given(sub, f'draw{2 + 2 * i}') for i in range(rows * images)])
      target = np.zeros((rows, images), bool)
      target[:, -1] = s['type'] != 'mmu'  # of an edit, the result
      t = np.asarray(jnp.where(target, flow.time_shift(jax.nn.sigmoid(u), flow.TRAIN_SHIFT).reshape(rows, images), 1.0))
      x_t, velocity = flow.interpolate(clean, x0, jnp.asarray(t.reshape(-1)))
      masks = case.given(sub, 'image_masks') * (s['type'] != 'mmu')
      out.update({f'out.{sub}.clean': clean, f'out.{sub}.xt': x_t, f'out.{sub}.ut': velocity,
                  f'out.{sub}.t': t.reshape(-1), f'out.{sub}.masks': masks})
      batch = official.to_batch(tokens, positions, clean.shape[2:], clean.shape[1])
      batch.latents[:], batch.target[:] = _cells(clean, rows), target
      noise = _cells(x0, rows)
    labels, weight = official.to_next_token(case.given(sub, 'text_labels'))
    seen = run(params, batch._replace(labels=labels, label_weight=weight), noise, t)
    out.update({f'out.{sub}.{name}': value for name, value in seen.items()})
  return out


def _clips(images, sub):
  """[B, 3, H, W], [B, n, 3, H, W] or [B, 3, F, H, W] -> [(b n), F, H, W, 3]."""
  if images.ndim == 4:
    return rearrange(images, 'b c h w -> b 1 h w c')
  if sub.get('n', 1) > 1:
    return rearrange(images, 'b n c h w -> (b n) 1 h w c')
  return rearrange(images, 'b c f h w -> b f h w c')


# ---- flow matching


def transport(case: Case) -> Outputs:
  """j: times, path, grids, Euler."""
  u, r, x0, x1, t = (jnp.asarray(case.given(name)) for name in ('u', 'r', 'x0', 'x1', 't'))
  lognormal = jax.nn.sigmoid(u)
  shift = functools.partial(flow.time_shift, shift=flow.TRAIN_SHIFT)
  x_t, velocity = flow.interpolate(x1, x0, t)
  out = {'out.mu': np.float32(np.log(flow.TRAIN_SHIFT)), 'out.xt': x_t, 'out.ut': velocity,
         'out.t_lognorm': lognormal, 'out.t_lognorm_shift': shift(lognormal),
         'out.t_uniform': r, 'out.t_uniform_shift': shift(r), 'out.t_maxt0_1': shift(jnp.ones_like(u))}
  for points in case.config['steps']:
    for factor in case.config['shifts']:
      out[f'out.grid.n{points}.s{"none" if factor is None else factor}'] = flow.times(points, factor or 1.0)
  for points, level in case.config['noise_levels']:
    out[f'out.grid_noise.n{points}.nl{level}'] = flow.times(points)[int((1 - level) * points):]
  x, grid = jnp.asarray(case.given('x_toy')), flow.times(len(case.tensors['out.euler_toy']))
  states = [x] + [flow.solve(lambda x, t: -0.5 * x + t, x, grid[:k + 1]) for k in range(1, len(grid))]
  return {**out, 'out.euler_toy': jnp.stack(states)}


# ---- sampling


def _sampler(config, guidance, points: int, shift: float):
  """(params, prompts, grid, noise) -> (latents of the sampler itself, x and v at every evaluation)."""

  def run(params, prompts, grid, noise):
    pictures = len(noise)
    cache = drawing.prefill(config, params, prompts, noise.shape[1] + 1)
    target = drawing.target_batch(prompts, np.tile(grid, (guidance.branches, 1)), noise.shape[1])
    times = flow.times(points, shift)

    def evaluate(x, pair):
      t, after = pair
      time = jnp.full((guidance.branches * pictures, 1), t)
      v = Tuna(config).apply({'params': params}, target, jnp.tile(x, (guidance.branches, 1, 1)), time, cache).velocity
      v = drawing.combine(jnp.split(v, guidance.branches), guidance.scale, 1.0)
      return x + (after - t) * v, (x, v)

    steps = jax.lax.scan(evaluate, noise, (times[:-1], times[1:]))[1]
    return drawing.sample_latents(
        config, params, prompts, grid, noise, guidance=guidance, points=points, shift=shift), steps

  return lambda params, prompts, grid, noise: sizes.quick_jit(
      lambda params, prompts, noise: run(params, prompts, grid, noise))(params, prompts, noise)


def _sampled(case: Case, sub: str, config, params, decoder, plans, laid, noise) -> Outputs:
  """The outputs that both samplers share. plans: conditional rows, then the others; noise [R, C, T, h, w]."""
  s, tokenizer, grid = case.config['subs'][sub], _tokenizer(case), noise.shape[2:]
  prompts = collate([split(plan, tokenizer, strides(config))[0] for plan in plans], noise.shape[1])
  sampler = _sampler(config, drawing.Guidance(s['g']), s['steps'], s['shift'])
  latents, (states, velocities) = sampler(params, prompts, np.int32([grid] * len(noise)), _cells(noise, len(noise)))
  latents = _grids(latents, 1, grid)
  values = {
      'tgrid': flow.times(s['steps'], s['shift']), 'latents': latents,
      'traj': jnp.stack([_grids(x, 1, grid) for x in states]), 'v': jnp.stack([_grids(v, 1, grid) for v in velocities]),
      'images': decoder(latents),
      'text_tokens': np.stack([l.tokens for l in laid]), 'mp': np.stack([l.positions for l in laid])}
  return {f'out.{sub}.{name}': value for name, value in values.items()}


def _decoder(case: Case, config):
  params = sizes.load_vae(config.vae, case.weights)
  decode = sizes.quick_jit(lambda params, z: WanVae(config.vae).apply({'params': params}, z, method='decode'))
  return lambda latents: jnp.clip(rearrange(
      decode(params, rearrange(latents, 'b c t h w -> b t h w c')), 'b t h w c -> b c t h w'), -1, 1)


def sample_t2i(case: Case) -> Outputs:
  """j: pictures and clips from fixed noise, by our cached sampler."""
  config = sizes.model_config(case.config['model'], case.weights)
  params, decoder, tokenizer = sizes.load_tuna(config, case.weights), _decoder(case, config), _tokenizer(case)
  out = {}
  for sub, s in case.config['subs'].items():
    noise = case.given(sub, 'z')
    cells = int(np.prod(noise.shape[2:]))
    room = s['L'] - (cells + 1) - 4
    ids = [_ids(case, sub, f'{branch}{i}')[:room] for branch in ('ids', 'null_ids') for i in range(len(noise))]
    target = Video(np.zeros((*noise.shape[2:], 0), np.float32), True)
    plans = [[Text((tokenizer.bos, *row)), target, Text((tokenizer.eos,))] for row in ids]
    laid = [official.generation(tokenizer, row, cells + 1, s['L']) for row in ids]
    out.update(_sampled(case, sub, config, params, decoder, plans, laid, noise))
  return out


def sample_edit(case: Case) -> Outputs:
  """j: an edit from fixed noise; the source is a sample of the posterior (B12)."""
  config = sizes.model_config(case.config['model'], case.weights)
  params, decoder, tokenizer = sizes.load_tuna(config, case.weights), _decoder(case, config), _tokenizer(case)
  encoder, vae_params = sizes.quick_jit(functools.partial(encode, config)), sizes.load_vae(config.vae, case.weights)
  out = {}
  for sub, s in case.config['subs'].items():
    source = encoder(vae_params, rearrange(case.given(sub, 'px'), 'b n c h w -> (b n) 1 h w c'), case.given(sub, 'draw0'))
    noise = case.given(sub, 'draw3')
    cells = int(np.prod(noise.shape[2:]))
    room = s['L'] - 2 * (cells + 1) - 6
    ids = [_ids(case, sub, f'{branch}0')[:room] for branch in ('ids', 'null_ids')]
    target = Video(np.zeros((*noise.shape[2:], 0), np.float32), True)
    picture = Image(np.asarray(rearrange(source, '1 c t h w -> t h w c')))
    plans = [[Text((tokenizer.bos,)), picture, Text(row), target, Text((tokenizer.eos,))] for row in ids]
    laid = [official.editing(tokenizer, row, cells + 1, s['L']) for row in ids]
    out.update(_sampled(case, sub, config, params, decoder, plans, laid, noise))
    out[f'out.{sub}.src_latent'] = source
  return out


def mmu_generate(case: Case) -> Outputs:
  """l: greedy text about a picture, by our cached decoding and our own prompt."""
  config = sizes.model_config(case.config['model'], case.weights)
  params, tokenizer = sizes.load_tuna(config, case.weights), _tokenizer(case)
  encoder, vae_params = sizes.quick_jit(functools.partial(encode, config)), sizes.load_vae(config.vae, case.weights)
  embed = sizes.quick_jit(lambda params, batch: forward(
      config, params, batch, batch.latents, jnp.ones(batch.grid.shape[:2]))['input_embeds'])
  out = {}
  for sub, s in case.config['subs'].items():
    latents = encoder(vae_params, rearrange(case.given(sub, 'px'), 'b c h w -> b 1 h w c'), case.given(sub, 'draw0'))
    picture = Image(np.asarray(rearrange(latents, '1 c t h w -> t h w c')))
    plan = tasks.conversation(tokenizer, [('user', s['prompt'])], [picture], system=tasks.QWEN_SYSTEM, header=True)
    example = layout(plan, tokenizer, strides(config))
    prompts = collate([example], config.vae.latent_channels)
    first = int(np.flatnonzero(example.slot == 0)[0])
    out[f'out.{sub}.prompt_tokens'] = example.tokens[None]
    out[f'out.{sub}.mp'] = [[[first, int(example.kv_limit[first]) - first + 1]]]
    out[f'out.{sub}.input_embeds'] = embed(params, prompts)[:, :example.length]
    state, steps = writing.start(config, params, prompts, s['n']), []
    while len(steps) < s['n'] and not bool(state.done.all()):
      steps.append(np.asarray(state.logits)[0, :config.decoder.vocab_size])
      state = writing.advance(config, params, state, len(steps), eos=tokenizer.eos)
    ids = writing.finished(state, tokenizer.eos)[0]
    best = np.sort(np.stack(steps), axis=1)
    out.update({f'out.{sub}.tokens': ids, f'out.{sub}.step_logits': np.stack(steps),
                f'out.{sub}.margin': best[:, -1] - best[:, -2]})
    wanted = case.config.get('decoded_text', {}).get(sub)
    if wanted is not None:
      text = tokenizer.decode(ids)
      out[f'decoded {sub}'] = Row(case.name, f'decoded_text.{sub}', text == wanted, (), note='' if text == wanted else
                                  f'{text!r}, not {wanted!r}')
  return out


def _tokenizer(case: Case) -> Tokenizer:
  """The set's own tokenizer; ValueError where a role has another id than the case says."""
  tokenizer = Tokenizer.from_dir(case.folder / TOKENIZER)
  for role, name in (('bos', 'bos_id'), ('eos', 'eos_id'), ('boi', 'boi_id'), ('eoi', 'eoi_id'),
                     ('img_pad', 'img_pad_id'), ('pad', 'pad_id'), ('image', 'img_id')):
    wanted = case.config.get('token_ids', {}).get(name, getattr(tokenizer, role))
    if getattr(tokenizer, role) != wanted:
      raise ValueError(f'{TOKENIZER}: {name} is {getattr(tokenizer, role)}, the case says {wanted}')
  return tokenizer


def _ids(case: Case, *path: str) -> tuple[int, ...]:
  """The given ids; none where the case gives none (an empty negative prompt)."""
  return tuple(case.given(*path).tolist()) if case.has(*path) else ()


# ---- layouts


def layouts(case: Case) -> Outputs:
  """k: every formatter on ids, and every data set on records and pictures."""
  tokenizer, out = _tokenizer(case), {}
  special = types.SimpleNamespace(
      **{role.removesuffix('_id'): i for role, i in case.config['token_ids'].items()},
      image=case.config['token_ids']['img_id'])
  for sub, s in case.config['subs'].items():
    values = _prepared(case, sub, s, special) if s['fn'].startswith('prep') else (
        _item(case, sub, s, tokenizer) if s['fn'].startswith('ds') else _official(_formatted(case, sub, s, special)))
    out.update({f'out.{sub}.{name}': value for name, value in values.items()})
  return out


def _official(laid: official.Laid) -> dict:
  return {'text_tokens': laid.tokens, 'text_labels': laid.labels, 'text_mask': laid.text_mask,
          'image_mask': laid.image_mask, 'mp': laid.positions}


def _formatted(case, sub, s, special) -> official.Laid:
  formatters = {'gen': official.generation, 'edit': official.editing, 'und': official.understanding,
                **dict.fromkeys(('conv_und', 'conv_text', 'conv_gen'), official.chat)}
  if s['fn'] not in formatters:
    raise ValueError(f'{sub}: unknown formatter {s["fn"]!r}; known: {", ".join(formatters)}, prep_*, ds_*')
  prompt = {'prompt': _ids(case, sub, 'prompt_ids')} if case.has(sub, 'prompt_ids') else {}
  return formatters[s['fn']](special, _ids(case, sub, 'ids'), s['N'], s['L'], **prompt)


def _prepared(case, sub, s, special) -> dict:
  """Conditional and null rows of a request, texts cut to max_text_len."""
  room, span = s['max_text_len'], s['N']
  formatter, length = {'prep_t2i': (official.generation, room + span + 4),
                       'prep_edit': (official.editing, room + 2 * span + 6)}[s['fn']]
  cond, null = (formatter(special, _ids(case, sub, name)[:room], span, length) for name in ('ids', 'null_ids'))
  return {'text_tokens': cond.tokens[None], 'mp': cond.positions[None],
          'null_tokens': null.tokens[None], 'null_mp': null.positions[None]}


def _item(case, sub, s, tokenizer) -> dict:
  items = {'ds_ti': official.image_item, 'ds_edit': official.edit_item, 'ds_video': official.video_item}
  pictures = [case.given(sub, f'img{i}') for i in range(len(s['img_hw']))]
  laid, pixels = items[s['fn']](tokenizer, s['record'], pictures, **s['kw'])
  return {**_official(laid), 'images': pixels}


CASES = {
    'full_weights': full_weights, 'full_forward': full_forward, 'train_step': train_step, 'transport': transport,
    'sample_t2i': sample_t2i, 'sample_edit': sample_edit, 'mmu_generate': mmu_generate, 'layout': layouts}
