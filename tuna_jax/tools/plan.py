"""What a train step would cost on a TPU pod: the real step, compiled ahead of time on a CPU.

The `libtpu` wheel contains the TPU compiler. It compiles `train_step` for a named topology, places
every buffer, and refuses what does not fit. Its answer gives bytes and collectives; operations come
from `flops`, and times from published peaks under stated assumptions. Nothing here was measured on
a TPU.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import resource
import time
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tuna_jax import batch as batch_lib
from tuna_jax import sharding
from tuna_jax.chips import CHIPS, devices_of, topology_name
from tuna_jax.config import TOWERS, UserError
from tuna_jax.tools import encoder_cost, hlo, step_cost
from tuna_jax.train import flops
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import MeshConfig, TrainConfig
from tuna_jax.train.step import jit_step

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
  """Bytes and seconds of one device and one step; None if the compiler refused the step.

  memory: bytes by class. peak_bytes: of the step alone; it fits only if the encoder, resident and
  at work, has room beside it (`encoder_cost`). host_bytes: of one host, for what feeds the step.
  pictures: of a batch full of the media of the busiest phase, each frame of a clip counted.
  `gradients` and `activations` are computed by hand (trainable leaves in
  float32; layer inputs that remat keeps); `temporaries` are the rest of the peak.
  collectives: [{kind, axes, count, bytes}]. roofline: seconds by resource, and the step's bound.
  """

  topology: str
  slices: int
  chips: int
  mesh: dict[str, int]
  rows: int
  length: int
  fits: bool
  reason: str
  advice: tuple[str, ...]
  peak_bytes: int | None
  hosts: int
  host_bytes: int
  pictures: float
  limit_bytes: int
  memory: dict[str, int]
  host_offload_bytes: int | None
  collectives: list[dict] | None
  useful_flops: float
  executed_flops: float
  roofline: dict[str, float]
  tokens_per_second: float | None
  assumptions: tuple[str, ...]
  lower_seconds: float
  compile_seconds: float
  host_peak_bytes: int
  compiler_flags: str


class Answer(NamedTuple):
  """What the compiler said of a step. memory: by arithmetic (`step_cost.memory_of`); peak: bytes of
  a device, or those that a refused step needed, None where it did not say; reason: of the refusal,
  or ''."""

  mesh: dict[str, int]
  hosts: int
  memory: dict[str, int]
  peak: int | None
  limit: int
  reason: str
  offloaded: int | None
  collectives: list[hlo.Collective] | None
  lower_seconds: float
  compile_seconds: float


def compile_step(config: TrainConfig, topology: str, slices: int = 1) -> Answer:
  """Compiles the train step of `config` for `slices` slices of `topology`, which takes minutes.

  Raises UserError if the topology, the mesh or the batch cannot be laid out.
  """
  m, devices = config.mesh, devices_of(topology, slices)
  mesh = sharding.make_mesh(m.data, m.fsdp, m.context, m.tensor, devices=devices, num_slices=slices)
  arguments, placed = step_arguments(config, mesh)
  with jax.set_mesh(mesh):
    lowered, lower_seconds = _timed(lambda: jit_step(config, placed).lower(*arguments))
  reason, compiled = '', None
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as caught:
    if 'RESOURCE_EXHAUSTED' not in str(caught):
      raise
    reason = str(caught)
  compile_seconds = time.perf_counter() - began

  peak, limit = sizes_in(reason) if reason else (None, None)
  found = offloaded = None
  if compiled is not None:
    analysis = compiled.memory_analysis()
    # The compiler counts arguments in host memory among the peak: it takes steps whose peak with
    # them is above what a device has.
    peak = analysis.peak_memory_in_bytes - analysis.host_argument_size_in_bytes
    offloaded = analysis.host_temp_size_in_bytes
    found = hlo.collectives(compiled.as_text(), mesh, slices)
  return Answer(
    dict(mesh.shape),
    len({device.process_index for device in mesh.devices.flat}),
    step_cost.memory_of(config, mesh, arguments),
    peak,
    limit or int(CHIPS[topology.partition(':')[0]].hbm * GIB),
    _first_line(reason),
    offloaded,
    found,
    lower_seconds,
    compile_seconds,
  )


def plan(config: TrainConfig, topology: str, slices: int = 1, answer: Answer | None = None) -> Plan:
  """The plan of the train step of `config` on `slices` slices of `topology`: of what the compiler
  answered before, or compiled now.

  A step that does not fit has `fits` False and advice. Raises UserError if the topology, the mesh
  or the batch cannot be laid out.
  """
  topology = topology_name(topology)
  chip = CHIPS[topology.partition(':')[0]]
  answer = answer or compile_step(config, topology, slices)
  peak, limit, found, error = answer.peak, answer.limit, answer.collectives, answer.reason
  mesh = jax.sharding.AbstractMesh(tuple(answer.mesh.values()), tuple(answer.mesh))
  arguments, _ = step_arguments(config, mesh)
  memory = dict(answer.memory)
  if peak is not None:
    memory['temporaries'] = max(peak - sum(memory.values()), 0)
  frozen = encoder_cost.cost(config, chip, mesh.size, answer.hosts)
  memory |= {'encoder resident': frozen.resident, 'encoder temporaries': frozen.temporaries}
  together = None if peak is None else peak + frozen.resident + frozen.temporaries
  if not error and together > limit:
    error = (
      f'the step takes {peak / GIB:.2f} GiB, and beside it the encoder '
      f'{(together - peak) / GIB:.2f} of {limit / GIB:.2f} GiB'
    )
  work = flops.train_flops(config)
  far = step_cost.far_bytes(config, mesh, arguments[0])
  roofline, assumptions = step_cost.times(
    config, mesh, chip, slices, work, found, memory, frozen, far
  )
  tokens = config.rows * config.length
  return Plan(
    topology=topology,
    slices=slices,
    chips=mesh.size // chip.devices,
    mesh=dict(mesh.shape),
    rows=config.rows,
    length=config.length,
    fits=not error,
    reason=error,
    advice=() if not error else advice(config, mesh, memory, together, limit),
    peak_bytes=peak,
    hosts=answer.hosts,
    host_bytes=frozen.host,
    pictures=frozen.pictures,
    limit_bytes=limit,
    memory=memory,
    host_offload_bytes=answer.offloaded,
    collectives=None if found is None else [{**c._asdict(), 'axes': list(c.axes)} for c in found],
    useful_flops=work.useful,
    executed_flops=work.executed,
    roofline=roofline,
    tokens_per_second=tokens / roofline['step'] if found is not None else None,
    assumptions=assumptions,
    lower_seconds=answer.lower_seconds,
    compile_seconds=answer.compile_seconds,
    host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    compiler_flags=os.environ.get('LIBTPU_INIT_ARGS', ''),
  )


def step_arguments(config: TrainConfig, mesh):
  """((state, batch, key) as ShapeDtypeStructs placed on `mesh`, shardings of the state)."""
  ways = mesh.shape['data'] * mesh.shape['fsdp'] * config.optimizer.accumulate
  if config.rows % ways:
    raise UserError(
      f'rows={config.rows} does not divide over data x fsdp x accumulate = {ways} '
      f'of {dict(mesh.shape)}'
    )
  if config.length % mesh.shape['context']:
    raise UserError(f'length={config.length} does not divide over context={mesh.shape["context"]}')

  def struct(leaf, where):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  # What the state does not depend on is the same for all, so that its shapes are made once.
  same = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, remat='block'),
    optimizer=dataclasses.replace(config.optimizer, accumulate=1),
    mesh=MeshConfig(),
  )
  state = _abstract(same)
  placed = state_lib.shardings(state, mesh, config)
  one = batch_lib.empty(1, *config.sizes[1:])
  batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((config.rows, *a.shape[1:]), a.dtype), one)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return (
    jax.tree.map(struct, state, placed),
    jax.tree.map(struct, batch, sharding.batch_sharding(mesh)),
    struct(key, NamedSharding(mesh, P())),
  ), placed


@functools.lru_cache(64)
def _abstract(config: TrainConfig):
  return state_lib.abstract_state(config)


def advice(config: TrainConfig, mesh, memory, needed, limit) -> tuple[str, ...]:
  """What to change if the step does not fit, the cheapest change first."""
  shape = mesh.shape
  per_device = config.rows // (shape['data'] * shape['fsdp'])
  micro = per_device // config.optimizer.accumulate
  fixed = sum(memory[k] for k in ('parameters', 'ema', 'optimizer', 'gradients'))
  out = []
  beside = memory.get('encoder resident', 0) + memory.get('encoder temporaries', 0)
  if needed and beside and needed - beside <= limit:
    out.append(
      '--config.encoder.online=False: encode the mixture before, by `tuna-jax data encode`, so '
      'that no encoder is on the devices'
    )
  if fixed > 0.9 * limit:
    out.append(
      f'a larger topology: parameters, moments, average and gradients take {fixed / GIB:.1f} GiB '
      'per device before any row'
    )
  remats = {config.model.remat_of(tower) for tower in TOWERS}
  if not remats <= {'block', 'offload'}:
    out.append(f'--config.model.remat=block (now {config.model.remat}): keep only layer inputs')
  if micro > 1:
    over = (needed - fixed) / (limit - fixed) if needed and limit > fixed else 2
    smaller = max(1, min(micro // 2, int(micro / over)))
    smaller = max(n for n in range(1, smaller + 1) if per_device % n == 0)
    out.append(
      f'--config.optimizer.accumulate={per_device // smaller}: the same step, with {smaller} rows '
      f'per device at a time instead of {micro}'
    )
    out.append(f'--config.rows={config.rows * smaller // micro}: fewer rows per step')
  if remats == {'block'}:
    out.append('--config.model.remat=offload: keep layer inputs in host memory')
  if shape['data'] > 1 and 2 * shape['fsdp'] <= sharding.MAX_FSDP:
    out.append(
      f'--config.mesh.fsdp={2 * shape["fsdp"]}: shard parameters over more devices (data is '
      f'{shape["data"]})'
    )
  if micro == 1 and shape['fsdp'] > 1:
    context = 2 * shape['context']
    out.append(
      f'--config.mesh.context={context} --config.mesh.fsdp={shape["fsdp"] // 2} '
      f'--config.rows={config.rows // 2}: {context} devices share a row'
    )
  return tuple(out)


def sizes_in(message: str) -> tuple[int | None, int | None]:
  """(bytes needed, bytes available) in the compiler's refusal; None for what it does not say."""
  units = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
  used = re.search(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', message, re.IGNORECASE)
  if used:
    return int(float(used[1]) * units[used[2].upper()]), int(
      float(used[3]) * units[used[4].upper()]
    )
  total = re.search(r'(?:total memory required|required)\D*([\d.]+)([KMGT]?)', message)
  have = re.search(r'(?:available HBM|HBM capacity|capacity)\D*([\d.]+)([KMGT]?)', message)
  size = lambda m: int(float(m[1].rstrip('.')) * units[m[2]]) if m else None
  return size(total), size(have)


def _first_line(message: str) -> str:
  return next((line.strip() for line in message.splitlines() if line.strip()), '')[:400]


def _timed(fn):
  began = time.perf_counter()
  return fn(), time.perf_counter() - began
