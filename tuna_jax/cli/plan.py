"""Compiles a train step for a TPU pod without having one: whether it fits, and what it costs.

  tuna-jax plan --config=configs/stage2.py:7b --topology=v6e:16x16 [--slices=2] [--json=FILE]
  tuna-jax plan --draw=2b --dtype=int8 --topology=v5e:1x1 [--side=512]

Needs the TPU compiler (`pip install 'tuna_jax[tpu]'`) and no TPU. --topology is CHIP:DIMS (v5e:4x4,
v5p:4x4x8, v6e:16x16, tpu7x:4x4x4) or a name such as v6e-256. Prints memory by class, the encoder's
beside the step's, collectives by mesh axis, FLOPs, and a roofline with its assumptions. Exits 3
where the step does not fit, and says what to change. With --draw, it is the drawing of one picture
by one device: the sampler, and the VAE's decoder. LIBTPU_INIT_ARGS gives the compiler the flags
of a run (launch/presets.sh).
"""

import ctypes
import dataclasses
import os
import sys

from absl import flags
from ml_collections import config_flags

from tuna_jax import files, sizes
from tuna_jax.cli import app
from tuna_jax.config import UserError

EXIT_UNFIT = 3
# Of glibc's malloc.h: the compiler leaves holes in the heap of each of its threads. One heap, and
# large blocks outside it that go back when they are freed, take less of this machine's memory.
_ONE_HEAP = {-8: 1, -3: 2**16, -1: 2**17}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The stage and size to plan, FILE:SIZE.')
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'The slice, as CHIP:DIMS (v6e:16x16) or CHIP-COUNT (v6e-256).'
)
_SLICES = flags.DEFINE_integer(
  'slices', None, 'How many slices the pod has; mesh.slices of the config by default.', 1
)
_JSON = flags.DEFINE_string('json', None, 'The plan is also written to this file.')


_DRAW = flags.DEFINE_enum('draw', None, sorted(sizes.SIZES), 'The size of a model that draws.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['float32', 'bfloat16', 'int8'], 'draw: how its parameters are held.'
)
_SIDE = flags.DEFINE_integer('side', 512, 'draw: the side of the picture in pixels.', 16)


def main(argv):
  del argv
  if bool(_CONFIG.value) == bool(_DRAW.value):
    raise UserError('plan: --config=FILE:SIZE or --draw=SIZE is needed, and not both')
  if not _TOPOLOGY.value:
    raise UserError('plan: --topology=CHIP:DIMS is needed')
  if _DRAW.value:
    return _draw()
  from tuna_jax.configs import common
  from tuna_jax.tools import plan, plan_table

  if hasattr(ctypes.CDLL(None), 'mallopt'):
    for option, value in _ONE_HEAP.items():
      ctypes.CDLL(None).mallopt(option, value)
  config = common.from_config_dict(_CONFIG.value)
  result = plan.plan(config, _TOPOLOGY.value, _SLICES.value or config.mesh.slices)
  print(plan_table.table(result))
  if _JSON.value:
    files.write_json(_JSON.value, dataclasses.asdict(result))
  if not result.fits:
    sys.exit(EXIT_UNFIT)


def _draw():
  from tuna_jax.tools import plan_sample

  result = plan_sample.plan(
    sizes.size(_DRAW.value), _TOPOLOGY.value, dtype=_DTYPE.value, side=_SIDE.value
  )
  print(result)
  if _JSON.value:
    files.write_json(_JSON.value, dataclasses.asdict(result))
  return 0 if result.fits else EXIT_UNFIT


if __name__ == '__main__':
  # Before a config file imports jax: no accelerator of this machine takes part. The last two keep
  # libtpu from complaining that it is on no TPU host; the topology asked for does not depend on
  # them.
  os.environ.update(
    JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_WORKER_HOSTNAMES='localhost', TPU_ACCELERATOR_TYPE='v5litepod-4',
  )  # fmt: skip
  app.run(main)
