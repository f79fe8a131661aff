"""Trains a small model on your own data and reports what it has learned.

  tuna-jax fit my.json --out=RUN [--minutes=15] [--test=my_test.json] [--vae=DIR]
  tuna-jax fit my.json --out=RUN --lora=MODEL

The data are a mixture file, or a folder of pictures with texts: NAME.txt beside NAME.jpg,
metadata.jsonl, NAME_before.png and NAME_after.png with an instruction in NAME.txt, or folders whose
names say what their pictures show. RUN/index.html grows while the model trains and ends as the
report. SIGTERM or Ctrl-C saves and exits with 75; the same command continues.
"""

import os

from absl import flags

from tuna_jax.cli import app
from tuna_jax.config import UserError

_OUT = flags.DEFINE_string('out', None, 'The folder that everything is written to.')
_MINUTES = flags.DEFINE_float(
  'minutes', 15.0, 'How many minutes everything together should take.', lower_bound=0.1
)
_TEST = flags.DEFINE_string(
  'test', '', 'The mixture file or folder that is held out; by default a share of the data is.'
)
_HELD_OUT = flags.DEFINE_float(
  'held_out', 0.1, 'The share of the pictures that is held out.', lower_bound=0.0, upper_bound=0.9
)
_MOST = flags.DEFINE_integer(
  'most', 10_000, 'How many pictures are used at most, so that each is seen often.', lower_bound=2
)
_VAE = flags.DEFINE_string(
  'vae', '', 'The directory of a VAE to use; by default one is trained on the pictures.'
)
_LORA = flags.DEFINE_string(
  'lora', '', 'A run or weights whose adapters are trained, instead of a small model.'
)
_SIZE = flags.DEFINE_string(
  'image_size',
  '',
  "The size of pictures and clips: 'N' or 'HxW'; by default 64, or what --lora was trained on.",
)
_FRAMES = flags.DEFINE_integer('frames', 9, 'How many frames of a clip are read, 4k + 1.')
_N = flags.DEFINE_integer('n', 200, 'How many items to judge per row of the table.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'The seed of all that is random.', lower_bound=0)


def main(argv):
  if not _OUT.value:
    raise UserError('fit: --out=DIR is needed')
  # Two simulated devices use the cores of a CPU better than one does; on a GPU or TPU this has no
  # effect.
  devices = 2 if (os.cpu_count() or 1) > 1 else 1
  os.environ.setdefault('XLA_FLAGS', f'--xla_force_host_platform_device_count={devices}')
  from tuna_jax.small.fit import fit
  from tuna_jax.train import lock

  with lock.hold(_OUT.value):
    page = fit(
      argv[1], _OUT.value, minutes=_MINUTES.value, test=_TEST.value, vae=_VAE.value,
      lora=_LORA.value,
      held_out=_HELD_OUT.value, most=_MOST.value, image_size=_SIZE.value, frames=_FRAMES.value,
      seed=_SEED.value, n=_N.value, say=lambda line: print(line, flush=True),
    )  # fmt: skip
  print(f'report: {page}')


if __name__ == '__main__':
  app.run(main, positional=('DATA',))
