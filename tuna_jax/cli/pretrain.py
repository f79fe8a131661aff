"""Trains a small VAE, or a text-only decoder with its tokenizer, instead of the public ones.

  tuna-jax pretrain --component=vae --workdir=DIR
  tuna-jax pretrain --component=decoder --workdir=DIR

Each takes `--config.FIELD=VALUE` of its file, configs/vae.py or configs/decoder.py. Your own data:
--config.data.mixture=FILE.json. The decoder first trains a tokenizer on the texts of its data and
keeps it in DIR/tokenizer, unless --config.tokenizer=DIR names one.
"""

import os
import sys

from absl import flags
from ml_collections import config_flags

from tuna_jax.cli import app, config_files, options
from tuna_jax.config import UserError

_COMPONENT = flags.DEFINE_enum('component', None, ['vae', 'decoder'], 'The part to train.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'The directory that the part is written to, a local path or gs://.'
)
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'The config, FILE:SIZE; configs/vae.py:tiny or configs/decoder.py:tiny by default.',
)
_allowed = options.define_allow_change()


def main(argv):
  del argv
  if not _COMPONENT.value or not _WORKDIR.value or _CONFIG.value is None:
    raise UserError('pretrain: --component=vae|decoder and --workdir=DIR are needed')
  if os.environ.get('TUNA_NUM_PROCESSES', '1') != '1':
    raise UserError('pretrain: one process trains a part, and TUNA_NUM_PROCESSES asks for more')
  from tuna_jax.configs import common, vae
  from tuna_jax.toy import train_tokenizer
  from tuna_jax.toy import train_vae as vae_train
  from tuna_jax.train import lock, loop

  if _COMPONENT.value == 'vae':
    vae_train.train_vae(vae.from_config_dict(_CONFIG.value), _WORKDIR.value)
    return
  config = common.from_config_dict(_CONFIG.value)
  with lock.hold(_WORKDIR.value):
    config = train_tokenizer.ensure(config, _WORKDIR.value)
    loop.train(config, _WORKDIR.value, allow_change=_allowed())


if __name__ == '__main__':
  # The component names its own config file, before the flags are read.
  part = config_files.value_of(sys.argv, 'component')
  if part in ('vae', 'decoder') and config_files.value_of(sys.argv, 'config') is None:
    sys.argv.insert(1, f'--config=configs/{part}.py:tiny')
  app.run(main)
