"""The tiny VAE: a Wan 2.2 VAE of small width, trained on the pixels of a mixture."""

import ml_collections
from tuna_jax.configs import mixtures

from tuna_jax.config import UserError, from_dict, to_dict
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig
from tuna_jax.sizes import size as named_size
from tuna_jax.toy.train_vae import VaeTrainConfig


def get_config(size: str = 'tiny'):
  """size: tiny, or fast (tiny, in fewer steps); 2b and 7b use the published Wan 2.2 VAE."""
  steps = {'tiny': 1000, 'fast': 300}
  if size not in steps:
    raise UserError(f'configs/vae.py:{size}: expected tiny or fast; others use the published VAE')
  media = MediaConfig(image_size='64', video_size='64', frames=9)
  config = VaeTrainConfig(
    model=named_size('tiny').vae,
    steps=steps[size],
    data=DataConfig(media=media, phases=mixtures.VAE),
  )
  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def from_config_dict(config) -> VaeTrainConfig:
  """The frozen VaeTrainConfig."""
  return from_dict(VaeTrainConfig, config.to_dict())
