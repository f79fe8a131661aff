"""The tiny VAE: a Wan 2.2 VAE of small width, trained on the pixels of a mixture."""

import ml_collections

from configs import mixtures
from tuna_jax.config import from_dict, size as named_size, to_dict
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.pipeline import DataConfig
from tuna_jax.train.vae import VaeTrainConfig


def get_config(size: str = 'tiny'):
  """size: tiny (2b and 7b use the published Wan 2.2 VAE)."""
  if size != 'tiny':
    raise ValueError(f'configs/vae.py:{size}: only tiny is trained here; other sizes use the published VAE')
  media = MediaConfig(image_size='64', video_size='64', frames=9)
  config = VaeTrainConfig(model=named_size(size).vae, data=DataConfig(media=media, phases=mixtures.VAE))
  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def from_config_dict(config) -> VaeTrainConfig:
  """The frozen VaeTrainConfig."""
  return from_dict(VaeTrainConfig, config.to_dict())
