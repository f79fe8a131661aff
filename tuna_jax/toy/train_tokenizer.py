"""The tokenizer of a small run: learned from the texts of its own data."""

from __future__ import annotations

import dataclasses

import jax

from tuna_jax import files
from tuna_jax.data.mixture import texts
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.train.config import TrainConfig


def ensure(config: TrainConfig, workdir: str) -> TrainConfig:
  """`config` with a tokenizer: its own, or the one in `workdir`, which is learned from every task's
  texts if absent.
  """
  if config.tokenizer:
    return config
  path = files.absolute(workdir) / 'tokenizer'
  if not (path / 'tokenizer.json').exists() and jax.process_index() == 0:
    data = dataclasses.replace(config.data, phases=())
    Tokenizer.train(texts(data), config.model.decoder.vocab_size).save(str(path))
  return dataclasses.replace(config, tokenizer=str(path))
