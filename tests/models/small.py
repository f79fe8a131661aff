"""A model of some ten thousand parameters with random weights, and packed batches of it."""

import dataclasses
import functools

import numpy as np

from tests import shrink
from tuna_jax.batch import Batch
from tuna_jax.config import TunaConfig
from tuna_jax.data.latents import fill_latents
from tuna_jax.data.segments import Example, Image, Text, Video, layout, pack
from tuna_jax.data.tokenizer import Letters
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.models.tuna import Tuna
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.toy.sizes import TINY

CONFIG = dataclasses.replace(shrink.model(TINY), remat='none')
C = CONFIG.vae.latent_channels
LENGTH, CELLS, IMAGES = 48, 24, 3


def ids(n: int, seed: int):
  return np.random.default_rng(seed).integers(4, 300, n).tolist()


def media(*shape, seed: int = 0):
  return np.random.default_rng(seed).normal(size=(*shape, C)).astype(np.float32)


# One example of every kind: text, a picture drawn, a picture asked about, an edit, a clip.
PLANS = {
  'text': [Text(ids(9, 0), loss=True)],
  't2i': [Text(ids(6, 1)), Image(media(1, 2, 3, seed=1), target=True), Text(ids(2, 2))],
  'vqa': [Text(ids(3, 3)), Image(media(1, 3, 2, seed=2)), Text(ids(7, 4), loss=True)],
  'edit': [
    Text(ids(2, 5)),
    Image(media(1, 2, 2, seed=3)),
    Text(ids(4, 6)),
    Image(media(1, 2, 2, seed=4), target=True),
  ],
  't2v': [Text(ids(5, 7)), Video(media(3, 2, 2, seed=5), target=True)],
}


def example(name: str) -> Example:
  return layout(PLANS[name], Letters(), (4, 16), task=list(PLANS).index(name))


def batch(
  *rows: tuple[str, ...], length: int = LENGTH, cells: int = CELLS, images: int = IMAGES
) -> Batch:
  """The named examples side by side, latents filled in."""
  return fill_latents(
    pack([[example(name) for name in row] for row in rows], (len(rows), length, cells, images, C))
  )


def times(batch: Batch, seed: int = 0):
  """A time for every image that is drawn; 1 elsewhere."""
  t = np.random.default_rng(seed).uniform(0.1, 0.9, batch.target.shape).astype(np.float32)
  return np.where(batch.target, t, np.float32(1))


@functools.cache
def params(config: TunaConfig = CONFIG):
  return shrink.randomise(tuna_shapes(config), 0)


@functools.cache
def forward(config: TunaConfig = CONFIG, flow: bool = True):
  """jitted (batch, latents, t, cache) -> Output with `params`."""

  @quick_jit
  def run(
    params, batch, latents, t, cache=None
  ):  # as constants, parameters would be folded for seconds
    return Tuna(config).apply({'params': params}, batch, latents, t, cache, flow=flow)

  return functools.partial(run, params(config))
