"""The vision tower: noisy latents in, visual features out (docs/architecture.md 3).

Axes:  B rows   V latent tokens   C latent channels   M images per row   D width
Each frame of each image attends to itself alone: the segment id counts frames.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from tuna_jax.config import ENCODERS, TunaConfig
from tuna_jax.models import rope
from tuna_jax.models.layers import SHAPE_ONLY, Attention, Mlp, RMSNorm, Span, SwiGLU, dense, stack
from tuna_jax.sharding import anchor

_MAX_FRAMES = 1 << 12  # latent frames of one clip; segment ids are image * _MAX_FRAMES + frame
PATCH_NORM_EPS = float(np.finfo(np.float32).eps)  # torch's own where none is given
_CUBIC = -0.75  # torch's bicubic coefficient; jax.image.resize uses -0.5 and antialiases


def cubic_weights(index, size, table: int):
  """Row `index` of the bicubic resize of a table of side `table` to `size`, with half-pixel centres
  and clamped taps. index, size: int[...] -> float32[..., table].
  """
  scale = table / jnp.maximum(size, 1).astype(jnp.float32)
  source = (index.astype(jnp.float32) + 0.5) * scale - 0.5
  floor = jnp.floor(source)
  frac = source - floor
  a, out = _CUBIC, 0.0
  for tap in (-1, 0, 1, 2):
    x = jnp.abs(frac - tap)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weight = jnp.where(x <= 1, near, jnp.where(x < 2, far, 0.0))
    cell = jnp.clip(floor + tap, 0, table - 1)
    out += weight[..., None] * (cell[..., None] == jnp.arange(table))
  return out


def position_weights(coords, size, table: int):
  """float32[B, V, table * table]: what each row of the table counts for a token at coords
  int[B, V, 3] (frame, row, column) in a grid of size int[B, V, 2] (rows, columns).
  """
  rows = cubic_weights(coords[..., 1], size[..., 0], table)
  columns = cubic_weights(coords[..., 2], size[..., 1], table)
  return rearrange(rows[..., :, None] * columns[..., None, :], 'b v r c -> b v (r c)')


def patches(tokens, coords, image, grid, side: int):
  """Raster runs -> patches: float[B, V, side^2 c] both, cells of a token in raster order.

  A row of the 'raster' layout is side^2 cells in a run of the frame read line by line, which is not
  what its token shows. With side 2, two tokens wide, one token high (cells 0 to 7):

      cells   0 1 2 3    run of token 0   0 1 2 3    its patch   0 1 4 5
              4 5 6 7    run of token 1   4 5 6 7    its patch   2 3 6 7

  Runs and patches of one row of tokens hold the same cells, so the flow head gives the runs that
  official weights were trained with, and this one gather gives the vision tower its patches.
  coords int[B, V, 3] (frame, row, column), image int[B, V] from 1, grid int[B, M, 3]: in tokens.
  """
  count = tokens.shape[1]
  size = jnp.take_along_axis(grid, jnp.maximum(image - 1, 0)[..., None], axis=1)
  rows, columns = size[..., 1], size[..., 2]
  frame, row, column = (coords[..., i] for i in range(3))
  first = jnp.arange(count) - ((frame * rows + row) * columns + column)  # token of its image
  line = (frame * rows + row)[..., None] * side + jnp.arange(side)
  stretch = first[..., None] * side + line * columns[..., None] + column[..., None]
  stretch = jnp.clip(stretch, 0, count * side - 1)  # of `side` cells beside each other
  pieces = rearrange(tokens, 'b v (s c) -> b (v s) c', s=side)
  found = jnp.take_along_axis(pieces, stretch.reshape(len(stretch), -1, 1), axis=1)
  return rearrange(found, 'b (v s) c -> b v (s c)', s=side)


class VisionBlock(nn.Module):
  """Pre-norm attention and tanh-GELU MLP with biases everywhere."""

  config: TunaConfig

  @nn.compact
  def __call__(self, x, span: Span, cache=None):
    c = self.config
    v = c.vision
    x = checkpoint_name(anchor(x, 'visual'), 'block_input')
    attend = Attention(
      v, c.dtype, c.attention, qkv_bias=True, out_bias=True, out_name='out_proj', name='attn'
    )
    y, _ = attend(nn.LayerNorm(epsilon=v.norm_eps, dtype=c.dtype, name='norm1')(x), span)
    x = x + y
    y = nn.LayerNorm(epsilon=v.norm_eps, dtype=c.dtype, name='norm2')(x)
    return x + Mlp(v.mlp_dim, v.dim, c.dtype, approximate=True, name='mlp')(y), cache


class Dinov3Block(nn.Module):
  """Pre-norm attention and SwiGLU, each scaled by a learned vector; keys have no bias."""

  config: TunaConfig

  @nn.compact
  def __call__(self, x, span: Span, cache=None):
    c = self.config
    v = c.vision
    norm = lambda name: nn.LayerNorm(epsilon=v.norm_eps, dtype=c.dtype, name=name)
    scale = lambda name: self.param(name, SHAPE_ONLY, (v.dim,)).astype(c.dtype)
    x = checkpoint_name(anchor(x, 'visual'), 'block_input')
    attend = Attention(
      v, c.dtype, c.attention, True, k_bias=False, out_bias=True, out_name='out_proj', name='attn'
    )
    y, _ = attend(norm('norm1')(x), span)
    x = x + scale('layer_scale1') * y
    y = SwiGLU(v.mlp_dim, c.dtype, bias=True, name='mlp')(norm('norm2')(x))
    return x + scale('layer_scale2') * y, cache


BLOCKS = {'siglip': VisionBlock, 'dinov3': Dinov3Block}
_MULTIPLE = 128  # of tokens, which attention kernels want


class Patches(nn.Module):
  """Visual tokens without an encoder: a linear map of each patch, and a norm."""

  config: TunaConfig

  @nn.compact
  def __call__(self, tokens, masked=None):
    """tokens [B, V, C] -> [B, V, D]; where `masked` (bool[B, V]), the learned mask token."""
    c = self.config
    x = dense(c.decoder.dim, c.dtype, name='embed')(tokens.astype(c.dtype))
    x = RMSNorm(PATCH_NORM_EPS, name='norm')(x)
    mask_token = self.param('mask_token', SHAPE_ONLY, (c.decoder.dim,)).astype(x.dtype)
    return x if masked is None else jnp.where(masked[..., None], mask_token, x)


class Vision(nn.Module):
  """Patch embedding, positions, layers.

  SigLIP adds learned positions, resized to each image's grid. DINOv3 rotates queries and keys by
  the place in the grid and gives each image tokens of its own, which are no part of the features:
  they stand behind the latent tokens, and images have one frame.
  """

  config: TunaConfig

  @nn.compact
  def __call__(self, latents, coords, image, grid):
    """latents [B, V, C]; coords, image and grid as in `Batch` -> [B, V, D]."""
    c = self.config
    v = c.vision
    x = dense(v.dim, c.dtype, name='patch_embed')(latents.astype(c.dtype))
    size = jnp.take_along_axis(grid, jnp.maximum(image - 1, 0)[..., None], axis=1)[..., 1:]
    segment, rotary = jnp.where(image > 0, image * _MAX_FRAMES + coords[..., 0], 0), None
    if ENCODERS[v.encoder]:
      x, segment, rotary = self._with_prefix(x, segment, coords, size, grid)
    else:
      x = x + self._learned_positions(coords, size).astype(c.dtype)
    span = Span(rotary, jnp.full_like(segment, segment.shape[1] - 1), segment, segment)
    x, _ = stack(BLOCKS[v.encoder], v.num_layers, c.remat_of('vision'), 'layers', config=c)(
      x, span, None
    )
    x = x[:, : image.shape[1]]
    return nn.LayerNorm(epsilon=v.norm_eps, dtype=c.dtype, name='norm')(x) if v.final_norm else x

  @nn.nowrap
  def _learned_positions(self, coords, size):
    v = self.config.vision
    table = nn.Embed(v.grid**2, v.dim, embedding_init=SHAPE_ONLY, name='position_embed').embedding
    return jnp.einsum('bvg,gd->bvd', position_weights(coords, size, v.grid), table)

  @nn.nowrap
  def _with_prefix(self, x, segment, coords, size, grid):
    """x, its segments and rotary tables with the own tokens of every image, and padding, behind."""
    v = self.config.vision
    prefix = ENCODERS[v.encoder]
    own = jnp.concatenate(
      [
        self.param('cls_token', SHAPE_ONLY, (1, 1, v.dim)),
        self.param('register_tokens', SHAPE_ONLY, (1, prefix - 1, v.dim)),
      ],
      axis=1,
    )
    (rows, count), images = segment.shape, grid.shape[1]
    rest = prefix * images + -(count + prefix * images) % _MULTIPLE
    own = jnp.pad(jnp.tile(own, (rows, images, 1)), ((0, 0), (0, rest - prefix * images), (0, 0)))
    shown = jnp.where(grid[..., 0] > 0, jnp.arange(1, images + 1) * _MAX_FRAMES, 0)
    shown = jnp.pad(jnp.repeat(shown, prefix, axis=1), ((0, 0), (0, rest - prefix * images)))
    behind = lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], axis=1)
    still = rope.no_rotary(shown, v.head_dim)
    placed = rope.picture_rotary(coords, size, v.head_dim)
    rotary = rope.Rotary(behind(placed.cos, still.cos), behind(placed.sin_half, still.sin_half))
    return behind(x, own), behind(segment, shown), rotary
