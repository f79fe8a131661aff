"""A generator with random weights, for evaluations: everything it says and draws is wrong."""

import functools

from tests import shrink
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.sample.generate import Drawing, Generator
from tuna_jax.sample.image import Guidance
from tuna_jax.weights import store

HOW = Drawing(Guidance(1.0), 2, 1.0)
N = 3


@functools.cache
def generator():
  config = shrink.stage('stage3')
  vae_config, vae_params = store.load_vae(config.vae)
  return Generator(
    config.model,
    shrink.randomise(tuna_shapes(config.model), 1),
    vae_params,
    Tokenizer.from_dir(config.tokenizer),
    vae_config=vae_config,
    tasks=config.data.tasks,
    media=MediaConfig('64', '64', 9),
    batch_size=12,
  )
