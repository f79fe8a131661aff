"""What the encoder takes beside the step: computed, and compared with the TPU compiler."""

import dataclasses
import functools
import importlib.util
import math
import os

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests import shrink
from tuna_jax import chips, sizes
from tuna_jax.config import VaeConfig
from tuna_jax.data.media import buckets
from tuna_jax.models.vae import encode_chunk
from tuna_jax.tools import encoder_cost
from tuna_jax.train import encoder
from tuna_jax.train.config import EncoderConfig

GIB = 2**30
LIMIT = 1.5 * GIB  # of temporaries, whatever the length of a clip
SPARE = 1.5  # the most by which a computed number of bytes may exceed the compiler's


def cost(frames=13, name='stage2', devices=256, **settings):
  config = shrink.real(name, '2b')
  data = dataclasses.replace(
    config.data, media=dataclasses.replace(config.data.media, frames=frames)
  )
  given = dataclasses.replace(config.encoder, **settings)
  config = dataclasses.replace(config, data=data, encoder=given)
  return encoder_cost.cost(config, chips.CHIPS['v5e'], devices, devices // 4)


def test_memory_does_not_grow_with_the_clip():
  costs = [cost(frames) for frames in (13, 49, 121)]
  assert len({(c.resident, c.temporaries) for c in costs}) == 1
  assert costs[0].temporaries < LIMIT


def test_offline_latents_leave_nothing_on_devices():
  off, on = cost(online=False), cost()
  assert (off.resident, off.temporaries, off.seconds) == (0, 0, 0)
  assert 0 < off.host < on.host


def test_float32_takes_twice_the_memory_of_bfloat16():
  half, whole = cost(), cost(dtype='float32')
  assert whole.resident == 2 * half.resident
  assert whole.temporaries == pytest.approx(2 * half.temporaries)


def test_seconds_are_shared_by_all_devices_and_fewer_without_clips():
  assert cost(devices=64).seconds == pytest.approx(4 * cost().seconds)
  assert cost(name='stage1').compute < cost().compute  # fewer cells, and no clips


def test_flops_are_in_proportion_to_pixels():
  config = shrink.real('stage2', '2b')
  vae, shape = config.model.vae, (1, 1, 384, 672, 3)
  pixels = jax.ShapeDtypeStruct(shape, np.uint8)
  lowered = jax.jit(functools.partial(encode_chunk, vae)).lower(encoder.encoder_shapes(vae), pixels)
  drawn = encoder_cost.media_of(config, {'t2i': 1.0})
  counted = lowered.cost_analysis()['flops'] / math.prod(shape[:-1])
  assert drawn.flops / drawn.pixels == pytest.approx(counted, rel=0.005)


def test_pictures_of_a_full_batch_are_counted():
  config = dataclasses.replace(shrink.real('stage1', '2b'), rows=64)
  cells = math.prod(max(buckets(config.data.media.image_size), key=math.prod)) // 16**2
  found = encoder_cost.media_of(config, {'t2i': 1.0, 'text': 1.0})
  assert found.pictures == pytest.approx(64 * config.visual / cells)


def test_a_design_without_a_vae_has_no_encoder():
  config = dataclasses.replace(shrink.real('stage2', '2b'), model=sizes.TUNA_2_7B)
  found = encoder_cost.cost(config, chips.CHIPS['v5e'], 256, 64)
  assert (found.resident, found.temporaries, found.seconds) == (0, 0, 0) and found.host > 0


@functools.cache
def mesh_of(chip):
  return Mesh(np.array(chips.devices_of(f'{chip}:2x2')), ('media',))


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs the TPU compiler')
@pytest.mark.slow
@pytest.mark.parametrize('chip', ['v5e', 'v6e'])
@pytest.mark.parametrize(
  'shape', [(13, 384, 672, 3), (49, 384, 672, 3), (121, 384, 672, 3), (121, 512, 512, 3)]
)
def test_temporaries_stay_below_the_limit_and_the_computed_bytes(chip, shape):
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  vae, settings = VaeConfig(), EncoderConfig(dtype='bfloat16')
  mesh = mesh_of(chip)
  count = encoder.group(vae, settings, mesh.size, shape)
  *_, largest = encoder.programs(vae, count, shape)
  found = encoder.compiled(vae, 'bfloat16', mesh, largest).memory_analysis()  # once for all lengths
  temporaries = found.peak_memory_in_bytes - found.argument_size_in_bytes
  each = count // mesh.size * math.prod(shape[1:3]) * largest.frames
  computed = encoder_cost.TEMPORARIES[largest.frames] * each
  assert temporaries < min(computed, LIMIT) and computed < SPARE * temporaries
  held = sum(math.prod(a.shape) for a in jax.tree.leaves(encoder.encoder_shapes(vae)))
  assert found.argument_size_in_bytes < 1.2 * 2 * (held + encoder_cost.carry_of(vae, *shape[1:3]))
