"""What does not fit is collected and raised together; what fits lands on its device, slice by
slice.
"""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.weights.small import random_leaves, small_config
from tuna_jax import tree
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.weights import tables
from tuna_jax.weights.convert import convert, export, plan
from tuna_jax.weights.tensors import CheckpointError, Lazy, cast, lazies, lazy, row_blocks

CONFIG = small_config()
SHAPES = tuna_shapes(CONFIG)
TABLE = tables.tuna_official(CONFIG)
LEAVES = random_leaves(SHAPES)


@pytest.fixture
def official():
  return export(TABLE, LEAVES)


def faults(source, table=TABLE, shapes=SHAPES):
  with pytest.raises(CheckpointError) as caught:
    plan(table, source, shapes)
  return str(caught.value)


def test_missing_unused_and_misshapen_tensors_are_raised_together_with_the_nearest_name(official):
  name = 'tuna.model.layers.1.self_attn.q_proj.weight'
  official['tuna.model.layers.1.self_attn.qproj.weight'] = official.pop(name)
  official['siglip_proj.1.bias'] = lazy(np.zeros(63, np.float32))
  text = faults(official)
  wanted = f'{name}: missing, wanted for decoder/layers/attn/q_proj/kernel'
  assert f"{wanted}; nearest is 'tuna.model.layers.1.self_attn.qproj" in text
  assert f"qproj.weight: unused: no leaf of the model takes it; nearest is '{name}'" in text
  assert 'siglip_proj.1.bias: misshapen for connector/fc1/bias[64]: found [63], wanted [64]' in text


def test_one_layer_too_many_is_unused_and_one_too_few_is_missing(official):
  last = {n: v for n, v in official.items() if n.startswith('diffusion_head_a.1.')}
  more = official | {n.replace('_a.1.', '_a.2.'): v for n, v in last.items()}
  assert faults(more).count('unused') == len(last)
  less = {n: v for n, v in official.items() if n not in last}
  assert faults(less).count('missing') == len(last)


def test_two_names_for_one_tensor_are_doubly_matched(official):
  official['module.siglip_proj.0.weight'] = official['siglip_proj.0.weight']
  assert 'doubly matched: it and siglip_proj.0.weight are both siglip_proj.0.weight' in faults(
    official
  )


def test_a_leaf_that_two_rows_claim_is_doubly_matched(official):
  table = tables.Table('x', (*TABLE.rows, tables.Row('decoder/norm/scale', 'other.weight')))
  assert "decoder/norm/scale: doubly matched by 'decoder/norm/scale' and" in faults(official, table)


def test_a_leaf_without_a_row_names_the_nearest(official):
  shapes = {
    **SHAPES,
    'connector': {**SHAPES['connector'], 'fc9': {'kernel': SHAPES['connector']['fc1']['kernel']}},
  }
  assert "connector/fc9/kernel: no row covers it; nearest is 'connector/fc" in faults(
    official, shapes=shapes
  )


def test_whole_numbers_are_no_weights(official):
  official['siglip_proj.0.weight'] = lazy(np.zeros(32, np.int8))
  assert 'siglip_proj.0.weight: int8; connector/norm/scale needs floating-point values' in faults(
    official
  )


def test_undefined_values_are_found_when_they_are_read(official):
  official['siglip_proj.0.weight'] = lazy(np.full(32, np.nan, np.float32))
  with pytest.raises(CheckpointError, match=r'siglip_proj\.0\.weight: holds infinite or undefined'):
    convert(TABLE, official, SHAPES)


@pytest.mark.parametrize('prefix', ['', 'module.', 'tuna_model.', 'module.tuna_model.'])
def test_prefixes_of_training_files_are_stripped(official, prefix):
  planned = plan(TABLE, {prefix + n: v for n, v in official.items()}, SHAPES)
  assert len(planned.leaves) == len(LEAVES)


@pytest.mark.parametrize(
  'name',
  [
    'vae.model.conv1.weight',
    'vision_model.vae.model.encoder.conv1.bias',
    'tuna_model.vae.model.conv2.bias',
    'tuna.model.layers.0.self_attn.rotary_emb.inv_freq',
    'vision_model.embeddings.position_ids',
  ],
)
def test_what_is_dropped_on_purpose_is_listed_with_its_reason(official, name):
  planned = plan(TABLE, official | {name: lazy(np.zeros(3))}, SHAPES)
  assert list(planned.dropped) == [name] and planned.dropped[name]


def test_a_tied_head_is_the_embedding_or_an_error(official):
  head = 'tuna.lm_head.weight'
  same = official | {head: official['tuna.model.embed_tokens.weight']}
  assert plan(TABLE, same, SHAPES).dropped == {
    head: 'the same tensor as tuna.model.embed_tokens.weight'
  }
  other = official | {head: lazy(np.zeros((50, 64), np.float32))}
  assert f'{head}: differs from tuna.model.embed_tokens.weight' in faults(other)


def test_an_untied_head_must_be_there():
  config = small_config(tied=False)
  shapes, table = tuna_shapes(config), tables.tuna_official(config)
  official = export(table, random_leaves(shapes))
  del official['tuna.lm_head.weight']
  assert 'tuna.lm_head.weight: missing, wanted for decoder/lm_head/kernel' in faults(
    official, table, shapes
  )


def test_vocabulary_rows_past_the_real_ones_are_dropped_and_ours_are_zero(official):
  name, leaf = 'tuna.model.embed_tokens.weight', 'decoder/embed/embedding'
  longer = np.concatenate([official[name][()], np.ones((7, 64), np.float32)])
  planned = plan(TABLE, official | {name: lazy(longer)}, SHAPES)
  assert planned.adapted[leaf] == 'dropped 7 rows from 50 on'
  found = planned.leaves[leaf][()]
  np.testing.assert_array_equal(found[:50], longer[:50])
  assert found.shape == (64, 64) and not found[50:].any()


def test_too_small_a_vocabulary_is_misshapen(official):
  name = 'tuna.model.embed_tokens.weight'
  assert f'{name}: misshapen' in faults(official | {name: lazy(np.zeros((49, 64), np.float32))})


def test_half_precision_reads_as_float32_and_writes_back_byte_equal(official):
  half = {n: lazy(v[()]) for n, v in cast(official, 'bfloat16').items()}
  back = cast(export(TABLE, convert(TABLE, half, SHAPES)), 'bfloat16')
  for name, value in half.items():
    assert back[name][()].tobytes() == value[()].tobytes(), name


def test_every_device_reads_and_holds_only_its_share(official):
  devices = jax.devices()
  assert len(devices) == 8
  mesh = Mesh(np.array(devices).reshape(2, 4), ('fsdp', 'tensor'))
  largest = {}

  def watched(name, value):
    def read(index):
      out = value.read(index)
      largest[name] = max(largest.get(name, 0), out.size)
      return out

    return Lazy(value.shape, value.dtype, read)

  spec = lambda path, leaf: NamedSharding(
    mesh,
    PartitionSpec(*[None] * (len(leaf.shape) - 2), 'fsdp', 'tensor')
    if leaf.shape[-1] % 4 == 0 and len(leaf.shape) > 1 and leaf.shape[-2] % 2 == 0
    else PartitionSpec(),
  )
  shardings = jax.tree_util.tree_map_with_path(spec, SHAPES)
  params = convert(TABLE, {n: watched(n, v) for n, v in official.items()}, SHAPES, shardings)
  kernel = params['decoder']['layers']['mlp']['up_proj']['kernel']
  assert {s.data.shape for s in kernel.addressable_shards} == {(3, 32, 24)}
  assert largest['tuna.model.layers.0.mlp.up_proj.weight'] == 32 * 24
  for name, value in tree.flatten(params).items():
    want = LEAVES[name].copy()
    if name == 'decoder/embed/embedding':
      want[50:] = 0
    np.testing.assert_array_equal(np.asarray(value), want, err_msg=name)


@pytest.mark.parametrize('shape', [(), (0, 3), (5,), (1, 1000), (300, 7), (3, 50, 9)])
def test_blocks_cover_a_tensor_once_in_storage_order_and_stay_small(shape):
  array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  blocks = [lazy(array).read(index) for index in row_blocks(lazy(array), 256)]
  np.testing.assert_array_equal(
    np.concatenate([b.reshape(-1) for b in blocks] or [array.reshape(-1)]), array.reshape(-1)
  )
  if len(shape) != 2 or shape[1] < 64:
    assert all(b.nbytes <= 256 for b in blocks)


def test_the_wan_table_finds_the_vae_inside_an_official_training_file():
  from tuna_jax.models.shapes import vae_shapes

  shapes, table = vae_shapes(CONFIG.vae), tables.wan_vae(CONFIG.vae)
  leaves = random_leaves(shapes)
  source = {f'tuna_model.vae.model.{n}': v for n, v in export(table, leaves).items()}
  source |= {f'tuna_model.{n}': v for n, v in export(TABLE, LEAVES).items()}
  planned = plan(table, source, shapes)
  assert set(planned.leaves) == set(leaves) and set(planned.dropped.values()) == {'not the VAE'}


def test_siglip_layers_past_the_feature_layer_and_the_text_tower_are_dropped():
  table = tables.siglip2(CONFIG.vision)
  source = {
    f'vision_model.{n}': v
    for n, v in export(table, {n: v for n, v in LEAVES.items() if n.startswith('vision')}).items()
  }
  extra = [
    'vision_model.encoder.layers.2.mlp.fc1.bias',
    'vision_model.post_layernorm.weight',
    'vision_model.head.probe',
    'text_model.final_layer_norm.bias',
    'logit_scale',
    'logit_bias',
  ]
  planned = plan(
    table,
    source | lazies(dict.fromkeys(extra, np.zeros(3, np.float32))),
    {'vision': SHAPES['vision']},
  )
  assert sorted(planned.dropped) == sorted(extra) and not planned.fresh


def test_an_rgb_patch_embedding_is_left_fresh_and_convert_refuses_to_invent_it():
  table, shapes = tables.siglip2(CONFIG.vision), {'vision': SHAPES['vision']}
  source = export(table, {n: v for n, v in LEAVES.items() if n.startswith('vision')})
  source['embeddings.patch_embedding.weight'] = lazy(np.zeros((32, 3, 16, 16), np.float32))
  assert sorted(plan(table, source, shapes).fresh) == [
    'vision/patch_embed/bias',
    'vision/patch_embed/kernel',
  ]
  with pytest.raises(CheckpointError, match='vision/patch_embed/kernel: not in the source'):
    convert(table, source, shapes)


@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
@pytest.mark.parametrize(
  ('table', 'part'),
  [
    (TABLE, None),
    (tables.qwen2(CONFIG.decoder), 'decoder'),
    (tables.siglip2(CONFIG.vision), 'vision'),
    (tables.wan_vae(CONFIG.vae), 'vae'),
  ],
  ids=['tuna', 'qwen2', 'siglip2', 'vae'],
)
def test_what_torch_compile_and_ddp_put_before_names_is_ignored(prefix, table, part):
  shapes = SHAPES if part is None else {part: SHAPES.get(part)}
  if part == 'vae':
    from tuna_jax.models.shapes import vae_shapes

    shapes = vae_shapes(CONFIG.vae)
  leaves = random_leaves(shapes)
  theirs = {prefix + name: value for name, value in export(table, leaves).items()}
  assert set(plan(table, theirs, shapes).leaves) == set(leaves)


def test_quantized_tensors_are_named_with_what_to_do(official):
  name = 'tuna.model.layers.0.mlp.up_proj.weight'
  small = official[name][()].astype(ml_dtypes.float8_e4m3fn)
  assert f'{name}: float8_e4m3fn' in faults(official | {name: lazy(small)})


def test_a_value_that_the_type_cannot_hold_is_refused():
  values = cast({'w': lazy(np.float32([1, 7e4]))}, np.float16)
  with pytest.raises(CheckpointError, match='w: holds 7e.*infinite as float16'):
    np.asarray(values['w'])
