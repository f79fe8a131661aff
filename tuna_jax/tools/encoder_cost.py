"""What the frozen encoder costs beside the train step: bytes of a device, seconds of a step, and
memory of a host.

Operations are counted by jax in the lowered programs. Bytes are computed: the TPU compiler takes
minutes for these convolutions, so its answers at the published width were taken once
(docs/measured.md 6), and a slow test compares them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.chips import Chip
from tuna_jax.config import VaeConfig
from tuna_jax.data.media import buckets
from tuna_jax.data.tasks import TASKS
from tuna_jax.models.vae import encode_chunk
from tuna_jax.train import encoder
from tuna_jax.train.config import TrainConfig

# The published encoder in bfloat16 on v5e: bytes per pixel of a picture, and of four frames.
TEMPORARIES = {1: 700, 4: 1300}  # beside parameters, pixels and carry
TRAFFIC = {1: 31_300, 4: 44_200}  # read from HBM and written to it
WIDTH = 160  # `encoder_dim` of it


class Cost(NamedTuple):
  """resident, temporaries: bytes per device. host: bytes per host. pictures: those of a full batch,
  each frame of a clip counted. compute, hbm: seconds of all devices together that the media of a
  full batch need, by operations and by traffic of HBM.
  """

  resident: int
  temporaries: int
  host: int
  pictures: float
  compute: float
  hbm: float

  @property
  def seconds(self) -> float:
    """Of one step; the devices do nothing else meanwhile."""
    return max(self.compute, self.hbm)


def cost(config: TrainConfig, chip: Chip, devices: int, hosts: int) -> Cost:
  """The cost of encoding during a run; without an encoder, that of the host alone."""
  busiest = max((media_of(config, phase) for phase in _phases(config)), key=lambda m: m.pixels)
  rows = config.rows / hosts
  arrays = rows * (config.visual * config.model.token_dim + 8 * config.length) * 4
  kept = (config.data.pool_mb + config.data.latent_cache_mb) << 20
  # Each batch that is built ahead is once pixels and once arrays.
  host = int(kept + config.data.prefetch * (3 * busiest.pixels / hosts + arrays))
  vae, settings = config.model.vae, config.encoder
  if vae is None or not config.visual or not settings.online:
    return Cost(0, 0, host, busiest.pictures, 0.0, 0.0)
  item = jnp.dtype(settings.dtype).itemsize
  params = sum(math.prod(a.shape) for a in jax.tree.leaves(encoder.encoder_shapes(vae)))
  folded = 1 if vae.residual else 4  # cells per four pixels at the first level
  scale = item / 2 * folded * vae.encoder_dim / WIDTH
  temporaries = carry = 0
  drawn = {task for phase in _phases(config) for task in phase}
  for frames, height, width, colours in encoder.shapes_of(config.data, drawn):
    count = encoder.group(vae, settings, 1, (frames, height, width, colours))
    seen = 4 if frames > 1 else 1
    temporaries = max(temporaries, TEMPORARIES[seen] * count * seen * height * width)
    if frames > 1:
      carry = max(carry, count * carry_of(vae, height, width))
  return Cost(
    resident=(params + carry) * item,
    temporaries=int(scale * temporaries),
    host=host + 4 * params,
    pictures=busiest.pictures,
    compute=busiest.flops / devices / (chip.bf16_flops / chip.devices),
    hbm=busiest.traffic * scale / devices / (chip.hbm_bandwidth / chip.devices),
  )


class Media(NamedTuple):
  """What fills a batch: pictures (each frame of a clip is one), pixels, FLOPs, and bytes of HBM at
  the published width.
  """

  pictures: float
  pixels: float
  flops: float
  traffic: float


def media_of(config: TrainConfig, phase: Mapping[str, float]) -> Media:
  """The media of a batch full of examples of a phase ({task: weight}), at the largest sizes."""
  total, cells = np.zeros(4), 0.0
  for task, weight in phase.items():
    for kind in TASKS[task].fields.values():
      frames, side = 1, config.data.media.image_size
      if kind == 'clip':
        frames, side = config.data.media.frames, config.data.media.video_size
      elif kind not in ('picture', 'pictures'):
        continue
      height, width = max(buckets(side), key=math.prod)
      (stride, cell), later = config.model.strides, frames - 1
      flops = _flops(config.model.vae, 1)
      flops += later / stride * _flops(config.model.vae, stride) if later else 0
      traffic = height * width * (TRAFFIC[1] + later * TRAFFIC[4])
      total += weight * np.array([frames, frames * height * width, flops * height * width, traffic])
      cells += weight * (1 + later // stride) * height * width / cell**2
  if not cells:
    return Media(0.0, 0.0, 0.0, 0.0)
  return Media(*(total / cells * config.rows * config.visual).tolist())


def _phases(config: TrainConfig) -> list[Mapping[str, float]]:
  return [dict(weights) for _, weights in config.data.phases] or [dict.fromkeys(TASKS, 1.0)]


SIDE = 512  # pixels of the picture whose FLOPs and carry are counted


@functools.cache
def _flops(vae: VaeConfig | None, frames: int) -> float:
  """Of frame 0, or of so many later frames, of one clip, per pixel of a frame; none without a VAE.
  Attention, which is not in proportion to pixels, takes about a hundredth of them."""
  if vae is None:
    return 0.0
  params, pixels, carry = _arguments(vae, frames)
  lowered = jax.jit(functools.partial(encode_chunk, vae)).lower(params, pixels, carry)
  return lowered.cost_analysis()['flops'] / SIDE**2


def carry_of(vae: VaeConfig, height: int, width: int) -> int:
  """How many numbers a clip's frames leave for the next ones, in proportion to pixels."""
  carry = _arguments(vae, vae.temporal_stride)[2]
  return sum(math.prod(a.shape) for a in carry) * height * width // SIDE**2


@functools.cache
def _arguments(vae: VaeConfig, frames: int):
  struct = lambda shape: jax.ShapeDtypeStruct(shape, np.uint8)
  params, first = encoder.encoder_shapes(vae), struct((1, 1, SIDE, SIDE, 3))
  carry = None
  if frames > 1:
    carry = jax.eval_shape(functools.partial(encode_chunk, vae), params, first)[1]
  return params, struct((1, frames, SIDE, SIDE, 3)), carry
