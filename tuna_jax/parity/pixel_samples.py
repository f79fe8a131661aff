"""Golden cases of what Tuna-R and Tuna-2 make: pictures, edits and answers (docs/pixel.md 6).

Axes:  H, W pixels
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax import flow
from tuna_jax.data import tasks
from tuna_jax.data.segments import Image, Text, layout
from tuna_jax.models.tuna import Tuna
from tuna_jax.parity import models, official, samples, sizes, towers
from tuna_jax.parity.case import Case, Outputs
from tuna_jax.sample import image as drawing
from tuna_jax.sample import text as writing
from tuna_jax.sample.prompt import collate, split, strides
from tuna_jax.tools.xla_cpu import quick_jit


def _sampled(case: Case, sub: str, config, params, tokenizer, plans, laid) -> Outputs:
  """Every state and prediction, by our prefill and solver; the last state, by our sampler."""
  s, noise = case.config['subs'][sub], case.given(sub, 'z') * case.config['subs'][sub]['scale']
  pictures, grid = len(noise), np.array([[1, *s['grid']]] * len(noise), np.int32)
  interval = s.get('interval') if case.config['variant'] == 'tuna_r' else None
  low, high = interval or (0.0, 1.0)
  prompts = collate(
    [split(plan, tokenizer, strides(config))[0] for plan in plans], config.token_dim
  )
  x0, times = models.token_rows(config, noise, pictures), flow.times(s['steps'] + 1, 1.0)
  seen = []

  @quick_jit
  def run(params, prompts, x0):
    cache = drawing.prefill(config, params, prompts, x0.shape[1] + 1)
    target = drawing.target_batch(prompts, np.tile(grid, (2, 1)), x0.shape[1])

    def velocity(x, t):
      time = jnp.full((2 * pictures, 1), t, jnp.float32)
      both = Tuna(config).apply({'params': params}, target, jnp.tile(x, (2, 1, 1)), time, cache)
      guidance = jnp.where((t < high) & ((low == 0) | (t > low)), s['g'], 1.0)
      v = drawing.combine(jnp.split(both.velocity, 2), guidance, 1.0)
      clean = x + jnp.maximum(1 - t, flow.MIN_TIME_LEFT) * v
      jax.debug.callback(lambda *now: seen.append(now), x, clean, t, guidance, ordered=True)
      return v

    return flow.solve(velocity, x0, times, s['method'])

  jax.block_until_ready(run(params, prompts, x0))
  jax.effects_barrier()
  states, clean, t, scales = (np.stack(values) for values in zip(*seen))
  how = drawing.Drawing(
    drawing.Guidance(s['g'], interval=tuple(map(float, interval or (0.0, 1.0)))),
    s['steps'] + 1, 1.0, s['method'],
  )  # fmt: skip
  final = drawing.sample_latents(config, params, prompts, grid, x0, how)

  def pixels(x):
    return models.to_grids(config, np.asarray(x), 1, grid[0])

  final, clean = pixels(final), np.stack([pixels(x) for x in clean])
  # From the official last state: truncation makes a step of a difference in the last digit.
  shown = case.tensors[f'out.{sub}.final']
  if case.config['variant'] == 'tuna_r':  # P5
    shown = (shown - shown.min()) / (shown.max() - shown.min() + np.float32(1e-5)) * 2 - 1
  shown = rearrange(np.clip(shown, -1, 1), 'b c 1 h w -> b h w c')
  values = {
    't': t,
    'g': scales,
    'traj': np.stack([pixels(x) for x in states]),
    'x': clean if case.entries[f'out.{sub}.x']['shape'][0] > 1 else clean[-1:],
    'final': final,
    'images': ((shown + 1) / 2 * 255).astype(np.uint8),
    'text_tokens': np.stack([row.tokens for row in laid]),
    'mp': np.stack([row.positions for row in laid]),
  }
  return {f'out.{sub}.{name}': value for name, value in values.items()}


def _ids(case: Case, sub: str, name: str) -> tuple[int, ...]:
  return tuple(case.given(sub, name).tolist()) if case.has(sub, name) else ()


def _opened(case: Case):
  """(config, parameters, tokenizer, {sub: (what it asks, an empty target, its span)})."""
  config, params = sizes.load_pixel(case, case.config['variant'])
  targets = {}
  for sub, s in case.config['subs'].items():
    target = Image(np.zeros((1, *s['grid'], 0), np.float32), True)
    targets[sub] = s, target, int(np.prod(s['grid'])) + 1
  return config, params, samples.open_tokenizer(case), targets


def sample_t2i(case: Case) -> Outputs:
  """Pictures from fixed noise."""
  config, params, tokenizer, targets = _opened(case)
  out = {}
  for sub, (s, target, span) in targets.items():
    room, count = s['L'] - span - 4, len(s['prompts'])
    ids = [_ids(case, sub, f'ids{i}')[:room] for i in range(count)]
    ids += [_ids(case, sub, 'null_ids')[:room]] * count
    plans = [[Text((tokenizer.bos, *row)), target, Text((tokenizer.eos,))] for row in ids]
    laid = [official.generation(tokenizer, row, span, s['L']) for row in ids]
    out |= _sampled(case, sub, config, params, tokenizer, plans, laid)
  return out


def sample_edit(case: Case) -> Outputs:
  """An edit from fixed noise; the source stands in both branches."""
  config, params, tokenizer, targets = _opened(case)
  out = {}
  for sub, (s, target, span) in targets.items():
    source = models.token_rows(config, case.given(sub, 'px')[0][:, :, None], 1)
    picture = Image(source.reshape(1, *s['grid'], -1))
    room = s['L'] - 2 * span - 6
    ids = [_ids(case, sub, name)[:room] for name in ('ids0', 'null_ids')]
    plans = [
      [Text((tokenizer.bos,)), picture, Text(row), target, Text((tokenizer.eos,))] for row in ids
    ]
    laid = [official.editing(tokenizer, row, span, s['L']) for row in ids]
    out |= _sampled(case, sub, config, params, tokenizer, plans, laid)
  return out


def mmu_generate(case: Case) -> Outputs:
  """Greedy text about a picture; the end of the answer does not stop it here."""
  config, params, tokenizer, targets = _opened(case)
  out = {}
  for sub, (s, _, _) in targets.items():
    tokens = models.token_rows(config, case.given(sub, 'px'), 1)
    picture = Image(tokens.reshape(1, *s['grid'], -1))
    turns = [('user', s['prompt'])]
    plan = tasks.conversation(tokenizer, turns, [picture], system=tasks.QWEN_SYSTEM, header=True)
    example = layout(plan, tokenizer, strides(config))
    prompts = collate([example], config.token_dim)

    @quick_jit
    def embed(params, prompts):
      time = jnp.ones(prompts.grid.shape[:2])
      with towers.arguments_of('decoder') as calls:
        Tuna(config).apply({'params': params}, prompts, prompts.latents, time, flow=False)
      return calls[0][0]

    out[f'out.{sub}.input_embeds'] = embed(params, prompts)[:, : example.length]
    state = writing.start(config, params, prompts, s['n'])
    out |= samples.decoded(sub, config, params, -1, state, s['n'])
  return out


CASES = {
  'pixel_sample_t2i': sample_t2i,
  'pixel_sample_edit': sample_edit,
  'pixel_mmu_generate': mmu_generate,
}
