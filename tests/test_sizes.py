"""The named sizes equal the published table."""

import math

import jax
import pytest

from tuna_jax import sizes, tree
from tuna_jax.config import TunaConfig, VaeConfig
from tuna_jax.mappings import from_dict, to_dict
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
  # docs/decoupled.md.
  'decoupled-2b': {
    'projector': 75_264,
    'vision': 397_463_200 - 56_448 + 885_888,
    '': 4_422_346_064 + 75_264 - 56_448 + 885_888,
  },
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
  config = sizes.size(size)
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
    size: [n for n in tree.names(tuna_shapes(sizes.size(size))) if 'lm_head' in n]
    for size in ('tiny', '2b', '7b')
  }
  assert heads == {'tiny': [], '2b': [], '7b': ['decoder/lm_head/kernel']}


def test_the_vocabulary_table_divides_over_a_pod():
  assert sizes.TUNA_7B.decoder.padded_vocab == 151_680 == 128 * 1185


def test_strides_of_the_vae():
  assert (VaeConfig().spatial_stride, VaeConfig().temporal_stride) == (16, 4)


@pytest.mark.parametrize('size', sizes.SIZES)
def test_sizes_are_hashable_and_survive_a_round_trip(size):
  config = sizes.size(size)
  again = from_dict(TunaConfig, to_dict(config))
  assert again == config and hash(again) == hash(config)


def test_an_unknown_size_is_named_with_the_nearest():
  with pytest.raises(ValueError, match="unknown size '2bb'.*nearest is '2b'"):
    sizes.size('2bb')
