"""Golden cases of what the model makes: pictures, clips, edits, text; and of how official data is
laid out.

Axes:  R pictures   B = 2 R rows, conditional first   n images per row   C latent channels
"""

from __future__ import annotations

import functools
import itertools
import types

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax import flow
from tuna_jax.config import UserError
from tuna_jax.data import tasks
from tuna_jax.data.segments import Image, Text, Video, layout
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.vae import WanVae
from tuna_jax.parity import official, sizes
from tuna_jax.parity.case import Case, Outputs, Row
from tuna_jax.parity.models import encode, forward, to_grids, token_rows
from tuna_jax.sample import image as drawing
from tuna_jax.sample import text as writing
from tuna_jax.sample.prompt import collate, split, strides
from tuna_jax.tools.xla_cpu import quick_jit


def _sampler(config, how: drawing.Drawing):
  """(params, prompts, grid, noise) -> (latents of the sampler, x and v at every evaluation)."""
  guidance, times = how.guidance, flow.times(how.points, how.shift)

  @quick_jit
  def step(params, prompts, grid, x, pair):
    field = drawing.velocity_field(
      config, params, prompts, grid, x.shape[1], guidance.numbers, branches=guidance.branches
    )
    return flow.solve(field, x, pair), field(x, pair[0])

  def run(params, prompts, grid, noise):
    x, states, velocities = noise, [], []
    for pair in itertools.pairwise(times):
      states.append(x)
      x, v = step(params, prompts, grid, x, np.stack(pair))
      velocities.append(v)
    whole = quick_jit(
      lambda params, prompts, noise: drawing.sample_latents(
        config, params, prompts, grid, noise, how
      )
    )
    return whole(params, prompts, noise), states, velocities

  return run


def _opened(case: Case):
  """(config, parameters, tokenizer, encode, decode): pixels and posterior noise to latents, latents
  to pixels.
  """
  config, params, vae_params = sizes.load_whole(case.config['model'], case.weights)
  decode = quick_jit(
    lambda params, z: WanVae(config.vae).apply({'params': params}, z, method='decode')
  )
  return (
    config,
    params,
    open_tokenizer(case),
    functools.partial(quick_jit(functools.partial(encode, config)), vae_params),
    lambda latents: jnp.clip(
      rearrange(
        decode(vae_params, rearrange(latents, 'b c t h w -> b t h w c')), 'b t h w c -> b c t h w'
      ),
      -1,
      1,
    ),
  )


def sampled(sub: str, config, params, tokenizer, plans, laid, noise, how) -> dict:
  """The outputs that all samplers share.

  plans: conditional rows, then the others. noise: [R, C, T, h, w].
  how: (scale of guidance, grid points, shift).
  """
  scale, points, shift = how
  frames, *sides = noise.shape[2:]
  grid = (frames, *(side // config.patch for side in sides))
  guidance = drawing.Guidance(scale)
  plans = plans[: guidance.branches * len(noise)]  # a scale of 1 needs no negative rows
  prompts = collate(
    [split(plan, tokenizer, strides(config))[0] for plan in plans], config.token_dim
  )
  sampler = _sampler(config, drawing.Drawing(guidance, points, shift))
  latents, states, velocities = sampler(
    params, prompts, np.int32([grid] * len(noise)), token_rows(config, noise, len(noise))
  )
  latents = to_grids(config, latents, 1, grid)
  values = {
    'tgrid': flow.times(points, shift),
    'latents': latents,
    'traj': jnp.stack([to_grids(config, x, 1, grid) for x in states]),
    'v': jnp.stack([to_grids(config, v, 1, grid) for v in velocities]),
    'text_tokens': np.stack([l.tokens for l in laid]),
    'mp': np.stack([l.positions for l in laid]),
  }
  return {f'out.{sub}.{name}': value for name, value in values.items()}


def sample_t2i(case: Case) -> Outputs:
  """j: pictures and clips from fixed noise, by our cached sampler."""
  config, params, tokenizer, _, decoder = _opened(case)
  out = {}
  for sub, s in case.config['subs'].items():
    noise = case.given(sub, 'z')
    cells = int(np.prod(noise.shape[2:]))
    room = s['L'] - (cells + 1) - 4
    ids = [
      _ids(case, sub, f'{branch}{i}')[:room]
      for branch in ('ids', 'null_ids')
      for i in range(len(noise))
    ]
    target = Video(np.zeros((*noise.shape[2:], 0), np.float32), True)
    plans = [[Text((tokenizer.bos, *row)), target, Text((tokenizer.eos,))] for row in ids]
    laid = [official.generation(tokenizer, row, cells + 1, s['L']) for row in ids]
    how = s['g'], s['steps'], s['shift']
    out.update(sampled(sub, config, params, tokenizer, plans, laid, noise, how))
    out[f'out.{sub}.images'] = decoder(out[f'out.{sub}.latents'])
  return out


def sample_edit(case: Case) -> Outputs:
  """j: an edit from fixed noise; the source is a sample of the posterior (B12)."""
  config, params, tokenizer, encoder, decoder = _opened(case)
  out = {}
  for sub, s in case.config['subs'].items():
    pixels = rearrange(case.given(sub, 'px'), 'b n c h w -> (b n) 1 h w c')
    source = encoder(pixels, case.given(sub, 'draw0'))
    noise = case.given(sub, 'draw3')
    cells = int(np.prod(noise.shape[2:]))
    room = s['L'] - 2 * (cells + 1) - 6
    ids = [_ids(case, sub, f'{branch}0')[:room] for branch in ('ids', 'null_ids')]
    target = Video(np.zeros((*noise.shape[2:], 0), np.float32), True)
    picture = Image(np.asarray(rearrange(source, '1 c t h w -> t h w c')))
    plans = [
      [Text((tokenizer.bos,)), picture, Text(row), target, Text((tokenizer.eos,))] for row in ids
    ]
    laid = [official.editing(tokenizer, row, cells + 1, s['L']) for row in ids]
    how = s['g'], s['steps'], s['shift']
    out.update(sampled(sub, config, params, tokenizer, plans, laid, noise, how))
    out[f'out.{sub}.images'] = decoder(out[f'out.{sub}.latents'])
    out[f'out.{sub}.src_latent'] = source
  return out


def mmu_generate(case: Case) -> Outputs:
  """l: greedy text about a picture, by our cached decoding and our own prompt."""
  config, params, tokenizer, encoder, _ = _opened(case)
  embed = quick_jit(
    lambda params, batch: forward(
      config, params, batch, batch.latents, jnp.ones(batch.grid.shape[:2])
    )['input_embeds']
  )
  out = {}
  for sub, s in case.config['subs'].items():
    latents = encoder(
      rearrange(case.given(sub, 'px'), 'b c h w -> b 1 h w c'), case.given(sub, 'draw0')
    )
    picture = Image(np.asarray(rearrange(latents, '1 c t h w -> t h w c')))
    plan = tasks.conversation(
      tokenizer, [('user', s['prompt'])], [picture], system=tasks.QWEN_SYSTEM, header=True
    )
    example = layout(plan, tokenizer, strides(config))
    prompts = collate([example], config.vae.latent_channels)
    first = int(np.flatnonzero(example.slot == 0)[0])
    out[f'out.{sub}.prompt_tokens'] = example.tokens[None]
    out[f'out.{sub}.mp'] = [[[first, int(example.kv_limit[first]) - first + 1]]]
    out[f'out.{sub}.input_embeds'] = embed(params, prompts)[:, : example.length]
    state = writing.start(config, params, prompts, s['n'])
    out |= decoded(sub, config, params, tokenizer.eos, state, s['n'])
    ids = out[f'out.{sub}.tokens']
    wanted = case.config.get('decoded_text', {}).get(sub)
    if wanted is not None:
      text = tokenizer.decode(ids)
      out[f'decoded {sub}'] = Row(
        case.name,
        f'decoded_text.{sub}',
        text == wanted,
        (),
        note='' if text == wanted else f'{text!r}, not {wanted!r}',
      )
  return out


def decoded(sub: str, config, params, eos: int, state, count: int) -> dict:
  """Greedy tokens of one prompt, with the logits of every step."""
  steps = []
  while len(steps) < count and not bool(state.done.all()):
    steps.append(np.asarray(state.logits)[0, : config.decoder.vocab_size])
    state = writing.advance(config, params, state, len(steps), eos=eos)
  best = np.sort(np.stack(steps), axis=1)
  return {
    f'out.{sub}.tokens': writing.finished(state, eos)[0],
    f'out.{sub}.step_logits': np.stack(steps),
    f'out.{sub}.margin': best[:, -1] - best[:, -2],
  }


def open_tokenizer(case: Case) -> Tokenizer:
  """The set's own tokenizer, in a folder beside the index; ValueError where a role has another id
  than the case says.
  """
  folders = sorted(path for path in case.folder.iterdir() if (path / 'tokenizer.json').exists())
  if len(folders) != 1:
    raise UserError(
      f'expected one folder with a tokenizer.json beside the index, found {len(folders)}'
    )
  tokenizer = Tokenizer.from_dir(folders[0])
  for role, name in (
    ('bos', 'bos_id'),
    ('eos', 'eos_id'),
    ('boi', 'boi_id'),
    ('eoi', 'eoi_id'),
    ('img_pad', 'img_pad_id'),
    ('pad', 'pad_id'),
    ('image', 'img_id'),
  ):
    wanted = case.config.get('token_ids', {}).get(name, getattr(tokenizer, role))
    if getattr(tokenizer, role) != wanted:
      raise UserError(
        f'{folders[0].name}: {name} is {getattr(tokenizer, role)}, the case says {wanted}'
      )
  return tokenizer


def _ids(case: Case, *path: str) -> tuple[int, ...]:
  """The given ids; none where the case gives none (an empty negative prompt)."""
  return tuple(case.given(*path).tolist()) if case.has(*path) else ()


# ---- layouts


def layouts(case: Case) -> Outputs:
  """k: every formatter on ids, and every data set on records and pictures."""
  tokenizer, out = open_tokenizer(case), {}
  special = types.SimpleNamespace(
    **{role.removesuffix('_id'): i for role, i in case.config['token_ids'].items()},
    image=case.config['token_ids']['img_id'],
  )
  for sub, s in case.config['subs'].items():
    values = (
      _prepared(case, sub, s, special)
      if s['fn'].startswith('prep')
      else (
        _item(case, sub, s, tokenizer)
        if s['fn'].startswith('ds')
        else _official(_formatted(case, sub, s, special))
      )
    )
    out.update({f'out.{sub}.{name}': value for name, value in values.items()})
  return out


def _official(laid: official.Laid) -> dict:
  return {
    'text_tokens': laid.tokens,
    'text_labels': laid.labels,
    'text_mask': laid.text_mask,
    'image_mask': laid.image_mask,
    'mp': laid.positions,
  }


def _formatted(case, sub, s, special) -> official.Laid:
  formatters = {
    'gen': official.generation,
    'edit': official.editing,
    'und': official.understanding,
    **dict.fromkeys(('conv_und', 'conv_text', 'conv_gen'), official.chat),
  }
  if s['fn'] not in formatters:
    raise UserError(
      f'{sub}: unknown formatter {s["fn"]!r}; known: {", ".join(formatters)}, prep_*, ds_*'
    )
  prompt = {'prompt': _ids(case, sub, 'prompt_ids')} if case.has(sub, 'prompt_ids') else {}
  return formatters[s['fn']](special, _ids(case, sub, 'ids'), s['N'], s['L'], **prompt)


def _prepared(case, sub, s, special) -> dict:
  """Conditional and null rows of a request, texts cut to max_text_len."""
  room, span = s['max_text_len'], s['N']
  formatter, length = {
    'prep_t2i': (official.generation, room + span + 4),
    'prep_edit': (official.editing, room + 2 * span + 6),
  }[s['fn']]
  cond, null = (
    formatter(special, _ids(case, sub, name)[:room], span, length) for name in ('ids', 'null_ids')
  )
  return {
    'text_tokens': cond.tokens[None],
    'mp': cond.positions[None],
    'null_tokens': null.tokens[None],
    'null_mp': null.positions[None],
  }


def _item(case, sub, s, tokenizer) -> dict:
  items = {
    'ds_ti': official.image_item,
    'ds_edit': official.edit_item,
    'ds_video': official.video_item,
  }
  pictures = [case.given(sub, f'img{i}') for i in range(len(s['img_hw']))]
  laid, pixels = items[s['fn']](tokenizer, s['record'], pictures, **s['kw'])
  return {**_official(laid), 'images': pixels}


CASES = {
  'sample_t2i': sample_t2i,
  'sample_edit': sample_edit,
  'mmu_generate': mmu_generate,
  'layout': layouts,
}
