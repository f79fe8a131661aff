"""`tuna-jax pretrain` in processes: the two parts that stand in for the public ones."""

import dataclasses
import sys

import pytest
from tuna_jax.configs import vae as vae_config

from tests import shrink
from tests.cli.test_train import finish, start
from tuna_jax.config import TunaConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.train import checkpoint
from tuna_jax.weights import store


def run(*arguments):
  return finish(start(sys.executable, '-m', 'tuna_jax.cli.pretrain', *arguments))


def test_the_decoder_learns_its_tokenizer_first(tmp_path):
  real = shrink.real('decoder')
  config = dataclasses.replace(shrink.shrink(real), steps=2)
  code, out, err = run(
    '--component=decoder', f'--workdir={tmp_path}', *shrink.overrides(config, real)
  )
  assert code == 0 and 'completed step: 2,' in out and not err.strip(), err
  assert (
    Tokenizer.from_dir(str(tmp_path / 'tokenizer')).vocab_size <= config.model.decoder.vocab_size
  )
  found = checkpoint.read_config(str(tmp_path))
  assert isinstance(found.model, TunaConfig) and found.tokenizer == str(tmp_path / 'tokenizer')
  assert dict(found.optimizer.groups) == {'decoder/.*': 1.0, '.*': 0.0} and found.visual == 0


@pytest.mark.slow
def test_the_vae_is_a_weights_directory(tmp_path):
  real = vae_config.from_config_dict(vae_config.get_config())
  config = dataclasses.replace(
    real, model=shrink.vae(real.model), steps=1, stills=2, clips_from=1.0, measured=32
  )
  code, out, err = run('--component=vae', f'--workdir={tmp_path}', *shrink.overrides(config, real))
  assert code == 0 and 'VAE step 1/1' in out, err
  assert store.read_config(tmp_path)['kind'] == 'vae'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--workdir=x'], '--component=vae|decoder and --workdir=DIR are needed'),
    (['--component', 'vae', '--workdir=x', '--config.stepz=1'], "nearest is 'steps'"),
    (['--component=decodr', '--workdir=x'], "expected one of vae|decoder; nearest is 'decoder'"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message):
  code, _, err = run(*arguments)
  assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err


def test_more_processes_than_one_are_refused(monkeypatch, tmp_path):
  monkeypatch.setenv('TUNA_NUM_PROCESSES', '2')
  code, _, err = run('--component=vae', f'--workdir={tmp_path}/vae')
  assert code == 2 and 'one process trains a part' in err and not list(tmp_path.iterdir()), err
