"""Trains one stage, from its config to a run directory; the same command continues a stopped run.

  tuna-jax train --config=configs/stage1.py:tiny --workdir=RUN [--config.FIELD=VALUE ...]

--config=FILE:SIZE takes tiny, 2b or 7b. Pictures need --config.vae=DIR and text needs
--config.tokenizer=DIR; a stage starts from the one before with --config.init_from=RUN. Your own
data: --config.data.mixture=FILE.json. SIGTERM or Ctrl-C saves and exits with 75, which launch
scripts take as "run me again". RUN/index.html shows losses, samples and the time while it trains.
"""

from absl import flags
from ml_collections import config_flags

from tuna_jax.cli import app, options
from tuna_jax.config import UserError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The stage and size to train, FILE:SIZE, for example configs/stage1.py:tiny.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'The run directory for checkpoints and logs, a local path or gs://.'
)
_allowed = options.define_allow_change()
_join = options.define_distributed()


def main(argv):
  del argv
  if _CONFIG.value is None or not _WORKDIR.value:
    raise UserError('train: --config=FILE:SIZE and --workdir=DIR are needed')
  _join()
  from tuna_jax.configs import common
  from tuna_jax.evals.running import Running
  from tuna_jax.train import loop

  config = common.from_config_dict(_CONFIG.value)
  with Running(config, _WORKDIR.value):
    loop.train(config, _WORKDIR.value, allow_change=_allowed())


if __name__ == '__main__':
  app.run(main)
