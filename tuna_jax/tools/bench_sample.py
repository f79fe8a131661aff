"""One picture sampled in three ways, and one text decoded in two, timed in one process with the
same weights.

    naive     the padded sequence and the language head at every step, as the official code does
    trimmed   without the language head and what follows the target span; all else at every step
    cached    `sample_latents`: prompt and sources once, then the target span alone

Axes:  B = branches of guidance   L positions   N cells of the target   C channels
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import batch as batch_lib
from tuna_jax import flow, sizes
from tuna_jax.batch import Batch
from tuna_jax.config import (
  DecoderConfig,
  FlowHeadConfig,
  TunaConfig,
  UserError,
  VaeConfig,
  VisionConfig,
)
from tuna_jax.data.segments import Image, Plan, Text, layout
from tuna_jax.data.tokenizer import Letters
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.models.tuna import Tuna
from tuna_jax.sample import flops
from tuna_jax.sample import image as drawing
from tuna_jax.sample import text as writing
from tuna_jax.sample.prompt import collate, lengths, split, strides

# Two layers per tower: small enough for a CPU, with the token counts of 512 x 512 (1,024 cells).
_WIDE = {'num_layers': 2, 'dim': 64, 'num_heads': 2, 'num_kv_heads': 1, 'head_dim': 32}
SMALL = TunaConfig(
  vision=VisionConfig(**{**_WIDE, 'num_kv_heads': 2}, mlp_dim=128, grid=8),
  decoder=DecoderConfig(**_WIDE, mlp_dim=192, vocab_size=384, rope_theta=1e4),
  flow_head=FlowHeadConfig(**_WIDE, mlp_dim=192),
  vae=VaeConfig(latent_mean=(), latent_std=()),
  dtype='float32',
  remat='none',
)

LONG_S = 5.0  # a run of this length is timed once
TASKS = ('t2i', 'edit')


def small(design: str = 'cascade') -> TunaConfig:
  """SMALL in a design: its tokens and paths as in the tiny size, and a flow head of its own width
  where that has one."""
  if design == 'cascade':
    return SMALL
  tiny = sizes.size(f'tiny-{design}')
  wider = tiny.flow_head.dim > tiny.decoder.dim
  head = dataclasses.replace(SMALL.flow_head, rotary=tiny.flow_head.rotary, dim=96 if wider else 64)
  return dataclasses.replace(
    tiny, vision=tiny.vision and SMALL.vision, decoder=SMALL.decoder, flow_head=head, remat='none'
  )


def named(name: str) -> TunaConfig:
  """A size of `sizes.SIZES`, or 'small', or 'small-DESIGN'. UserError for any other."""
  word, _, design = name.partition('-')
  return small(design or 'cascade') if word == 'small' else sizes.size(name)


def padded_length(config: TunaConfig, task: str, side: int) -> int:
  """What the official sampler of the design pads a sequence to (docs/architecture.md 10.2 and 10.3,
  docs/showo2.md 0.2, docs/pixel.md 3); Show-o2 has no edits, and 'decoupled' no sampler: they are
  taken like their drawing, and like Tuna's."""
  if config.design == 'late_fusion':
    pictures = 1 + (task == 'edit')
    return -(-(pictures * (side // config.strides[1]) ** 2 + 256) // 128) * 128
  if config.vae is None:
    return 4096 if task == 'edit' else 2048 if side <= 512 else 5120
  return {'t2i': 8192, 'edit': 3072}[task]


def random_params(config: TunaConfig, seed: int = 0):
  """Random values for every leaf: an ordinary initialisation has a flow head whose output is zero,
  on which all samplers agree."""

  def leaf(path, a):
    wide = a.ndim > 1 and path[-1].key != 'embedding'
    values = (0.5 * a.shape[-2] ** -0.5 if wide else 0.02) * rng.standard_normal(a.shape, 'f4')
    return values + 1 if path[-1].key == 'scale' else values

  rng = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(leaf, tuna_shapes(config))


def sample(
  config: TunaConfig,
  task: str = 't2i',
  *,
  side: int = 512,
  points: int = 50,
  prompt_tokens: int = 64,
  guidance: float = 7.5,
  padded: int | None = None,
  run: bool = True,
  seed: int = 0,
) -> dict[str, Any]:
  """Naive, trimmed and cached sampling of one picture -> {form: {seconds, flops,
  max_abs_difference}, ...}.

  run: False counts FLOPs only, for sizes too large for this machine. Seconds are of the compiled
  program, without compiling it. Raises ValueError for an unknown task, or a padded length too short
  for the picture.
  """
  if task not in TASKS:
    raise UserError(f'task {task!r}: expected one of {", ".join(TASKS)}')
  cells_side = side // config.strides[1]
  cells, edit = cells_side**2, task == 'edit'
  if cells == 0:
    raise UserError(f'side={side}: smaller than one visual token of {config.strides[1]}')
  rng = np.random.default_rng(seed)
  channels = config.token_dim
  source = rng.standard_normal((1, cells_side, cells_side, channels), np.float32)
  ids = rng.integers(6, config.decoder.vocab_size, prompt_tokens)
  plans = [_plan(tokens, source if edit else None, source.shape) for tokens in (ids, ())]
  prefixes = [split(plan, Letters(), strides(config))[0] for plan in plans]
  whole = [layout(plan, Letters(), strides(config)) for plan in plans]
  padded = padded or padded_length(config, task, side)
  if max(e.length for e in whole) > padded:
    raise UserError(f'padded={padded}: the sequence is {max(e.length for e in whole)} tokens long')
  prompts = collate(prefixes, channels)
  shape = flops.Target(
    prompts.tokens.shape[1], cells, cells if edit else 0, padded=padded, images=1 + edit
  )
  live = dataclasses.replace(shape, prefix=max(e.length for e in prefixes))
  how = drawing.Drawing.of(config.design, task, guidance, points)
  steps = how.evaluations
  out: dict[str, Any] = {
    'task': task,
    'side': side,
    'solver': how.solver,
    'points': points,
    'evaluations': steps,
    'padded': padded,
    'prompt': live.prefix,
    'naive': {'flops': flops.naive(config, shape, steps)},
    'trimmed': {'flops': flops.trimmed(config, live, steps)},
    'cached': {'flops': flops.cached(config, shape, steps)},
  }
  if run:
    params = jax.device_put(random_params(config, seed))
    noise = drawing.noise([seed], cells, config.drawn_dim) * config.path.noise
    again = functools.partial(_whole, config, how=how)
    end = live.prefix + cells + 1
    forms = {
      'naive': functools.partial(again, batch=collate(whole, channels, padded), head=True),
      'trimmed': functools.partial(again, batch=_cut(collate(whole, channels), end), head=False),
      'cached': lambda params, noise: drawing.sample_latents(
        config, params, prompts, [(1, cells_side, cells_side)], noise, how
      ),
    }
    latents = {name: _timed(fn, params, noise, out[name]) for name, fn in forms.items()}
    for name, x in latents.items():
      out[name]['max_abs_difference'] = float(np.abs(x - latents['naive']).max())
    out['largest_latent'] = float(np.abs(latents['naive']).max())
  for what in ('flops', 'seconds'):
    if what in out['cached']:
      out[f'naive_over_cached_{what}'] = out['naive'][what] / out['cached'][what]
  return out


def decode(
  config: TunaConfig,
  *,
  rows: int = 4,
  prompt_tokens: int = 256,
  new_tokens: int = 64,
  seed: int = 0,
) -> dict[str, Any]:
  """Greedy decoding with and without the key/value cache -> {form: {seconds, tokens_per_second},
  ..., same}.
  """
  params = jax.device_put(random_params(config, seed))
  rng = np.random.default_rng(seed)
  examples = [
    layout(
      [Text(rng.integers(6, config.decoder.vocab_size, prompt_tokens))], Letters(), strides(config)
    )
    for _ in range(rows)
  ]
  prompts = collate(examples, config.token_dim)
  out: dict[str, Any] = {
    'rows': rows, 'prompt_tokens': prompt_tokens, 'new_tokens': new_tokens,
    'cached': {}, 'recomputed': {},
  }  # fmt: skip

  def cached(params, prompts):
    state = writing.start(config, params, prompts, new_tokens)
    return writing.advance(config, params, state, new_tokens, eos=-1).tokens[:, :new_tokens]

  recomputed = functools.partial(_recompute, config, new_tokens)
  ids = {
    form: _timed(fn, params, prompts, out[form])
    for form, fn in (('cached', cached), ('recomputed', recomputed))
  }
  for form in ids:
    out[form]['tokens_per_second'] = rows * new_tokens / out[form]['seconds']
  out['same'] = bool((ids['cached'] == ids['recomputed']).all())
  out['speedup'] = out['recomputed']['seconds'] / out['cached']['seconds']
  return out


def _plan(tokens, source, shape) -> Plan:
  sources = [] if source is None else [Image(source)]
  target = Image(np.zeros(shape, np.float32), True)
  return [Text((0,)), *sources, Text(tuple(tokens)), target, Text((0,))]


def _cut(batch: Batch, length: int) -> Batch:
  """The first `length` positions."""
  wide = batch_lib.shapes(*batch.sizes)
  return Batch(*(a[:, :length] if s == wide.tokens else a for a, s in zip(batch, wide)))


def _timed(fn, params, argument, into):
  """The result of the compiled `fn`; into['seconds'] is the least of three runs, or of one that is
  long.
  """
  compiled = jax.jit(fn).lower(params, argument).compile()
  runs: list[float] = []
  while not runs or (len(runs) < 3 and runs[0] < LONG_S):
    began = time.perf_counter()
    result = np.asarray(compiled(params, argument))
    runs.append(time.perf_counter() - began)
  into['seconds'] = min(runs)
  return result


def _whole(config, params, noise, *, batch: Batch, how: drawing.Drawing, head: bool):
  """The ODE with every row whole at every step; float32[1, N, C]. The target is each row's last N
  cells.
  """
  model, cells = Tuna(config), noise.shape[1]
  batch = jax.tree.map(jnp.asarray, batch)
  before = batch.latents[:, : batch.latents.shape[1] - cells]

  def velocity(x, t):
    x = jnp.pad(x, ((0, 0), (0, 0), (config.seen_dim, 0)))
    latents = jnp.concatenate([before, jnp.tile(x, (len(before), 1, 1))], axis=1)
    out = model.apply({'params': params}, batch, latents, jnp.where(batch.target, t, 1.0))
    cond, uncond = jnp.split(out.velocity[:, -cells:], 2)
    v = flow.guide(cond, uncond, how.guidance.scale)
    if head:
      # The official loop computes all logits and drops them; a maximum keeps them computed.
      v += 0 * jnp.max(model.apply({'params': params}, out.hidden, method='logits'))
    return v

  return flow.solve(velocity, noise, flow.times(how.points, how.shift), how.solver)


def _recompute(config, new_tokens, params, prompts):
  """Greedy ids without a cache: the whole padded row again for every token."""
  rows, length, _, images, channels = prompts.sizes
  model, count, total = Tuna(config), lengths(prompts), length + new_tokens
  position = jnp.broadcast_to(jnp.arange(total), (rows, total))
  empty = jax.tree.map(jnp.asarray, batch_lib.empty(rows, total, 0, images, channels))

  def step(i, tokens):
    end = count + i
    batch = empty._replace(
      tokens=tokens, segment=(position < end[:, None]).astype(jnp.int32), position=position
    )
    times = jnp.zeros((rows, images))
    hidden = model.apply({'params': params}, batch, batch.latents, times, flow=False).hidden
    last = jnp.take_along_axis(hidden, (end - 1)[:, None, None], axis=1)[:, 0]
    best = jnp.argmax(model.apply({'params': params}, last, method='logits'), axis=-1)
    return tokens.at[jnp.arange(rows), end].set(best.astype(jnp.int32))

  padded = jnp.pad(jnp.asarray(prompts.tokens), ((0, 0), (0, new_tokens)))
  tokens = jax.lax.fori_loop(0, new_tokens, step, padded)
  return jnp.take_along_axis(tokens, count[:, None] + jnp.arange(new_tokens), axis=1)
