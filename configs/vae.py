"""The tiny VAE: a Wan 2.2 VAE of small width, trained on the pixels of a mixture."""

import ml_collections
from tuna_jax.configs import mixtures, tiny

from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.sizes import size as named_size
from tuna_jax.toy.train_vae import VaeTrainConfig


def get_config(size: str = 'tiny'):
  """size: tiny, fast (tiny, in fewer steps), or either in a design with a VAE of its own, such as
  fast-late_fusion; 2b and 7b use the published Wan 2.2 VAE.
  """
  steps, name = {'tiny': 1000, 'fast': 300}, size.partition('-')[0]
  if name not in steps:
    raise UserError(f'configs/vae.py:{size}: expected tiny or fast; others use the published VAE')
  model = named_size(tiny.model_of(size)).vae
  if model is None:
    raise UserError(f'configs/vae.py:{size}: this design has no VAE')
  media = MediaConfig(image_size='64', video_size='64', frames=9)
  config = VaeTrainConfig(
    model=model, steps=steps[name], data=DataConfig(media=media, phases=mixtures.VAE)
  )
  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def from_config_dict(config) -> VaeTrainConfig:
  """The frozen VaeTrainConfig."""
  return from_dict(VaeTrainConfig, config.to_dict())
