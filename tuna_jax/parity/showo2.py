"""Golden cases of Show-o2 (docs/showo2.md): late fusion, raster runs, one rotary.

Axes:  B rows   L positions   V visual tokens   n images per row   D width   E head width
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import batch as batches
from tuna_jax import flow
from tuna_jax.data.segments import Text, Video, layout
from tuna_jax.evals.cknna import cknna, normalise, prepare
from tuna_jax.models import rope
from tuna_jax.models.flow_head import QK_NORM_EPS
from tuna_jax.models.layers import Mlp, RMSNorm
from tuna_jax.models.tuna import Connector, TimeEmbed, Tuna, sinusoid
from tuna_jax.parity import models, official, parts, samples, showo2_layouts, sizes, towers
from tuna_jax.parity.case import Case, Outputs, Row
from tuna_jax.sample import showo2 as asking
from tuna_jax.sample import text as writing
from tuna_jax.sample.prompt import collate, strides
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.weights import designs
from tuna_jax.weights.convert import export


def full_weights(case: Case) -> Outputs:
  """Every official tensor goes through the table and comes back bit-equal."""
  config = sizes.model_config(case.config['model'], case.weights)
  back = export(designs.official(config), sizes.load_tuna(config, case.weights))
  equal = [
    name in back and np.array_equal(np.asarray(back[name]), np.asarray(tensor))
    for name, tensor in case.weights.items()
  ]
  said = f'{sum(equal)} of {len(equal)} tensors come back bit-equal'
  return {'': Row(case.name, said, all(equal))}


def semantic(case: Case) -> Outputs:
  """c2: patch embedding, positions and features at every grid, clips included."""
  config = sizes.model_config(case.config['model'], case.weights)
  params = sizes.load_tuna(config, case.weights, 'vision')['vision']
  clips = {sub: case.given(sub, 'latents') for sub in case.config['subs']}
  return parts.tower(case, config, params, clips)


def fusion(case: Case) -> Outputs:
  """d2: both projections, their fusion, the time embedding, its token, the bridge to the head."""
  config = sizes.model_config(case.config['model'], case.weights)
  own = ('vision', 'projector', 'connector', 'time_embed', 'time_token', 'flow_head/bridge')
  params = sizes.load_tuna(config, case.weights, *own)
  width = config.flow_head.dim

  def linear(name, x):
    return x @ params[name]['kernel'] + params[name]['bias']

  @quick_jit
  def see(params, x, batch):
    where = (batch.coords, batch.image, batch.grid)
    with towers.arguments_of('connector') as calls:
      fused = Tuna(config).apply({'params': params}, x, *where, method='features')
    own, projected = jnp.split(calls[0][0], [config.vision.dim], axis=-1)
    return {'semantic': own, 'gen': projected, 'fused': fused}

  out = {}
  for sub in case.config['subs']:
    batch, x = parts.pictures(config, case.given(sub, 'latents'))
    out |= {f'out.{sub}.{name}': value for name, value in see(params, x, batch).items()}
  t, bridge = case.given('t'), Mlp(width, width, config.dtype, approximate=False)
  time = TimeEmbed(config).apply({'params': params['time_embed']}, t)
  hidden, joined = case.given('bridge', 'hidden'), case.given('fuse', 'cat')
  return {
    **out,
    'out.time.freq': sinusoid(t, config.time_frequencies),
    'out.time.emb': time,
    'out.time.token': linear('time_token', time),
    'out.bridge.out': bridge.apply({'params': params['flow_head']['bridge']}, hidden),
    'out.fuse.out': Connector(config).apply({'params': params['connector']}, joined),
  }


def flow_head(case: Case) -> Outputs:
  """h2: blocks and the final layer with the one rotary; the epsilons of the norms."""
  c = case.config
  head = sizes.flow_head_config(c['head'], c['blocks'], c['head']['intermediate_size'], 'index')
  config = sizes.tuna(
    flow_head=head, vae=sizes.VaeConfig(latent_channels=64, latent_mean=(), latent_std=())
  )
  params = sizes.load_tuna(config, case.weights, 'flow_head')['flow_head']
  out = towers.flow_head_subs(case, config, params, {sub: None for sub in c['subs']})
  norms = sizes.layer(params['layers'], 0)['attn']
  for name in ('q', 'k'):
    norm = RMSNorm(QK_NORM_EPS)
    out[f'out.qk.{name}'] = norm.apply({'params': norms[f'{name}_norm']}, case.given('qk', 'x'))
  out['out.rope.inv_freq'] = rope.scaled_frequencies(head.head_dim)
  out['out.rope.inv_freq64'] = rope.scaled_frequencies(64)
  return out


def raster(case: Case) -> Outputs:
  """u: which cells of the latent a row of the head's output is."""
  out = {}
  for sub, (_, frames, rows, columns) in case.config['subs'].items():
    grid = (max(frames, 1), rows, columns)
    tokens = case.given(sub, 'tokens').reshape(-1, *grid, 64)
    cells = np.moveaxis(batches.to_cells(tokens, 2, 'raster'), -1, 1)
    out[f'out.{sub}.grid'] = cells if frames else cells[:, :, 0]
    numbers = batches.to_tokens(case.given(sub, 'cells')[..., None], 2, 'raster')
    out[f'out.{sub}.cell_of'] = numbers.reshape(-1, 4)
  return out


def transport(case: Case) -> Outputs:
  """j2: times of training for each span, path and grids."""
  c = case.config
  u, x0, x1, t = (jnp.asarray(case.given(name)) for name in ('u', 'x0', 'x1', 't'))
  x_t, velocity = flow.interpolate(x1, x0, t)
  out = {'out.xt': x_t, 'out.ut': velocity}
  for span in c['spans']:
    shift = flow.train_shift(span)
    out[f'out.t_s{span}'] = flow.time_shift(jax.nn.sigmoid(u), shift)
    out[f'out.t_und_s{span}'] = flow.time_shift(jnp.ones_like(u), shift)
    out[f'out.mu_s{span}'] = np.float32(np.log(shift))
  return {**out, **{f'out.grid_n{n}': flow.times(n, c['shift']) for n in c['points']}}


def sample(case: Case) -> Outputs:
  """i2: pictures and clips from fixed noise, by our cached sampler."""
  config = sizes.model_config(case.config['model'], case.weights)
  params, tokenizer = sizes.load_tuna(config, case.weights), samples.open_tokenizer(case)
  room, out = case.config['max_text_len'], {}
  for sub, s in case.config['subs'].items():
    given = case.given(sub, 'z')
    noise = given if s['T'] else given[:, :, None]
    grid = (noise.shape[2], *s['grid'])
    ids = [tokenizer.encode(text)[:room] for text in s['prompts']] + [()] * len(noise)
    target = Video(np.zeros((*grid, 0), np.float32), True)
    plans = [[Text((tokenizer.bos, *row)), target, Text((tokenizer.eos,))] for row in ids]
    span = int(np.prod(grid)) + 1
    laid = [official.generation(tokenizer, row, span, room + span + 4) for row in ids]
    how = s['g'], s['K'], case.config['shift']
    values = samples.sampled(sub, config, params, tokenizer, plans, laid, noise, how)
    for name in ('traj', 'v', 'latents'):
      value = values[f'out.{sub}.{name}']
      values[f'out.{sub}.{name}'] = value if s['T'] else value[..., 0, :, :]
    out |= values
  return out


def greedy(case: Case) -> Outputs:
  """i2: text about a picture and about frames, as the published scripts ask (F3, F7)."""
  config = sizes.model_config(case.config['model'], case.weights)
  params, tokenizer = sizes.load_tuna(config, case.weights), samples.open_tokenizer(case)

  @quick_jit
  def see(params, tokens, batch):
    where = (batch.coords, batch.image, batch.grid)
    return Tuna(config).apply({'params': params}, tokens, *where, method='features')

  @quick_jit
  def embed(params, prompts, features):
    time = jnp.ones(prompts.grid.shape[:2])
    with towers.arguments_of('decoder') as calls:
      Tuna(config).apply(
        {'params': params}, prompts, prompts.latents, time, flow=False, features=features
      )
    return calls[0][0]

  out = {}
  for sub, s in case.config['subs'].items():
    batch, tokens = parts.pictures(config, case.given(sub, 'latents'))
    features, grid = see(params, tokens, batch), tuple(batch.grid[0, 0].tolist())
    native = features.shape[1]
    if 'frames' in s:
      features = asking.pool(features, grid[1:], s['down'][0])
      grid = (s['frames'], *s['down'])
    picture = Video(np.zeros((*grid, config.token_dim), np.float32))
    plan = asking.question(tokenizer, picture, s['question'])
    example = asking.shift_span(layout(plan, tokenizer, strides(config)), native)
    prompts = collate([example], config.token_dim)
    first = int(np.flatnonzero(example.slot == 0)[0])
    last = first + features.shape[1]
    out[f'out.{sub}.tokens_before'] = example.tokens[: first - 1]
    out[f'out.{sub}.tokens_after'] = [example.tokens[first - 1], *example.tokens[last + 1 :]]
    out[f'out.{sub}.mp'] = [[[first + 1, int(example.kv_limit[first + 1]) - first]]]
    out[f'out.{sub}.input_embeds'] = embed(params, prompts, features)[:, : example.length]
    state = writing.start(config, params, prompts, s['n'], features=features)
    out |= samples.decoded(sub, config, params, tokenizer.eos, state, s['n'])
  return out


def alignment(case: Case) -> Outputs:
  """cknna: the score of two representations, in every form."""
  out = {}
  for sub, counts in case.config['topk'].items():
    a, b = case.given(sub, 'a'), case.given(sub, 'b')
    unit = [normalise(x) for x in (a, b)]
    ready = [prepare(x) for x in (a, b)]
    forms = {
      'unbiased': lambda k, a=unit[0], b=unit[1]: cknna(a, b, k),
      'biased': lambda k, a=unit[0], b=unit[1]: cknna(a, b, k, unbiased=False),
      'prepared': lambda k, a=ready[0], b=ready[1]: cknna(a, b, k),
      'swapped': lambda k, a=unit[0], b=unit[1]: cknna(b, a, k),
      'raw': lambda k, a=a, b=b: cknna(a, b, k),
      'self': lambda k, a=unit[0]: cknna(a, a, k),
    }
    for name, score in forms.items():
      out[f'out.{sub}.{name}'] = np.array([score(k) for k in counts], np.float32)
    out[f'out.{sub}.cka_unbiased'] = np.float32(cknna(*unit, len(a) - 1))
  return out


CASES = {
  'showo2_full_weights': full_weights,
  'showo2_full_forward': models.full_forward,
  'showo2_semantic': semantic,
  'showo2_fusion': fusion,
  'showo2_flow_head': flow_head,
  'showo2_raster': raster,
  'showo2_sample': sample,
  'showo2_greedy': greedy,
  'showo2_transport': transport,
  'cknna': alignment,
  **showo2_layouts.CASES,
}
