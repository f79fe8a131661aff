"""Compiles a train step for a TPU pod without having one: whether it fits, and what it costs.

  tuna-jax plan --config=configs/stage2.py:7b --topology=v6e:16x16 [--slices=2] [--json=FILE]

Needs the TPU compiler (`pip install 'tuna_jax[tpu]'`) and no TPU. --topology is CHIP:DIMS (v5e:4x4,
v5p:4x4x8, v6e:16x16, tpu7x:4x4x4) or a name such as v6e-256. Prints memory by class, the encoder's
beside the step's, collectives by mesh axis, FLOPs, and a roofline with its assumptions. Exits 3
where the step does not fit, and says what to change. LIBTPU_INIT_ARGS gives the compiler the flags
of a run (launch/presets.sh).
"""

import ctypes
import dataclasses
import os
import sys

from absl import flags
from ml_collections import config_flags

from tuna_jax import files
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


def main(argv):
  del argv
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise UserError('plan: --config=FILE:SIZE and --topology=CHIP:DIMS are needed')
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


if __name__ == '__main__':
  # Before a config file imports jax: no accelerator of this machine takes part. The last two keep
  # libtpu from complaining that it is on no TPU host; the topology asked for does not depend on
  # them.
  os.environ.update(
    JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_WORKER_HOSTNAMES='localhost', TPU_ACCELERATOR_TYPE='v5litepod-4',
  )  # fmt: skip
  app.run(main)
