"""What a trained model makes of pictures, layer by layer: one vector per picture and layer.

    vision       after each layer of the vision tower, the last one behind its norm where it has one
    projector    of the designs that have one
    visual       the visual tokens, as the decoder gets them
    decoder      after each layer, before its norm
    flow_head    after each layer

A vector is the mean over the tokens of the picture. The model runs as it is, what enters its
towers is recorded, and their layers are then applied one by one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import files, flow
from tuna_jax.config import UserError, nearest
from tuna_jax.data.segments import Image, Text, layout
from tuna_jax.models.decoder import DecoderBlock
from tuna_jax.models.flow_head import FlowBlock
from tuna_jax.models.tuna import Tuna
from tuna_jax.models.vision import Vision
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.open import open_generator
from tuna_jax.sample.prompt import collate

PARTS = ('vision', 'projector', 'visual', 'decoder', 'flow_head')
Features = dict[str, np.ndarray]  # name of a layer -> float32[pictures, width]


def read(what: str, pictures: Sequence[np.ndarray], t: float = 1.0) -> Features:
  """Of a file NAME.npy, float [n, d] or [layers, n, d]; or of RUN or RUN:PART, a run or a weights
  directory and one of PARTS (the others are left out).

  pictures: uint8[H, W, 3] each. t: as in `of_model`. Raises UserError for a part that the model
  does not have, and for another number of rows than pictures.
  """
  if what.endswith('.npy'):
    found = _numbers(what)
    if found.ndim not in (2, 3) or found.shape[-2] != len(pictures):
      raise UserError(
        f'{what}: shape {list(found.shape)}: expected [{len(pictures)}, d] or '
        f'[layers, {len(pictures)}, d], a row for each picture'
      )
    layers = found if found.ndim == 3 else found[None]
    return {f'layer {i + 1}': np.asarray(x, np.float32) for i, x in enumerate(layers)}
  run, colon, part = what.rpartition(':')
  if not colon or part not in PARTS:
    run, part = what, ''
    if colon and not files.path(what).exists():
      raise UserError(
        f'{what}: expected RUN:PART with one of {", ".join(PARTS)}{nearest(what, PARTS)}'
      )
  found = of_model(open_generator(run), pictures, t)
  kept = {name: x for name, x in found.items() if not part or name.partition(' ')[0] == part}
  if not kept:
    parts = dict.fromkeys(name.partition(' ')[0] for name in found)
    raise UserError(f'{what}: the model has no such part at t={t}; it has {", ".join(parts)}')
  return kept


def _numbers(what: str) -> np.ndarray:
  """The array of a .npy file; UserError where it is no array of finite numbers."""
  if not files.path(what).is_file():
    raise UserError(f'{what}: no such file')
  try:
    found = np.load(files.path(what), allow_pickle=False)
  except (ValueError, EOFError) as e:
    raise UserError(f'{what}: not an array of numbers in a .npy file') from e
  if not np.issubdtype(found.dtype, np.number):
    raise UserError(f'{what}: {found.dtype}: expected an array of numbers')
  if not np.isfinite(found).all():
    first = [int(i) for i in np.argwhere(~np.isfinite(found))[0]]
    raise UserError(f'{what}: {found[tuple(first)]} at {first}: expected finite numbers')
  return found


def of_model(
  generator: Generator, pictures: Sequence[np.ndarray], t: float = 1.0, rows: int = 50
) -> Features:
  """Every layer's vectors of `pictures`, read behind nothing but the first token of a text.

  t: 1 is a clean picture, as one that is read; below, the model sees x_t = t x + (1 - t) noise, as
  of one that is drawn. rows: pictures at once.
  """
  c, special = generator.config, generator.tokenizer
  tokens = generator.encode([x[None] for x in pictures])
  noise = np.random.default_rng(0)
  found: list[dict] = []
  for at in range(0, len(tokens), rows):
    own = tokens[at : at + rows]
    plans = [[Text((special.bos,)), Image(x, t < 1)] for x in own + own[:1] * (rows - len(own))]
    batch = collate([layout(plan, special, c.strides) for plan in plans], c.token_dim)
    drawn = noise.standard_normal(batch.latents.shape, np.float32) * np.float32(c.path.noise)
    made = _vectors(generator.params, batch, drawn, jnp.float32(t), config=c)
    found.append({name: np.asarray(x)[: len(own)] for name, x in made.items()})
  return {name: np.concatenate([x[name] for x in found]) for name in sorted(found[0], key=_place)}


def _place(name: str) -> tuple[int, int]:
  part, _, layer = name.partition(' ')
  return PARTS.index(part), int(layer) if layer.isdigit() else 1 << 20


@functools.partial(jax.jit, static_argnames='config')
def _vectors(params, batch, noise, t, *, config):
  entered, out, images = {}, {}, batch.grid.shape[1]
  seen, shown = batch.image > 0, batch.slot >= images
  mean = lambda x, mask: jnp.sum(x * mask[..., None], 1) / jnp.sum(mask, 1, keepdims=True)

  def record(call, args, kwargs, context):
    name = 'visual' if context.method_name == 'features' else context.module.name
    result = call(*args, **kwargs)
    if name in ('visual', 'projector'):
      out[name] = mean(result, seen)
    elif name in ('vision', 'decoder', 'bridge', 'flow_head') and context.method_name == '__call__':
      entered[name] = result if name == 'bridge' else args
    return result

  times = jnp.broadcast_to(t, (len(batch.tokens), images))
  latents, _ = flow.interpolate(batch.latents, noise, t)
  with nn.intercept_methods(record):
    Tuna(config).apply({'params': params}, batch, latents, times)

  def layers(part, count):
    return jax.tree.map(lambda a: a[count], params[part]['layers'])

  if 'vision' in entered:
    own = params['vision']
    for n in range(1, config.vision.num_layers + 1):
      normed = config.vision.final_norm and n == config.vision.num_layers
      vision = dataclasses.replace(config.vision, num_layers=n, final_norm=normed)
      cut = {**own, 'layers': layers('vision', slice(n))}
      if not normed:
        cut.pop('norm', None)
      tower = Vision(dataclasses.replace(config, vision=vision))
      out[f'vision {n}'] = mean(tower.apply({'params': cut}, *entered['vision']), seen)
  x, span, _ = entered['decoder']
  hidden, _, *shared = entered['flow_head'][:5]
  flowing = entered.get('bridge', hidden), (entered['flow_head'][1], *shared)
  for part, block, (y, shared) in (
    ('decoder', DecoderBlock, (x, span)), ('flow_head', FlowBlock, flowing)
  ):  # fmt: skip
    for n in range(getattr(config, part).num_layers):
      y, _ = block(config).apply({'params': layers(part, n)}, y, shared, None)
      out[f'{part} {n + 1}'] = mean(y, shown)
  return jax.tree.map(lambda x: x.astype(jnp.float32), out)
