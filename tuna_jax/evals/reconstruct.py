"""What a VAE makes of pictures: a model can draw and see no better than its VAE does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from tuna_jax.config import VaeConfig
from tuna_jax.models.vae import decode_pixels, encode_pixels

LOW_DB = 20.0  # below it shapes and colours are lost, and a trained model draws what is left


@dataclasses.dataclass(frozen=True)
class Rebuilt:
  """Pictures encoded and decoded. psnr: mean over the pictures, in dB. pairs: (true, rebuilt)."""

  psnr: float
  pairs: Sequence[tuple[np.ndarray, np.ndarray]]

  @property
  def warning(self) -> str:
    """What a person must know of a VAE that does not fit the pictures; '' for one that does."""
    if self.psnr >= LOW_DB:
      return ''
    return (
      f'THE VAE DOES NOT FIT THESE PICTURES: it rebuilds them at {self.psnr:.1f} dB, and '
      f'{LOW_DB:g} dB is the least. Whatever is trained on it sees and draws no better. Take '
      'another VAE, or train one longer on these pictures.'
    )


def rebuild(config: VaeConfig, params, pictures: Sequence[np.ndarray]) -> Rebuilt:
  """pictures: uint8 [H, W, 3] each, sides multiples of the VAE's stride."""
  run = jax.jit(lambda p, x: decode_pixels(config, p, encode_pixels(config, p, x)))
  found = [np.asarray(run(params, picture[None, None]))[0, 0] for picture in pictures]
  error = [np.square(y.astype(np.float64) - x).mean() for x, y in zip(pictures, found)]
  psnr = 10 * np.log10(255**2 / np.maximum(error, 0.1))
  return Rebuilt(float(psnr.mean()), list(zip(pictures, found)))
