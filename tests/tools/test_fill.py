"""Rows of the published sizes are full on records of real sizes."""

import dataclasses
import importlib

import pytest
from tuna_jax.configs import common

from tuna_jax.tools import fill


@pytest.mark.parametrize('stage', ['stage1', 'stage2', 'stage3'])
def test_at_least_92_percent_of_positions_are_filled_in_every_phase(stage):
  config = importlib.import_module(f'tuna_jax.configs.{stage}').get_config('2b')
  config = common.from_config_dict(config)
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture='synthetic'))
  found = fill.fill(config, fill.Words(), batches=5, rows=8)
  assert [f.start for f in found] == [round(s * config.steps) for s, _ in config.data.phases]
  for f in found:
    assert 0.92 <= f.filled['L'] <= 1 and f.too_large < 0.1, fill.table(found)
