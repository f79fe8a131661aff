"""The parity certificate: a checkpoint of ours beside what PyTorch computed with the same weights,
stage by stage.

The tensors come as a golden set (parity/cases.py) with cases of kind 'certificate'. They hold no
weights; each sub of config.subs has inputs, and as many of the outputs as were saved:

    in.<sub>.text_tokens   int32[B, L]
    in.<sub>.mp            int32[B, n, 2], (offset, length) of each span; (-1, -1) where none is
    in.<sub>.images        float32[m, 3, F, H, W] in [-1, 1], m = B n; or in.<sub>.latents, and no
                           VAE is needed; or neither, for text alone
    in.<sub>.noise, .t     float32[m, C, T, h, w] and float32[K, m]: x_t = t latent + (1 - t) noise

    out.<sub>.latent       [m, C, T, h, w], the normalised posterior mean
    out.<sub>.vision       [m T, h w, width], of the clean latents, as all that follows but velocity
    out.<sub>.connector    [m, T h w, D]
    out.<sub>.hidden<i>    [B, L, D]; 0 goes into the decoder, the last is after the final norm
    out.<sub>.logits       [B, L, vocabulary]
    out.<sub>.velocity<k>  [m, C, T, h, w], at t[k]

Everything is computed in float32. The bar is that of every golden set; an output without
`sens_1ulp` (how far PyTorch's own output moves when weights and inputs are multiplied by 1 + 6e-8
N(0, 1)) must agree to 2e-6 relative L2.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from tuna_jax import files
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.models.tuna import Connector, Tuna
from tuna_jax.models.vae import WanVae, normalize
from tuna_jax.parity import cases, official
from tuna_jax.parity.case import RELATIVE, SENSITIVITIES, Case, GoldenError, Outputs, Row, report
from tuna_jax.parity.models import to_grids, token_rows
from tuna_jax.parity.towers import arguments_of, decoder_layers
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.weights import store
from tuna_jax.weights.tensors import CheckpointError

KIND = 'certificate'
KL = 1e-6  # nats at any position; logits that are off by 1e-3 everywhere give half of it
TOP, AGREEMENT = 5, 0.999  # of positions with the same likeliest five: a tie may turn
STAGES = {
  'latent': 'VAE encode',
  'vision': 'vision features',
  'connector': 'connector',
  'hidden': 'decoder',
  'logits': 'logits',
  'KL': 'logits',
  'top': 'logits',
  'velocity': 'velocity',
}


def check(folder):
  """Raises GoldenError unless the folder is a golden set with a certificate case."""
  if not any(case.get('kind') == KIND for case in cases.read_index(folder)):
    raise GoldenError(f'{folder}: no case is of kind {KIND}')


def certify(stored: store.Stored, folder) -> list[Row]:
  """The verdicts of the golden set's certificate cases on an opened checkpoint.

  Raises GoldenError where there is none, CheckpointError where the checkpoint has no model.
  """
  check(folder)
  if stored.params is None:
    raise CheckpointError('there is nothing but a VAE in it: no model to verify')
  config = dataclasses.replace(stored.config, dtype='float32', remat='none')
  params = store.load(stored.params, tuna_shapes(config))
  vae = None if stored.vae is None else store.load(stored.vae, vae_shapes(stored.vae_config))
  return list(
    cases.run(
      folder, kinds={KIND: functools.partial(certificate, config, params, stored.vae_config, vae)}
    )
  )


def certificate(config, params, vae_config, vae_params, case: Case) -> Outputs:
  """Every stage of every sub, from its inputs to the velocities."""

  @quick_jit
  def encode(params, video):
    return normalize(
      vae_config, WanVae(vae_config).apply({'params': params}, video, method='encode').mean
    )

  @quick_jit
  def read(params, batch, x):
    time = jnp.ones(batch.grid.shape[:2])
    with arguments_of('connector', 'decoder') as calls:
      out = Tuna(config).apply({'params': params}, batch, x, time, flow=False)
    embeds, span, *_ = calls[-1]
    hidden = [*decoder_layers(config, params['decoder'], embeds, span)[:-1], out.hidden]
    logits = Tuna(config).apply({'params': params}, out.hidden, method='logits')[
      ..., : config.decoder.vocab_size
    ]
    seen = {'logits': logits, **{f'hidden{i}': state for i, state in enumerate(hidden)}}
    if x.shape[1]:
      features = calls[0][0]
      seen |= {
        'vision': features,
        'connector': Connector(config).apply({'params': params['connector']}, features),
      }
    return seen

  @quick_jit
  def draw(params, batch, x, t):
    return Tuna(config).apply({'params': params}, batch, x, t).velocity

  out = {}
  for sub in case.config['subs']:
    positions, latents, grid = case.given(sub, 'mp'), None, None
    rows, images = positions.shape[:2]
    if case.has(sub, 'latents'):
      latents = case.given(sub, 'latents')
    elif case.has(sub, 'images'):
      if vae_params is None:
        raise CheckpointError(f'in.{sub}.images: the checkpoint has no VAE; give in.{sub}.latents')
      video = rearrange(case.given(sub, 'images'), 'm c f h w -> m f h w c')
      latents = rearrange(encode(vae_params, video), 'm t h w c -> m c t h w')
      out[f'out.{sub}.latent'] = latents
    if latents is not None:
      grid = latents.shape[2:]
    batch = official.to_batch(
      case.given(sub, 'text_tokens'), positions, grid, config.vae.latent_channels
    )
    x = batch.latents if latents is None else token_rows(config, latents, rows)
    seen = dict(read(params, batch, x))
    if latents is not None:
      seen['vision'] = rearrange(seen['vision'], 'b (n t v) d -> (b n t) v d', n=images, t=grid[0])
      seen['connector'] = rearrange(seen['connector'], 'b (n v) d -> (b n) v d', n=images)
      for k, t in enumerate(case.given(sub, 't') if case.has(sub, 't') else ()):
        own = t[:, None, None, None, None]
        x_t = own * latents + (1 - own) * case.given(sub, 'noise')
        seen[f'velocity{k}'] = to_grids(
          config,
          draw(params, batch, token_rows(config, x_t, rows), t.reshape(rows, images)),
          images,
          grid,
        )
    out.update({f'out.{sub}.{name}': value for name, value in seen.items()})
    if case.wants(sub, 'logits'):
      out.update(_distributions(case, sub, seen['logits']))
  return out


def _distributions(case: Case, sub: str, ours) -> dict[str, Row]:
  """What the logits mean: the divergence from the reference's distribution, and how often the
  likeliest agree.
  """
  theirs = case.tensors[f'out.{sub}.logits']
  if ours.shape != theirs.shape:
    return {}  # which the row of the logits says
  p, q = (
    np.asarray(jax.nn.log_softmax(np.asarray(x, np.float32), axis=-1), np.float64)
    for x in (theirs, ours)
  )
  kl = (np.exp(p) * (p - q)).sum(-1)
  likeliest = [
    np.sort(np.argsort(np.asarray(x), axis=-1)[..., -TOP:], axis=-1) for x in (theirs, ours)
  ]
  agreement = float((likeliest[0] == likeliest[1]).all(-1).mean())
  return {
    f'KL {sub}': Row(
      case.name,
      f'out.{sub}.KL',
      bool(kl.max() <= KL),
      kl.shape,
      float(kl.max()),
      note=f'mean {kl.mean():.1e} nats; allowed {KL:.0e} at any position',
    ),
    f'top {sub}': Row(
      case.name,
      f'out.{sub}.top{TOP}',
      agreement >= AGREEMENT,
      kl.shape,
      note=f'the same {TOP} likeliest tokens at {agreement:.2%} of positions',
    ),
  }


def stage(row: Row) -> str:
  """The stage of the model that a row is about; '' for what concerns the set."""
  found = re.fullmatch(r'out\..+\.([A-Za-z]+)\d*', row.output)
  return STAGES.get(found[1], '') if found else ''


def write(folder, rows: Sequence[Row], about: dict) -> str:
  """Writes certificate.json and certificate.md into the folder, and returns the latter's text.

  about: what was compared, by what.
  """
  text = '\n'.join(_markdown(rows, about)) + '\n'
  files.write_json(folder / 'certificate.json', {**about, **report(rows)})
  files.write_text(folder / 'certificate.md', text)
  return text


def _markdown(rows: Sequence[Row], about: dict) -> Iterator[str]:
  failed = [row for row in rows if not row.passed]
  yield f'# Parity certificate: {"FAIL" if failed else "PASS"}\n'
  yield from (f'* {name}: {value}' for name, value in about.items())
  bar = f'within {SENSITIVITIES:.0f} x the sensitivity everywhere, or {RELATIVE:.0e} in relative L2'
  yield f'* bar: {bar}; KL {KL:.0e} nats\n'
  yield '| stage | verdict | rows | largest error | largest relative L2 |\n|---|---|---|---|---|'
  for name in dict.fromkeys(STAGES.values()):
    own = [row for row in rows if stage(row) == name]
    error = max((row.max_abs for row in own if row.max_abs is not None), default=None)
    relative = max((row.relative for row in own if row.relative is not None), default=None)
    verdict = 'not given' if not own else 'pass' if all(row.passed for row in own) else 'FAIL'
    yield f'| {name} | {verdict} | {len(own)} | {_number(error)} | {_number(relative)} |'
  yield '\n| output | shape | max abs | relative L2 | sensitivity | verdict |'
  yield '|---|---|---|---|---|---|'
  for row in rows:
    shape = '' if row.shape is None else 'x'.join(map(str, row.shape))
    numbers = ' | '.join(_number(n) for n in (row.max_abs, row.relative, row.sensitivity))
    verdict = 'pass' if row.passed else 'FAIL'
    yield f'| {row.case} {row.output} | {shape} | {numbers} | {verdict} {row.note} |'


def _number(value) -> str:
  return '' if value is None else f'{value:.1e}'
