"""The speed of the train step on the devices of this run: tokens, FLOPs, share of the peak.

    MFU = useful FLOPs of a step / (seconds x devices x published peak of a device)

Useful FLOPs are those of `flops.train_flops` for the tokens that rows hold; padding,
rematerialised layers and recomputed scores are not counted. Data are random and made once, so that
neither a tokenizer, a VAE nor a disk takes part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import numpy as np

from tuna_jax import sharding
from tuna_jax.batch import Batch
from tuna_jax.chips import peak_flops
from tuna_jax.data.latents import fill_latents
from tuna_jax.data.segments import Image, Text, layout, pack
from tuna_jax.data.tokenizer import Letters
from tuna_jax.train import flops
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.step import jit_step

CELLS = 1024  # latent tokens of a picture, 512 x 512 pixels, where a row has room for them


def bench(config: TrainConfig, steps: int = 5, peak: float | None = None) -> dict[str, Any]:
  """Times `steps` steps of `config` on all devices of the run, after two that are not counted.

  peak: FLOP/s of one device; default its data sheet's. Without either, 'mfu' is None.
  """
  m = config.mesh
  mesh = sharding.make_mesh(m.data, m.fsdp, m.context, m.tensor, num_slices=m.slices)
  abstract = state_lib.abstract_state(config)
  placed = state_lib.shardings(abstract, mesh, config)
  abstract = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract.params, placed.params
  )
  rows = full_rows(config)
  with jax.set_mesh(mesh):
    make = functools.partial(state_lib.from_params, config=config)
    state = jax.jit(make, out_shardings=placed)(state_lib.first_params(config, abstract))
    batch = jax.tree.map(
      lambda a, where: jax.make_array_from_callback(a.shape, where, lambda index: a[index]),
      rows,
      sharding.batch_sharding(mesh),
    )
    key = jax.random.key(1)
    began = time.perf_counter()
    step = jit_step(config, placed).lower(state, batch, key).compile()
    compiled = time.perf_counter() - began
    for _ in range(2):
      state, metrics = step(state, batch, key)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(steps):
      state, metrics = step(state, batch, key)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - began) / steps
    memory = jax.local_devices()[0].memory_stats() or {}

  used, visual = int((rows.segment[0] > 0).sum()), int((rows.image[0] > 0).sum())
  filled = dataclasses.replace(
    config, length=used, visual=visual, images=max(int(rows.image[0].max(initial=0)), 1)
  )
  useful = flops.train_flops(filled).useful
  device = jax.devices()[0]
  peak = peak or peak_flops(device)
  per_device = useful / seconds / mesh.size
  return {
    'stage': config.stage,
    'device': f'{device.platform} {device.device_kind}',
    'devices': mesh.size,
    'mesh': dict(mesh.shape),
    'rows': config.rows,
    'tokens_in_a_row': used,
    'compile_seconds': compiled,
    'seconds': seconds,
    'tokens_per_second': config.rows * used / seconds,
    'useful_flops': useful,
    'flops_per_device': per_device,
    'peak_flops': peak,
    'mfu': per_device / peak if peak else None,
    'peak_bytes': memory.get('peak_bytes_in_use'),
    'loss': float(metrics['loss']),
  }


def full_rows(config: TrainConfig) -> Batch:
  """A Batch whose every row is one example that fills it: learned text between pictures to draw."""
  rng = np.random.default_rng(0)
  vocab, channels = config.model.decoder.vocab_size, config.sizes[-1]
  pictures = min(config.images, max(config.visual // CELLS, 1)) if config.visual else 0
  # A picture adds boi, a time token and eoi to its cells, and a word stands before it.
  room = min(config.visual, config.length - 4 * pictures)
  side = math.isqrt(room // pictures) if pictures else 0

  def row():
    words = rng.integers(6, vocab, config.length - pictures * (side * side + 3))
    plan = []
    for part in np.array_split(words, pictures + 1):
      latents = rng.normal(size=(1, side, side, channels)).astype(np.float32)
      plan += [Text(part, loss=True), Image(latents, target=True)]
    return [layout(plan[:-1], Letters(), (1, 1))]

  return fill_latents(pack([row() for _ in range(config.rows)], config.sizes))


def table(result) -> str:
  """The result of `bench` as lines to read."""
  mesh = ' x '.join(f'{name} {size}' for name, size in result['mesh'].items())
  rows = f'{result["rows"]} rows of {result["tokens_in_a_row"]:,} tokens'
  lines = [
    f'{result["stage"]} on {result["devices"]} x {result["device"]}, mesh {mesh}: {rows}',
    f'compiled in {result["compile_seconds"]:.1f} s',
    f'{"seconds per step":24}{result["seconds"]:14.4f}',
    f'{"tokens/s":24}{result["tokens_per_second"]:14,.0f}',
    f'{"TFLOP/s per device":24}{result["flops_per_device"] / 1e12:14.4f}',
  ]
  if result['peak_bytes']:
    lines.append(f'{"memory per device, GiB":24}{result["peak_bytes"] / 2**30:14.2f}')
  if result['mfu'] is None:
    return '\n'.join([*lines, 'MFU: no published peak of this device is known; give --peak_tflops'])
  lines += [
    f'{"MFU, %":24}{100 * result["mfu"]:14.2f}',
    f'MFU = useful FLOPs / (seconds x devices x peak) = {result["useful_flops"]:.4g} / '
    f'({result["seconds"]:.4g} x {result["devices"]} x {result["peak_flops"]:.4g})',
  ]
  return '\n'.join(lines)
