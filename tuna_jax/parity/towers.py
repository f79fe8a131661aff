"""Golden cases of the decoder and the flow head, layer by layer.

Axes:  B rows   L positions   V latent cells   M image slots   C latent channels   D width
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.models import rope
from tuna_jax.models.decoder import Decoder, DecoderBlock
from tuna_jax.models.flow_head import FinalLayer, FlowBlock
from tuna_jax.models.layers import Mlp, Span
from tuna_jax.models.tuna import flow_inputs
from tuna_jax.parity import official, sizes
from tuna_jax.parity.case import Case, Outputs
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.weights import hf


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


def qwen2(case: Case) -> Outputs:
  """g: hidden states of every layer and logits, under the omni mask and causal."""
  config = sizes.tuna(decoder=hf.decoder_config(case.config['llm'], case.config['vocab']))
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

  @quick_jit
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
  run = quick_jit(lambda *args: flow_layers(config, *args))
  direct = quick_jit(lambda *args: final_layer(config, *args))
  out = {}
  for sub, (positions, grid) in subs.items():
    hidden = case.given(sub, 'hidden')
    rows, length = hidden.shape[:2]
    batch = official.to_batch(np.zeros((rows, length), np.int32), positions, grid, 1, shape)
    x = np.zeros((*shape[:2], hidden.shape[2]), np.float32)
    x[:rows, :length] = hidden
    time = np.zeros((shape[0], shape[3], hidden.shape[2]), np.float32)
    time[:rows, : positions.shape[1]] = case.given(sub, 'temb').reshape(rows, -1, hidden.shape[2])
    rotary, owner = flow_inputs(config, batch, pictures=grid is not None)
    span = Span(rotary, batch.kv_limit, batch.segment, batch.segment)
    args = span, time, owner, batch.slot >= 0
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


CASES = {'qwen2': qwen2, 'flow_head': flow_head}
