"""Sizes equal the published table; the one way in from a mapping is strict."""

import dataclasses
import math

import jax
import pytest
from tuna_jax.configs import common

from tests import shrink
from tuna_jax import config as configs
from tuna_jax import tree
from tuna_jax.config import TINY, TUNA_2B, TUNA_7B, TunaConfig, VaeConfig, from_dict, to_dict
from tuna_jax.models.shapes import tuna_shapes, vae_shapes

# docs/architecture.md 0, in our names.
COUNTS = {
  '2b': {
    'decoder': 1_543_304_192,
    'vision': 397_463_200,
    'connector': 4_132_992,
    'time_embed': 2_755_584,
    'flow_head/layers': 2_469_893_120,
    'flow_head/final': 4_796_976,
    '': 4_422_346_064,
  },
  '7b': {
    'decoder': 7_612_785_152,
    'vision': 397_463_200,
    'connector': 16_982_144,
    'time_embed': 13_769_728,
    'flow_head/layers': 5_006_362_624,
    'flow_head/final': 25_872_944,
    '': 13_073_235_792,
  },
  # docs/showo2.md 0; the position table and the patch embedding count with the tower.
  'showo2-1.5b': {
    'decoder': 1_543_304_192,
    'vision': 396_227_104 + 839_808 + 74_880,
    'projector': 99_840,
    'connector': 6_493_824,
    'time_embed': 4_722_688,
    'time_token': 3_147_264,
    'flow_head/bridge': 7_344_128,
    'flow_head/layers': 859_997_440,
    'flow_head/final': 8_525_888,
    '': 2_830_777_056,
  },
  'showo2-7b': {
    'connector': 29_830_784,
    'projector': 232_960,
    'time_token': 7_343_616,
    'flow_head/bridge': 11_538_432,
    '': 8_932_118_752,
  },
  # docs/pixel.md 1.
  'tuna-r-7b': {'vision': 398_292_640, 'flow_head/final': 28_454_144, '': 13_076_646_432},
  'tuna-2-7b': {'patches': 2_759_680 + 3_584, '': 12_664_134_912},
}
VAE_COUNTS = {
  'encoder': 149_627_776,
  'decoder': 555_049_228,
  'quant': 9_312,
  'post_quant': 2_352,
  '': 704_688_668,
}
VAE_TENSORS = 196


def count(params, part):
  return sum(
    math.prod(a.shape) for name, a in tree.flatten(params).items() if name.startswith(part)
  )


@pytest.mark.parametrize('size', COUNTS)
def test_parameter_counts_equal_the_published_table(size):
  config = configs.size(size)
  params = tuna_shapes(config)
  d = config.decoder
  padding = (d.padded_vocab - d.vocab_size) * d.dim * (1 if d.tied else 2)
  for part, published in COUNTS[size].items():
    extra = padding if part in ('', 'decoder') else 0
    assert count(params, part) - extra == published, part


def test_the_vae_has_the_published_tensors():
  params = vae_shapes(VaeConfig())
  assert {part: count(params, part) for part in VAE_COUNTS} == VAE_COUNTS
  assert len(jax.tree.leaves(params)) == VAE_TENSORS


def test_only_7b_has_its_own_language_head():
  heads = {
    size: [n for n in tree.names(tuna_shapes(c)) if 'lm_head' in n]
    for size, c in {'tiny': TINY, '2b': TUNA_2B, '7b': TUNA_7B}.items()
  }
  assert heads == {'tiny': [], '2b': [], '7b': ['decoder/lm_head/kernel']}


def test_the_vocabulary_table_divides_over_a_pod():
  assert TUNA_7B.decoder.padded_vocab == 151_680 and TUNA_7B.decoder.padded_vocab % 128 == 0


def test_strides_of_the_vae():
  assert (VaeConfig().spatial_stride, VaeConfig().temporal_stride) == (16, 4)


def test_configs_are_hashable_and_survive_a_round_trip():
  for config in (TINY, TUNA_2B, TUNA_7B):
    again = from_dict(TunaConfig, to_dict(config))
    assert again == config and hash(again) == hash(config)


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
  assert (
    from_dict(configs.DecoderConfig, {**to_dict(TINY.decoder), 'rope_theta': 10_000}).rope_theta
    == 1e4
  )


def test_an_unknown_size_is_named_with_the_nearest():
  with pytest.raises(ValueError, match="unknown size '2bb'.*nearest is '2b'"):
    configs.size('2bb')


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
