"""Reruns the paper's comparison: trains its rows alike, scores them, and judges its claims.

  tuna-jax compare --rows=7,8,9,10,12 --seeds=3 --out=DIR [--steps=1600] [--encoders=siglip2:1200]

Rows are those of configs/compare.py, at the tiny size on the rendered world. DIR/compare.json holds
every verdict and DIR/index.html is the page; both grow with each run. SIGTERM or Ctrl-C saves and
exits with 75; the same command continues, also from a compare.json that was copied to DIR.
"""

import os

from absl import flags

from tuna_jax import files
from tuna_jax.cli import app
from tuna_jax.config import UserError

_ROWS = flags.DEFINE_list('rows', '12,8,9,7,3,6,10', 'The rows of the table, in the order run.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many seeds each row is trained with.', lower_bound=1)
_SIZE = flags.DEFINE_enum('size', 'tiny', ['tiny'], 'The size; others train with `tuna-jax train`.')
_OUT = flags.DEFINE_string('out', None, 'The folder that everything is written to.')
_STEPS = flags.DEFINE_integer('steps', 1600, 'Steps of each row, both stages.', lower_bound=10)
_ENCODERS = flags.DEFINE_list(
  'encoders', None,
  'The steps that encoders are taught, as siglip:100,siglip2:1200; others keep their own.',
)  # fmt: skip
_DECODER = flags.DEFINE_integer('decoder', 1500, 'Steps of the decoder on text.', lower_bound=10)
_VAE = flags.DEFINE_integer('vae', 800, 'Steps of each VAE.', lower_bound=10)
_N = flags.DEFINE_integer('n', 200, 'How many items to judge per task.', lower_bound=1)


def main(argv):
  del argv
  if not _OUT.value:
    raise UserError('compare: --out=DIR is needed')
  if not _ROWS.value:
    raise UserError('--rows=: expected numbers of rows with commas; compare --help lists them')
  devices = 2 if (os.cpu_count() or 1) > 1 else 1  # as `tuna-jax fit` does
  os.environ.setdefault('XLA_FLAGS', f'--xla_force_host_platform_device_count={devices}')
  import jax

  from tuna_jax.lab import table
  from tuna_jax.lab.recipe import Recipe
  from tuna_jax.train import lock

  jax.config.update('jax_compilation_cache_dir', str(files.absolute(_OUT.value) / 'programs'))
  with lock.hold(_OUT.value):
    recipe = Recipe(_STEPS.value, _DECODER.value, _VAE.value).with_encoders(_ENCODERS.value or ())
    table.run(_ROWS.value, _SEEDS.value, _OUT.value, recipe, _N.value)
  print(f'page: {files.path(_OUT.value) / "index.html"}')


if __name__ == '__main__':
  app.run(main)
