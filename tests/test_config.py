"""The one way from a mapping to a config is strict."""

import dataclasses

import pytest
from tuna_jax.configs import common

from tests import shrink
from tuna_jax.config import DecoderConfig, TunaConfig, VaeConfig, nearest
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.toy.sizes import TINY


@pytest.mark.parametrize('stage', [*shrink.STAGES, 'decoder'])
@pytest.mark.parametrize('size', ['tiny', '2b', '7b'])
def test_every_stage_of_every_size_loads_through_its_config_dict(stage, size):
  config = shrink.real(stage, size)
  assert config.stage == stage
  again = common.from_config_dict(common.to_config_dict(config, size='as it is'))
  assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize(
  'change, message',
  [
    (
      {'decoder': {**to_dict(TINY.decoder), 'mlp_dimm': 3}},
      r"decoder\.mlp_dimm: no such field.*nearest is 'mlp_dim'",
    ),
    ({'decoder': {}}, r'decoder\.num_layers: missing'),
    (
      {'decoder': {**to_dict(TINY.decoder), 'dim': 128.5}},
      r'decoder\.dim: expected int, found float 128.5',
    ),
    (
      {'decoder': {**to_dict(TINY.decoder), 'tied': 1}},
      r'decoder\.tied: expected bool, found int 1',
    ),
    ({'decoder': 7}, 'decoder: expected a mapping, found int 7'),
    ({'vae': {'latent_mean': [0.0, 'x']}}, r"vae\.latent_mean\[1\]: expected float, found str 'x'"),
    ({'remat': 'blocks'}, "remat='blocks': expected one of"),
  ],
)
def test_a_wrong_field_is_named_by_its_full_path(change, message):
  with pytest.raises((ValueError, TypeError), match=message):
    from_dict(TunaConfig, {**to_dict(TINY), **change})


def test_integers_serve_as_floats_and_lists_as_tuples():
  mapping = {**to_dict(TINY.vae), 'dim_mult': [1, 2, 4, 4]}
  assert from_dict(VaeConfig, mapping) == TINY.vae
  assert from_dict(DecoderConfig, {**to_dict(TINY.decoder), 'rope_theta': 10_000}).rope_theta == 1e4


def test_widths_that_must_agree_are_checked():
  with pytest.raises(ValueError, match="vae: the design 'pixel' has none; expected null"):
    dataclasses.replace(TINY, design='pixel')
  with pytest.raises(ValueError, match="vision: the design 'late_fusion' needs one"):
    dataclasses.replace(TINY, design='late_fusion', vision=None)
  with pytest.raises(ValueError, match='flow_head.head_dim=24: a multiple of 16'):
    dataclasses.replace(TINY.flow_head, head_dim=24)
  with pytest.raises(ValueError, match='latent_mean: 2 values for 48 latent channels'):
    VaeConfig(latent_mean=(0.0, 1.0))
  with pytest.raises(ValueError, match='rows=8 does not divide into optimizer.accumulate=3'):
    config = shrink.real('stage1')
    dataclasses.replace(
      config, rows=8, optimizer=dataclasses.replace(config.optimizer, accumulate=3)
    )


def test_stages_differ_in_what_they_say_they_differ_in():
  one, two, three = (shrink.real(s, '2b') for s in shrink.STAGES)
  assert (one.optimizer.lr, two.optimizer.lr, three.optimizer.lr) == (1e-4, 1e-4, 2e-5)
  assert [dict(c.optimizer.groups).get('decoder/.*') for c in (one, two, three)] == [
    0.0,
    None,
    None,
  ]
  assert [tuple(start for start, _ in c.data.phases) for c in (one, two, three)] == [
    (0.0,),
    (0.0, 0.05, 0.2),
    (0.0,),
  ]
  for c in (one, two, three):
    o = c.optimizer
    assert (o.b1, o.b2, o.weight_decay, o.clip, c.data.tasks.caption_dropout) == (
      0.9,
      0.95,
      0.01,
      1.0,
      0.1,
    )
    assert (c.ntp_coeff, c.flow_coeff) == (0.2, 1.0)


@pytest.mark.parametrize(
  'name, near',
  [
    ('trian', 'train'), ('gen', 'generate'), ('temp', 'temperature'), ('ckpt', 'checkpoint'),
    ('lr', 'optimizer.lr'), ('out', 'output'), ('chat', ''), ('draw', ''), ('x', ''),
  ],
)  # fmt: skip
def test_a_name_is_answered_with_the_nearest_if_one_is_near(name, near):
  names = 'train get generate data step temperature checkpoint optimizer.lr output rows'.split()
  assert nearest(name, names) == (f'; nearest is {near!r}' if near else '')
