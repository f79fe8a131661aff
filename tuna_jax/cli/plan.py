"""Compiles a train step for a TPU pod without having one: whether it fits, and what it costs.

  tuna-jax plan --config=configs/stage2.py:7b --topology=v6e:16x16 [--slices=2] [--json=FILE]
  tuna-jax plan --config=configs/stage2.py:2b --topology=v5e-16 --advise [--rows=256] [--offline]
  tuna-jax plan --draw=2b --dtype=int8 --topology=v5e:1x1 [--side=512]

Needs the TPU compiler (`pip install 'tuna_jax[tpu]'`) and no TPU. --topology is CHIP:DIMS (v5e:4x4,
v5p:4x4x8, v6e:16x16, tpu7x:4x4x4) or a name such as v6e-256. Prints memory by class, the encoder's
beside the step's, collectives by mesh axis, FLOPs, and a roofline with its assumptions. Exits 3
where the step does not fit, and says what to change. With --draw, it is the drawing of one picture
by one device: the sampler, and the VAE's decoder. LIBTPU_INIT_ARGS gives the compiler the flags
of a run (launch/presets.sh).

With --advise, all meshes, rows at a time, kinds of remat and places of the state that take the same
step are predicted from steps that were compiled before, and the best is printed as flags, beside
what every other choice would give (docs/advice.md 3). --goal=chips and --goal=price choose the
topology too, of the chip given, or of every chip.
"""

import dataclasses
import os

from absl import flags
from ml_collections import config_flags

from tuna_jax import files, sizes
from tuna_jax.cli import app
from tuna_jax.config import UserError

EXIT_UNFIT = 3
GOALS = ('tokens_per_second', 'memory', 'chips', 'price')

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The stage and size to plan, FILE:SIZE.')
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'The slice, as CHIP:DIMS (v6e:16x16) or CHIP-COUNT (v6e-256).'
)
_SLICES = flags.DEFINE_integer(
  'slices', None, 'How many slices the pod has; mesh.slices of the config by default.', 1
)
_JSON = flags.DEFINE_string('json', None, 'The plan is also written to this file.')
_ADVISE = flags.DEFINE_bool('advise', False, 'Whether to search for the step to run.')
_GOAL = flags.DEFINE_enum(
  'goal', 'tokens_per_second', GOALS, 'advise: what is to be best, or least.'
)
_ROWS = flags.DEFINE_integer('rows', None, 'advise: rows of a step, if not those of the config.', 1)
_OFFLINE = flags.DEFINE_bool('offline', False, 'advise: whether to compile nothing.')
_CACHE = flags.DEFINE_string(
  'cache', None, 'The folder of answers of the compiler; by default one of your own cache.'
)

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
  for name in ('goal', 'rows', 'offline', 'cache'):
    if flags.FLAGS[name].present and not _ADVISE.value:
      raise UserError(f'plan: --{name} is for --advise')
  if _ADVISE.value and (_DRAW.value or _JSON.value):
    raise UserError('plan: --advise takes neither --draw nor --json')
  if _DRAW.value:
    return _draw()
  from tuna_jax.configs import common
  from tuna_jax.tools import advise_table, compiled, plan, plan_table

  config = common.from_config_dict(_CONFIG.value)
  slices = _SLICES.value or config.mesh.slices
  if _ADVISE.value:
    config = dataclasses.replace(config, rows=_ROWS.value or config.rows)
    answers = compiled.Answers(_CACHE.value or '', exact=not _OFFLINE.value)
    asked = (config, _TOPOLOGY.value, slices, _GOAL.value, answers, _OFFLINE.value)
    print(advise_table.advice(*asked))
    return 0
  compiled.one_heap()
  result = plan.plan(config, _TOPOLOGY.value, slices)
  print(plan_table.table(result))
  if _JSON.value:
    files.write_json(_JSON.value, dataclasses.asdict(result))
  return 0 if result.fits else EXIT_UNFIT


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
  # Before a config file imports jax.
  from tuna_jax.tools.xla_cpu import ALONE

  os.environ.update(ALONE)
  app.run(main)
