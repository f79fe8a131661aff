"""Trains the small parts that stand in for the public ones: a VAE, a text-only decoder with its
tokenizer.

  tuna-jax pretrain --component=vae --workdir=DIR
  tuna-jax pretrain --component=decoder --workdir=DIR

Each takes `--config.FIELD=VALUE` of its file, configs/vae.py or configs/decoder.py. Your own data:
--config.data.mixture=FILE.json. The decoder first trains a tokenizer on the texts of its data and
keeps it in DIR/tokenizer, unless --config.tokenizer=DIR names one.
"""

import sys

from absl import flags
from ml_collections import config_flags

from tuna_jax.cli import EXIT_RETRY, app
from tuna_jax.config import UserError

_COMPONENT = flags.DEFINE_enum('component', None, ['vae', 'decoder'], 'Which part to train.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the part is written; a local path or gs://.')
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'FILE:SIZE; default configs/vae.py:tiny or configs/decoder.py:tiny.'
)


def main(argv):
  del argv
  if not _COMPONENT.value or not _WORKDIR.value or _CONFIG.value is None:
    raise UserError('pretrain: --component=vae|decoder and --workdir=DIR are needed')
  from tuna_jax.configs import common, vae
  from tuna_jax.toy import train_tokenizer
  from tuna_jax.toy import train_vae as vae_train
  from tuna_jax.train import loop

  try:
    if _COMPONENT.value == 'vae':
      vae_train.train_vae(vae.from_config_dict(_CONFIG.value), _WORKDIR.value)
    else:
      config = common.from_config_dict(_CONFIG.value)
      loop.train(train_tokenizer.ensure(config, _WORKDIR.value), _WORKDIR.value)
  except loop.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(EXIT_RETRY)


if __name__ == '__main__':
  # The component names its own config file, before the flags are read.
  for part in ('vae', 'decoder'):
    if f'--component={part}' in sys.argv and not any(a.startswith('--config=') for a in sys.argv):
      sys.argv.insert(1, f'--config=configs/{part}.py:tiny')
  app.run(main)
