"""Parity with the golden tensors: every case passes, every damage is named, and no size is built
in.
"""

import copy
import functools
import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.weights.small import random_leaves
from tuna_jax.config import DecoderConfig, FlowHeadConfig, VisionConfig
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.parity import cases, models, parts, sizes, towers
from tuna_jax.parity.case import Case, GoldenError, compare
from tuna_jax.weights import safetensors
from tuna_jax.weights.convert import convert, export
from tuna_jax.weights.tables import tuna_official, wan_vae
from tuna_jax.weights.tensors import lazy

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CASES = {case['name']: case for case in json.loads((GOLDEN / 'index.json').read_text())['cases']}
QUICK = ('f_masks', 'd_e_connector_time')  # what the tests of damage damage


def faults(rows):
  return [f'{row.case} {row.output}: {row.note}' for row in rows if not row.passed]


@pytest.mark.parametrize('name', CASES)
def test_the_golden_case_passes_and_its_weights_come_back(name, monkeypatch):
  back = {}

  def convert_and_back(table, weights, shapes):
    params = convert(table, weights, shapes)
    back.update(export(table, params))
    return params

  monkeypatch.setattr(sizes, 'convert', convert_and_back)
  rows = [row for row in cases.run(GOLDEN, name) if row.case == name]
  assert rows and not faults(rows)
  assert {row.output for row in rows} >= {
    tensor for tensor in CASES[name]['tensors'] if tensor.startswith('out.')
  }
  weights = {
    key[2:]: value
    for key, value in safetensors.read_file(GOLDEN / f'{name}.safetensors').items()
    if key.startswith('w.')
  }
  for key, value in weights.items():
    found = next(
      back[own]
      for own in (key, key.removeprefix('model.'), key.removeprefix('vae.model.'))
      if own in back
    )
    np.testing.assert_array_equal(np.asarray(found), np.asarray(value), err_msg=key)


# ---- damage


@pytest.fixture
def golden(tmp_path):
  """A small set to damage: (its folder, its index, a function that writes both back)."""
  index = {'cases': [copy.deepcopy(CASES[name]) for name in QUICK]}
  for case in index['cases']:
    shutil.copy(GOLDEN / case['file'], tmp_path)

  def save(changed=None):
    """changed: {file: function of {name: array}} applied to the tensors."""
    for file, change in (changed or {}).items():
      tensors = {
        name: np.asarray(value) for name, value in safetensors.read_file(tmp_path / file).items()
      }
      change(tensors)
      safetensors.write_file(
        tmp_path / file, {name: lazy(array) for name, array in tensors.items()}
      )
    (tmp_path / 'index.json').write_text(json.dumps(index))

  save()
  return tmp_path, {case['name']: case for case in index['cases']}, save


def test_an_undamaged_small_set_passes(golden):
  assert not faults(cases.run(golden[0]))


@pytest.mark.parametrize('name', ['in.one.mp', 'out.one.sdpa'])
def test_a_missing_tensor_is_named(golden, name):
  folder, _, save = golden
  save({'f_masks.safetensors': lambda tensors: tensors.pop(name)})
  assert any(f'f_masks {name}: missing' in fault for fault in faults(cases.run(folder, 'f_')))


def test_a_missing_weight_is_named(golden):
  folder, index, save = golden
  case = index['d_e_connector_time']
  del case['tensors']['w.siglip_proj.3.bias']
  case['state_dict_keys'].remove('siglip_proj.3.bias')
  save({case['file']: lambda tensors: tensors.pop('w.siglip_proj.3.bias')})
  assert any('siglip_proj.3.bias: missing' in fault for fault in faults(cases.run(folder, 'd_')))


def test_an_extra_tensor_is_named(golden):
  folder, _, save = golden
  save(
    {
      'f_masks.safetensors': lambda tensors: tensors.update(
        {'out.one.more': np.zeros(3, np.float32)}
      )
    }
  )
  assert faults(cases.run(folder, 'f_')) == [
    'f_masks out.one.more: extra: in the file, not in the index'
  ]


def test_an_extra_weight_is_named(golden):
  folder, index, save = golden
  case = index['d_e_connector_time']
  case['tensors']['w.siglip_proj.4.bias'] = {'shape': [3], 'dtype': 'float32'}
  case['state_dict_keys'].append('siglip_proj.4.bias')
  save(
    {
      case['file']: lambda tensors: tensors.update(
        {'w.siglip_proj.4.bias': np.zeros(3, np.float32)}
      )
    }
  )
  assert any('siglip_proj.4.bias: unused' in fault for fault in faults(cases.run(folder, 'd_')))


def test_a_renamed_weight_is_named_twice_as_missing_and_extra(golden):
  folder, index, save = golden
  case, old, new = index['d_e_connector_time'], 'w.siglip_proj.3.bias', 'w.siglip_proj.3.bais'
  save({case['file']: lambda tensors: tensors.update({new: tensors.pop(old)})})
  found = ' '.join(faults(cases.run(folder, 'd_')))
  assert f'{old}: missing' in found and f'{new}: extra' in found


def test_a_misshapen_tensor_is_named(golden):
  folder, _, save = golden
  save(
    {
      'f_masks.safetensors': lambda tensors: tensors.update(
        {'out.one.sdpa': tensors['out.one.sdpa'][:1]}
      )
    }
  )
  assert faults(cases.run(folder, 'f_')) == [
    'f_masks out.one.sdpa: misshapen: found float32[1, 1, 14, 14], '
    'the index says float32[2, 1, 14, 14]'
  ]


def test_a_misshapen_weight_is_named(golden):
  folder, index, save = golden
  case, name = index['d_e_connector_time'], 'w.siglip_proj.3.bias'
  case['tensors'][name]['shape'] = [7]
  save({case['file']: lambda tensors: tensors.update({name: np.zeros(7, np.float32)})})
  assert any('siglip_proj.3.bias: misshapen' in fault for fault in faults(cases.run(folder, 'd_')))


@pytest.mark.parametrize('name', ['in.t', 'out.emb', 'w.siglip_proj.3.bias'])
def test_a_tensor_with_a_nan_is_named(golden, name):
  folder, index, save = golden

  def damage(tensors):
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = np.nan

  save({index['d_e_connector_time']['file']: damage})
  assert any(
    f'{name}: 1 values are not finite' in fault for fault in faults(cases.run(folder, 'd_'))
  )


@pytest.mark.parametrize('name', ['w.siglip_proj.3.weight', 'out.proj'])
def test_a_value_that_is_off_by_a_ten_thousandth_fails_its_output(golden, name):
  folder, index, save = golden
  save(
    {
      index['d_e_connector_time']['file']: lambda tensors: tensors.update(
        {name: tensors[name] * 1.0001}
      )
    }
  )
  assert any(
    fault.startswith('d_e_connector_time out.proj:') for fault in faults(cases.run(folder, 'd_'))
  )


def test_an_unknown_kind_is_named(golden):
  folder, index, save = golden
  index['f_masks']['kind'] = 'maskes'
  save()
  found = faults(cases.run(folder, 'f_'))
  assert len(found) == 1 and "unknown kind 'maskes'; nearest is 'masks'" in found[0]


def test_an_option_that_we_do_not_have_is_named(golden):
  folder, index, save = golden
  siglip = copy.deepcopy(CASES['c_siglip'])
  siglip['config']['siglip']['hidden_act'] = 'relu'
  index['f_masks'].clear()
  index['f_masks'].update(siglip)
  shutil.copy(GOLDEN / siglip['file'], folder)
  (folder / 'f_masks.safetensors').unlink()
  save()
  assert any("hidden_act='relu'" in fault for fault in faults(cases.run(folder, 'c_')))


def test_a_missing_file_is_named(golden):
  folder, _, _ = golden
  (folder / 'f_masks.safetensors').unlink()
  assert any(
    'f_masks.safetensors: no such file' in fault for fault in faults(cases.run(folder, 'f_'))
  )


def test_a_file_that_no_case_names_is_named(golden):
  folder, _, _ = golden
  shutil.copy(folder / 'f_masks.safetensors', folder / 'z.safetensors')
  assert faults(cases.run(folder, 'f_')) == [' z.safetensors: extra: a file that no case names']


def test_a_truncated_file_is_named(golden):
  folder, _, _ = golden
  data = (folder / 'f_masks.safetensors').read_bytes()
  (folder / 'f_masks.safetensors').write_bytes(data[:-4])
  assert any('f_masks.safetensors: truncated' in fault for fault in faults(cases.run(folder, 'f_')))


@pytest.mark.parametrize('text', [None, '', '{"cases": []}', '{}', '[]', '{"cases": ["f_masks"]}'])
def test_a_directory_without_cases_is_refused_by_name(tmp_path, text):
  if text is not None:
    (tmp_path / 'index.json').write_text(text)
  with pytest.raises(GoldenError, match=str(tmp_path)):
    list(cases.run(tmp_path))


# ---- the bar


def verdict(ours, theirs, **entry):
  return compare('case', 'out.x', np.asarray(ours), np.asarray(theirs), entry).passed


def test_integers_must_be_equal():
  assert verdict([1, 2], [1, 2]) and not verdict([1, 3], [1, 2])


def test_floats_may_differ_by_thirty_sensitivities_or_two_millionths_in_all():
  one = np.ones(4, np.float32)
  assert verdict(one + 29e-7, one, sens_1ulp=1e-7) and not verdict(one + 31e-7, one, sens_1ulp=1e-7)
  assert verdict(one + 1.9e-6, one) and not verdict(one + 2.1e-6, one)


def test_a_nan_passes_only_where_the_reference_has_one():
  assert verdict([np.nan, 1.0], [np.nan, 1.0]) and not verdict([np.nan, 1.0], [1.0, 1.0])
  assert not verdict([1.0, 1.0], [np.nan, 1.0])


# ---- the command


def test_the_command_prints_a_row_an_output_and_exits_0(tuna_jax, golden, tmp_path):
  said = tuna_jax(
    'parity', f'--golden={golden[0]}', f'--json={tmp_path / "rows.json"}', '--only=f_'
  )
  written = json.loads((tmp_path / 'rows.json').read_text())
  outputs = [row['output'] for row in written['rows']]
  assert written['passed'] and len(outputs) == 21 and all(name in said for name in outputs)
  assert 'PASS: 21 of 21 rows in 1 cases' in said


def test_the_command_exits_1_where_an_output_fails(tuna_jax, golden, tmp_path):
  folder, _, save = golden
  save(
    {
      'f_masks.safetensors': lambda tensors: tensors.update(
        {'out.one.sdpa': 2 * tensors['out.one.sdpa']}
      )
    }
  )
  said = tuna_jax('parity', f'--golden={folder}', f'--json={tmp_path / "rows.json"}', code=1)
  assert 'FAIL: ' in said
  assert [
    row['output']
    for row in json.loads((tmp_path / 'rows.json').read_text())['rows']
    if not row['passed']
  ] == ['out.one.sdpa']


def test_the_command_exits_2_where_there_is_no_golden_set(tuna_jax, tmp_path):
  said = tuna_jax('parity', f'--golden={tmp_path}', code=2)
  assert str(tmp_path) in said and len(said.splitlines()) == 1


# ---- no size is built in: the same kinds at other sizes, checked for the shapes that the official
# code gives


def case_of(kind, config, weights, inputs):
  tensors = {f'in.{name}': np.asarray(value) for name, value in inputs.items()}
  return Case('other', kind, config, {}, tensors, weights, GOLDEN)


def shapes(outputs):
  return {name: tuple(np.shape(value)) for name, value in outputs.items()}


LLM = {
  'hidden_size': 48,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 3,
  'intermediate_size': 40,
  'tie_word_embeddings': False,
  'rope_theta': 5e4,
  'rms_norm_eps': 1e-5,
}
SIGLIP = {
  'hidden_size': 24,
  'num_hidden_layers': 5,
  'num_attention_heads': 3,
  'intermediate_size': 20,
  'layer_norm_eps': 1e-5,
  'hidden_act': 'gelu_pytorch_tanh',
  'attention_dropout': 0.0,
}
OPTIONS = {
  'siglip_image_size': 6,
  'siglip_feature_layer': -3,
  'hidden_size': 48,
  'num_attention_heads': 3,
  'num_key_value_heads': 1,
  'flow_head_num': 1,
  'image_latent_dim': 48,
  'flow_coeff': 0.7,
  'ntp_coeff': 0.3,
}
MODEL = {'llm': LLM, 'siglip': SIGLIP, 'vae': {'c_dim': 2, 'dec_dim': 4}, 'tuna_model': OPTIONS}
VOCAB = 131


@functools.cache
def other_weights():
  """Official tensors of MODEL with random values."""
  config = sizes.tuna(
    vision=VisionConfig(
      num_layers=3, dim=24, num_heads=3, num_kv_heads=3, head_dim=8, mlp_dim=20, grid=6
    ),
    decoder=DecoderConfig(
      num_layers=3,
      dim=48,
      num_heads=6,
      num_kv_heads=3,
      head_dim=8,
      mlp_dim=40,
      vocab_size=VOCAB,
      tied=False,
    ),
    flow_head=FlowHeadConfig(
      num_layers=1, dim=48, num_heads=3, num_kv_heads=1, head_dim=16, mlp_dim=40
    ),
    vae=sizes.vae_config(MODEL['vae']),
  )
  tensors = {
    f'vae.model.{name}': value
    for name, value in export(wan_vae(config.vae), random_leaves(vae_shapes(config.vae))).items()
  }
  return {**export(tuna_official(config), random_leaves(tuna_shapes(config))), **tensors}


def test_weights_of_other_sizes_go_through_and_back():
  rows = models.full_weights(case_of('full_weights', {'model': MODEL}, other_weights(), {}))
  assert [row.passed for row in rows.values()] == [True]


def test_the_decoder_takes_other_sizes():
  weights = {name: value for name, value in other_weights().items() if name.startswith('tuna.')}
  rng = np.random.default_rng(0)
  out = shapes(
    towers.qwen2(
      case_of(
        'qwen2',
        {'llm': LLM, 'vocab': VOCAB},
        weights,
        {
          'embeds': rng.standard_normal((2, 11, 48), np.float32),
          'mp': [[[2, 4]], [[-1, -1]]],
          'embeds_small': rng.standard_normal((1, 7, 48), np.float32),
        },
      )
    )
  )
  assert out['out.logits'] == (2, 11, VOCAB) and out['out.logits_small_causal'] == (1, 7, VOCAB)
  assert [name for name in out if name.startswith('out.hidden') and name[10:].isdigit()] == [
    f'out.hidden{i}' for i in range(4)
  ]


def test_the_connector_takes_widths_that_no_head_divides():
  rng = np.random.default_rng(0)
  shape = {
    'siglip_proj.0.weight': (36,),
    'siglip_proj.1.weight': (72, 36),
    'siglip_proj.1.bias': (72,),
    'siglip_proj.3.weight': (72, 72),
    'siglip_proj.3.bias': (72,),
    'time_embed.mlp.0.weight': (72, 96),
    'time_embed.mlp.0.bias': (72,),
    'time_embed.mlp.2.weight': (72, 72),
    'time_embed.mlp.2.bias': (72,),
  }
  weights = {name: lazy(rng.standard_normal(s, np.float32)) for name, s in shape.items()}
  out = shapes(
    parts.connector_time(
      case_of(
        'connector_time',
        {'clip_latent_dim': 36, 'hidden_size': 72},
        weights,
        {'t': np.float32([0, 0.5, 1]), 'feat': rng.standard_normal((2, 5, 36), np.float32)},
      )
    )
  )
  assert out == {'out.freq': (3, 96), 'out.emb': (3, 72), 'out.proj': (2, 5, 72)}


def test_the_whole_model_takes_other_sizes_and_frame_counts():
  rng = np.random.default_rng(0)
  grids = {'picture': (1, 2, 2), 'clip': (3, 1, 2), 'edit': (1, 1, 3), 'text': None}
  positions = {
    'picture': [[[2, 5]]] * 3,
    'clip': [[[4, 7]]],
    'edit': [[[2, 4], [8, 4]]],
    'text': [[[-1, -1]]],
  }
  inputs = {}
  for sub, grid in grids.items():
    rows, images = np.shape(positions[sub])[:2]
    labels = np.full((rows, 15), -100)
    if sub == 'text':
      labels[:, 3:9] = 7
    masks = np.zeros((rows, 15), int)
    for row, spans in enumerate(positions[sub]):
      masks[row, max(0, spans[-1][0]) : sum(spans[-1])] = grid is not None
    inputs |= {
      f'{sub}.mp': positions[sub],
      f'{sub}.text_tokens': rng.integers(0, VOCAB, (rows, 15)),
      f'{sub}.text_labels': labels,
      f'{sub}.image_masks': masks,
    }
    if grid:
      shape = (rows * images, 48, *grid)
      inputs |= {
        f'{sub}.t': rng.uniform(size=rows * images).astype(np.float32),
        f'{sub}.image_latents': rng.standard_normal(shape, np.float32),
        f'{sub}.image_labels': rng.standard_normal(shape, np.float32),
      }
  config = {'model': MODEL, 'subs': {sub: {'thw': grid, 'L': 15} for sub, grid in grids.items()}}
  out = models.full_forward(case_of('full_forward', config, other_weights(), inputs))
  for sub, grid in grids.items():
    rows, images = np.shape(positions[sub])[:2]
    assert np.shape(out[f'out.{sub}.logits']) == (rows, 15, VOCAB)
    assert np.shape(out[f'out.{sub}.grad.tuna.lm_head.weight']) == (VOCAB, 48)
    assert np.isfinite(out[f'out.{sub}.loss'])
    if grid:
      assert np.shape(out[f'out.{sub}.v_img']) == (rows * images, 48, *grid)
