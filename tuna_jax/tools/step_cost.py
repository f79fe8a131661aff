"""Bytes and seconds of one device and one train step, by arithmetic and from published peaks."""

from __future__ import annotations

import math

import jax

from tuna_jax.chips import DCN, HOST_LINK
from tuna_jax.train import flops
from tuna_jax.train.config import TrainConfig


def memory_of(config: TrainConfig, mesh, arguments) -> dict[str, int]:
  """Bytes of one device by class, without what lies in host memory."""
  state, batch, _ = arguments
  return {
    'parameters': held(state.params),
    'ema': 0 if 'ema' in config.optimizer.host else held(state.ema),
    'optimizer': 0 if 'moments' in config.optimizer.host else held(state.opt_state),
    'batch': held(batch),
    'gradients': held(state.ema, 4),  # one float32 for each trainable leaf
    'activations': int(kept(config) * micro_rows(config, mesh)),
  }


def held(tree, item: int | None = None) -> int:
  """Bytes of the parts of placed arrays on one device; item: of each number, if not its type's."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * (item or leaf.dtype.itemsize)
    for leaf in jax.tree.leaves(tree)
  )


def far_bytes(config: TrainConfig, mesh, state) -> tuple[int, int]:
  """Bytes of one device that cross the link to its host, in one direction, per step: of the state,
  for the update, and of what layers keep, beside their operations."""
  parts = {'moments': held(state.opt_state), 'ema': held(state.ema)}
  layers = kept(config, 'host') * micro_rows(config, mesh) * config.optimizer.accumulate
  return sum(parts[name] for name in config.optimizer.host), int(layers)


def micro_rows(config: TrainConfig, mesh) -> float:
  """Rows of one device at a time; a share of one where `context` splits it."""
  shape, rows = mesh.shape, config.rows / config.optimizer.accumulate
  return rows / (shape['data'] * shape['fsdp'] * shape['context'])


LANES = 128  # of a TPU
NONE = 4  # times what `dots` keeps: 2B asked for so much at 2,048 positions of v5e


def positions(config: TrainConfig) -> dict[str, int]:
  """{tower: positions of one row that pass through it}."""
  drawn = config.length * (config.flow_coeff > 0)
  return {'vision': config.visual, 'decoder': config.length, 'flow_head': drawn}


def kept(config: TrainConfig, where: str = 'device', lanes: int = LANES) -> float:
  """Bytes that the layers of one row keep for the backward pass, on the device or on the host
  (docs/advice.md 2). lanes: what the last axis of an array is rounded up to; 1 is not at all."""
  total = 0.0
  for name, tokens in positions(config).items():
    tower = getattr(config.model, name)
    if tower is None:
      continue
    remat, width = config.model.remat_of(name), tower.dim
    if (remat == 'offload') != (where == 'host'):
      continue
    heads, groups = tower.num_heads * tower.head_dim, tower.num_kv_heads * tower.head_dim
    if remat not in ('block', 'offload'):
      width += heads
    if remat in ('narrow', 'dots', 'none'):
      # `narrow` keeps them by heads, which TPUs pad.
      pad = lanes * -(-tower.head_dim // lanes) / tower.head_dim if remat == 'narrow' else 1
      width += pad * (heads + 2 * groups) + tower.dim
    if remat in ('dots', 'none'):
      # The last product is only kept where its gate needs it.
      width += tower.dim * (name == 'flow_head') + tower.mlp_dim * (1 if name == 'vision' else 2)
    total += (NONE if remat == 'none' else 1) * tower.num_layers * width * tokens
  return total * jax.numpy.dtype(config.model.dtype).itemsize


def times(config, mesh, chip, slices, work, found, memory, frozen, far=(0, 0)):
  """({resource: seconds, 'step': their maximum}, the assumptions behind them).

  far: bytes of a device that cross to its host and back in a step, as of `far_bytes`.
  """
  seconds = {
    'compute': work.executed / mesh.size / (chip.bf16_flops / chip.devices),
    'hbm': 2
    * sum(memory[k] for k in ('parameters', 'ema', 'optimizer'))
    / (chip.hbm_bandwidth / chip.devices),
  }
  for c in found or ():
    between_slices = c.kind.startswith('dcn-')
    name = f'{"dcn" if between_slices else "links"} {"+".join(c.axes)}'
    seconds[name] = seconds.get(name, 0) + c.bytes / (DCN if between_slices else chip.ring)
  if any(far):
    seconds['host link'] = 2 * sum(far) / HOST_LINK
  seconds['step'] = max(seconds.values())
  seconds |= {'encoder compute': frozen.compute, 'encoder hbm': frozen.hbm}
  seconds['activations'] = (
    flops.activation_bytes(config) / mesh.size / (chip.hbm_bandwidth / chip.devices)
  )
  seconds['softmax'] = flops.softmax_operations(config) / mesh.size / (chip.vector / chip.devices)
  busy = seconds['compute'] + seconds['softmax'], seconds['hbm'] + seconds['activations']
  # Nothing is left to do while the state comes for the update.
  seconds['estimate'] = max(seconds['step'], *busy) + 2 * far[0] / HOST_LINK + frozen.seconds
  seconds['useful_share'] = (
    work.useful / mesh.size / (chip.bf16_flops / chip.devices) / seconds['step']
  )
  assumptions = (
    f'compute: executed FLOPs at the published peak, {chip.bf16_flops / 1e12:.0f} bf16 TFLOP/s',
    (
      f'rows are full: {config.length:,} positions and {config.visual:,} latent tokens, one causal '
      'example with equal visual spans; padding and packing need less'
    ),
    (
      f'hbm: the train state read and written once at {chip.hbm_bandwidth / 1e12:.2f} TB/s, no '
      'activations'
    ),
    *([f'host link: {HOST_LINK / 1e9:.0f} GB/s per chip in each direction'] if any(far) else []),
    f'links: each mesh axis is a ring of the torus, {chip.ring / 1e9:.0f} GB/s in both directions',
    *([f'dcn: data crosses slices at {DCN / 1e9:.2f} GB/s per chip'] if slices > 1 else []),
    'step: the slowest of these, as if all overlapped; this is a bound and no prediction',
    'encoder: a batch full of the media of the busiest phase, by operations and by traffic of HBM',
    (
      'activations: each layer reads and writes its tensors in HBM, forwards, again for remat, and '
      'twice backwards'
    ),
    f'softmax: {flops.SOFTMAX} vector operations per score and pass, {chip.vector / 1e12:.1f} T/s',
    (
      'estimate: the slowest of the bound, compute and softmax, and all of HBM; then the state '
      'over the host link, and the encoder'
    ),
  )
  return seconds, assumptions
