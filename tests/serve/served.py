"""The tiny model that the tests of this folder serve, and limits for it."""

import functools

import numpy as np

from tests.sample import small
from tuna_jax.data.media import MediaConfig
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.output import Picture
from tuna_jax.serve.limits import RequestLimits

LIMITS = RequestLimits(side=64, points=4, pictures=2, prompt=200, answer=8, upload_mb=0.1)
FEW = {'points': 3, 'guidance': 1.0}  # two evaluations of one branch
PICTURE = Picture(np.full((16, 16, 3), 90, np.uint8), {})


@functools.cache
def generator() -> Generator:
  return Generator(
    small.CONFIG, small.params(), small.vae_params(), small.tokenizer(),
    media=MediaConfig(image_size='16', video_size='16', frames=5), vae_config=small.VAE,
    batch_size=1,
  )  # fmt: skip
