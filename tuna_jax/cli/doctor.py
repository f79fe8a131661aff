"""Says what this installation and machine can do, with one line of advice for each problem.

  tuna-jax doctor [--checkpoint=RUN]

It looks at versions (against those that were tested), devices, memory, the compile cache, the disk,
published models, and how fast pictures are read; and at the parts of a run or of weights. The exit
code is 0 whatever it finds.
"""

from absl import flags

from tuna_jax.cli import app

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', '', 'The directory of a run or of weights that is looked at as well.'
)


def main(argv):
  del argv
  from tuna_jax.tools import doctor

  problems = 0
  for finding in doctor.examine(_CHECKPOINT.value):
    print(finding, flush=True)
    problems += bool(finding.advice)
  print(f'{problems} line{"s" * (problems != 1)} of advice')


if __name__ == '__main__':
  app.run(main)
