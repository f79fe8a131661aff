"""Every number of a config has a range, and a value outside of it is one line."""

import dataclasses
import typing

import pytest
from tuna_jax.configs import common, vae

from tests import shrink
from tuna_jax.mappings import checked, from_dict, to_dict
from tuna_jax.ranges import Range
from tuna_jax.toy.train_vae import VaeTrainConfig
from tuna_jax.train.config import TrainConfig


def bare(hint, path):
  """The paths of the numbers within `hint` that have no range."""
  if typing.get_origin(hint) is typing.Annotated:
    return [] if any(isinstance(a, Range) for a in typing.get_args(hint)[1:]) else [path]
  if dataclasses.is_dataclass(hint):
    hints = typing.get_type_hints(hint, include_extras=True)
    return [p for name, h in hints.items() for p in bare(h, f'{path}.{name}')]
  if hint in (int, float):
    return [path]
  return [p for a in typing.get_args(hint) for p in bare(a, path)]


@pytest.mark.parametrize('config', [TrainConfig, VaeTrainConfig])
def test_every_number_of_a_config_has_a_range(config):
  assert bare(config, config.__name__) == []


@pytest.mark.parametrize(
  'field, value, expected',
  [
    ('data.look_ahead', -1, 'at least 0'),
    ('data.prefetch', -1, 'at least 0'),
    ('keep', 0, 'at least 1'),
    ('checkpoint_every', 0, 'at least 1'),
    ('steps', -5, 'at least 1'),
    ('seed', -1, 'at least 0'),
    ('rows', 10**8, 'at most 1,048,576'),
    ('optimizer.clip', 0.0, 'above 0'),
    ('optimizer.ema', 2.0, 'below 1'),
    ('optimizer.warmup', -5, 'at least 0'),
    ('optimizer.accumulate', 0, 'at least 1'),
    ('optimizer.lr', float('nan'), 'at most 100'),
    ('optimizer.lr', float('inf'), 'at most 100'),
    ('optimizer.eps', float('inf'), 'above 0'),
    ('model.decoder.num_layers', 10**9, 'at most 10,000'),
    ('profile_steps', (3, -1), 'at least 0'),
  ],
)
def test_a_value_outside_of_its_range_is_refused_by_name(field, value, expected):
  config = common.to_config_dict(shrink.real('stage1'), 'as it is')
  with config.ignore_type():
    config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=rf'^{field}.*={value if value != (3, -1) else -1}: .*') as e:
    common.from_config_dict(config)
  assert expected in str(e.value) and '\n' not in str(e.value)


def test_a_vae_training_is_checked_likewise():
  mapping = {**to_dict(vae.from_config_dict(vae.get_config())), 'stills': 0}
  with pytest.raises(ValueError, match='stills=0: expected at least 1'):
    from_dict(VaeTrainConfig, mapping)


def test_a_config_that_was_built_in_python_can_be_checked():
  config = dataclasses.replace(shrink.real('stage1'), keep=0)
  with pytest.raises(ValueError, match='keep=0: expected at least 1'):
    checked(config)
