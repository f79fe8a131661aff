"""The whole model as one call: `Tuna(batch, latents, t, cache) -> Output(hidden, velocity, cache)`.

    latents --vision--> features --connector--> visual tokens --+
    t -------time_embed--------------------------- time tokens -+-> visual table
    tokens --embed--+                                           |
                    +<-- one gather by `slot` ------------------+
                    |
                 decoder --> hidden --+-- logits
                                      +-- flow head --> velocity

Axes:  B rows   L positions   V latent tokens   M images per row   C latent channels   D width
Training, scoring, text decoding and every ODE step are this call; sampling adds a cache.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tuna_jax.batch import Batch
from tuna_jax.config import DESIGNS, TunaConfig
from tuna_jax.flow import velocity_to
from tuna_jax.models import rope
from tuna_jax.models.decoder import Decoder
from tuna_jax.models.flow_head import FlowHead
from tuna_jax.models.layers import RMSNorm, Span, dense
from tuna_jax.models.vision import Patches, Vision, patches
from tuna_jax.sharding import anchor

CONNECTOR_NORM_EPS = 1e-6
MAX_PERIOD = 10_000.0


class Cache(NamedTuple):
  """Keys and values of earlier positions."""

  decoder: tuple  # (keys, values), each [layers, B, Lk, K, head_dim]
  flow: tuple | None  # the same of the flow head; None where no picture is drawn
  segment: jax.Array  # int32[B, Lk], 0 where nothing is stored
  index: jax.Array  # int32 scalar, the first free key


class Output(NamedTuple):
  """What one forward pass returns."""

  hidden: jax.Array  # [B, L, D], final-normed
  velocity: jax.Array | None  # float32[B, V, C]; None without the flow head
  cache: Cache | None  # the given one with the new keys and values


def init_cache(config: TunaConfig, batch_size: int, length: int, *, flow: bool) -> Cache:
  """An empty cache of `length` keys per row; `flow` adds those of the flow head."""

  def pair(tower):
    shape = (tower.num_layers, batch_size, length, tower.num_kv_heads, tower.head_dim)
    return jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)

  return Cache(
    pair(config.decoder),
    pair(config.flow_head) if flow else None,
    jnp.zeros((batch_size, length), jnp.int32),
    jnp.zeros((), jnp.int32),
  )


def sinusoid(t, size: int):
  """t in [0, 1] as it is -> float32[..., size]: cosines, then sines (docs/architecture.md 4)."""
  half = size // 2
  freq = jnp.exp(-jnp.log(MAX_PERIOD) * jnp.arange(half, dtype=jnp.float32) / half)
  angle = t[..., None].astype(jnp.float32) * freq
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbed(nn.Module):
  """Timestep -> vector that is both the time token and the condition of the flow head."""

  config: TunaConfig

  @nn.compact
  def __call__(self, t):
    c = self.config
    x = dense(c.flow_head.dim, c.dtype, name='fc1')(sinusoid(t, c.time_frequencies).astype(c.dtype))
    return dense(c.flow_head.dim, c.dtype, name='fc2')(nn.silu(x))


class Connector(nn.Module):
  """Visual features -> tokens of the decoder's width: norm, linear, exact GELU, linear."""

  config: TunaConfig

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = RMSNorm(CONNECTOR_NORM_EPS, name='norm')(x)
    x = nn.gelu(dense(c.decoder.dim, c.dtype, name='fc1')(x), approximate=False)
    return dense(c.decoder.dim, c.dtype, name='fc2')(x)


class Tuna(nn.Module):
  """See the module's docstring. `logits` maps hidden states to the vocabulary."""

  config: TunaConfig

  def setup(self):
    c = self.config
    design = DESIGNS[c.design]
    if 'vision' in design.paths:
      self.vision = Vision(c, name='vision')
    if 'projector' in design.paths:
      self.projector = dense(c.decoder.dim, c.dtype, name='projector')
    if 'patches' in design.paths:
      self.patches = Patches(c, name='patches')
    if design.connector:
      self.connector = Connector(c, name='connector')
    self.time_embed = TimeEmbed(c, name='time_embed')
    if c.flow_head.dim != c.decoder.dim:
      self.time_token = dense(c.decoder.dim, c.dtype, name='time_token')
    self.decoder = Decoder(c, name='decoder')
    self.flow_head = FlowHead(c, name='flow_head')

  def features(self, latents, coords, image, grid, masked=None, drawn=None):
    """Visual tokens [B, V, D] of `latents` [B, V, C], by the design's paths.

    coords, image, grid: as in `Batch`. masked: bool[B, V], tokens that the design 'pixel' replaces
    by its mask token in training. drawn: bool[B, V], tokens that the design 'decoupled' sees as
    latents; where C are latents alone, all of them.
    """
    c, seen, design = self.config, [], DESIGNS[self.config.design]
    pixels = None
    if design.apart and latents.shape[-1] == c.token_dim:
      pixels, latents = jnp.split(latents, [c.seen_dim], axis=-1)
    if c.layout == 'raster' and c.patch > 1:
      latents = patches(latents, coords, image, grid, c.patch)
    if design.apart:
      x = self.projector(latents.astype(c.dtype))
      if pixels is None:
        return x
      clean = self.connector(self.vision(pixels, coords, image, grid))
      return clean if drawn is None else jnp.where(drawn[..., None], x, clean)
    if 'vision' in design.paths:
      seen.append(self.vision(latents, coords, image, grid))
    if 'projector' in design.paths:
      seen.append(self.projector(latents.astype(c.dtype)))
    if 'patches' in design.paths:
      seen.append(self.patches(latents, masked))
    x = seen[0] if len(seen) == 1 else jnp.concatenate(seen, axis=-1)
    return self.connector(x) if design.connector else x

  def __call__(
    self,
    batch: Batch,
    latents,
    t,
    cache: Cache | None = None,
    *,
    flow: bool = True,
    features=None,
    masked=None,
  ) -> Output:
    """One forward pass.

    Args:
      batch: with a cache, its `kv_limit` counts keys of the cache, `place` positions of this call.
      latents: float[B, V, C], what the model sees: x_t, which is the clean latent where t = 1.
        Fewer rows than the batch's are repeated: all branches of guidance see the same pictures.
      t: float32[B, M], the time of each image.
      cache: keys and values of earlier calls, or None.
      flow: whether to run the flow head; a cache must have been made for it.
      features: [B, V, D], visual tokens made earlier, instead of those of `latents`.
      masked: as in `features`.
    """
    c = self.config
    visual, is_text = latents.shape[1], batch.slot < 0
    x = self.decoder.embed(batch.tokens)
    if visual:  # text alone has no visual table
      rows = len(latents)
      if features is None:
        where = (batch.coords[:rows], batch.image[:rows], batch.grid[:rows])
        drawn = None
        if DESIGNS[c.design].apart:
          drawn = _take(batch.target[:rows, :, None], batch.image[:rows] - 1)[..., 0]
        features = self.features(latents, *where, masked, drawn)
      if rows < len(batch.tokens):
        features = jnp.tile(features, (len(batch.tokens) // rows, 1, 1))
      time = anchor(self.time_embed(t), 'images')
      token = time if c.flow_head.dim == c.decoder.dim else self.time_token(time)
      table = anchor(jnp.concatenate([token, features], axis=1), 'visual')
      x = jnp.where(is_text[..., None], x, _take(table, batch.slot))
    elif self.is_initializing():
      raise ValueError('initialise Tuna with a batch that has latent tokens')
    x = anchor(x, 'hidden')

    kv_segment, index = batch.segment, None
    if cache is not None:
      index = cache.index
      kv_segment = jax.lax.dynamic_update_slice_in_dim(cache.segment, batch.segment, index, axis=1)
    span = Span(
      rope.decoder_rotary(batch.position, c.decoder.head_dim, c.decoder.rope_theta),
      batch.kv_limit,
      batch.segment,
      kv_segment,
      index,
    )
    hidden, decoder_cache = self.decoder(x, span, None if cache is None else cache.decoder)
    if self.is_initializing():
      self.logits(hidden[:, :1])  # creates the untied language head

    velocity, flow_cache = None, None
    if flow:
      if cache is not None and cache.flow is None:
        raise ValueError('this cache was made without the flow head: init_cache(..., flow=True)')
      rotary, owner = flow_inputs(c, batch, pictures=visual > 0, cached=cache is not None)
      if not visual:  # text prefixes of a cache
        time = jnp.zeros((x.shape[0], 1, c.flow_head.dim), x.dtype)
      velocity, flow_cache = self.flow_head(
        hidden,
        span._replace(rotary=rotary),
        time,
        owner,
        ~is_text,
        batch.place,
        batch.image,
        None if cache is None else cache.flow,
      )
      if visual and c.path.predicts == 'clean':
        own = jnp.take_along_axis(t, jnp.maximum(batch.image - 1, 0), axis=1)
        x_t = jnp.tile(latents, (len(batch.tokens) // rows, 1, 1))
        velocity = velocity_to(velocity, x_t.astype(jnp.float32), own)
    if cache is not None:
      cache = Cache(decoder_cache, flow_cache, kv_segment, index + batch.tokens.shape[1])
    return Output(hidden, velocity, cache)

  def logits(self, hidden):
    """hidden [..., D] -> float32[..., padded_vocab]."""
    return self.decoder.logits(hidden)


def flow_inputs(config: TunaConfig, batch: Batch, *, pictures: bool = True, cached: bool = False):
  """(rotary tables, owner int[B, L]) of the flow head; `owner` is the image whose time modulates a
  token of a span.

  pictures: the batch has latents. cached: it continues a cache.
  """
  images, head_dim = batch.grid.shape[1], config.flow_head.head_dim
  is_text, is_visual = batch.slot < 0, batch.slot >= images
  owner, coords = jnp.zeros_like(batch.slot), jnp.zeros((*batch.slot.shape, 3), jnp.int32)
  if pictures:
    cell = jnp.maximum(batch.slot - images, 0)
    coords = _take(batch.coords, cell)
    own = _take(batch.image[..., None], cell)[..., 0] - 1
    owner = jnp.clip(jnp.where(is_visual, own, jnp.maximum(batch.slot, 0)), 0, images - 1)
  if config.flow_head.rotary == 'index':
    return rope.index_rotary(batch.position, head_dim), owner
  if not (pictures or cached) and config.compat == 'official':
    return rope.no_rotary(batch.position, head_dim), owner  # docs/architecture.md 7.3
  return rope.flow_rotary(batch.position, coords, is_text, is_visual, head_dim), owner


def _take(table, index):
  """table [B, n, ...], index int[B, L] -> [B, L, ...]; negative indices read row 0."""
  index = jnp.maximum(index, 0)
  return jnp.take_along_axis(table, index.reshape(*index.shape, *[1] * (table.ndim - 2)), axis=1)
