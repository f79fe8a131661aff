"""Adapters in PEFT's layout: its names, there and back, and what is refused."""

import json

import numpy as np
import pytest

from tests.weights.small import random_leaves, small_config
from tuna_jax import files, tree
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.weights import lora, peft, safetensors
from tuna_jax.weights.tensors import lazies

CONFIG = small_config()
SHAPES = tuna_shapes(CONFIG)
DECODER = (('decoder/layers/attn/[qv]_proj/kernel', 4, 8.0),)
SEVERAL = (*DECODER, ('flow_head/layers/mlp/.*/kernel', 2, 6.0), ('vision/.*/fc1/kernel', 4, 8.0))


def adapters(rows):
  """Random adapters of the small model."""
  shapes = tree.flatten(lora.extend(SHAPES, rows))
  wanted = {leaf: aval for leaf, aval in shapes.items() if lora.is_adapter(leaf)}
  scales = lora.added({}, wanted, rows, 0)
  return {
    leaf: value if leaf.endswith('lora_scale') else lazies(random_leaves({'x': wanted[leaf]}))['x']
    for leaf, value in scales.items()
  }


def written(folder, rows):
  found = adapters(rows)
  tensors, about = peft.write(found, CONFIG, 'base')
  safetensors.write_file(files.path(folder) / 'adapter_model.safetensors', tensors)
  (folder / 'adapter_config.json').write_text(json.dumps(about))
  return found, tensors, about


@pytest.mark.parametrize('rows', [DECODER, SEVERAL])
def test_what_is_written_is_read_back_equal(rows, tmp_path):
  found, _, _ = written(tmp_path, rows)
  again = peft.read(tmp_path, CONFIG)
  assert again.keys() == found.keys()
  for leaf, value in found.items():
    np.testing.assert_array_equal(again[leaf][()], value[()], err_msg=leaf)


def test_the_names_and_fields_are_those_of_peft_for_qwen2(tmp_path):
  found, tensors, about = written(tmp_path, DECODER)
  a = tensors['base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight']
  np.testing.assert_array_equal(a[()], found['decoder/layers/attn/q_proj/lora_a'][()][1].T)
  assert tensors['base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight'].shape == (32, 4)
  assert len(tensors) == 2 * 2 * CONFIG.decoder.num_layers
  assert about['target_modules'] == ['q_proj', 'v_proj'] and about['task_type'] == 'CAUSAL_LM'
  assert (about['r'], about['lora_alpha'], about['rank_pattern']) == (4, 8.0, {})


def test_ranks_that_differ_are_patterns(tmp_path):
  _, _, about = written(tmp_path, SEVERAL)
  assert set(about['rank_pattern'].values()) == {2} and set(about['alpha_pattern'].values()) == {
    6.0
  }


def test_the_scale_follows_the_configuration(tmp_path):
  written(tmp_path, DECODER)
  file = tmp_path / 'adapter_config.json'
  about = json.loads(file.read_text())
  file.write_text(json.dumps({**about, 'use_rslora': True, 'alpha_pattern': {'v_proj': 6}}))
  again = peft.read(tmp_path, CONFIG)
  np.testing.assert_array_equal(again['decoder/layers/attn/q_proj/lora_scale'][()], 4)
  np.testing.assert_array_equal(again['decoder/layers/attn/v_proj/lora_scale'][()], 3)


@pytest.mark.parametrize('field,value', [('use_dora', True), ('bias', 'all'), ('peft_type', 'IA3')])
def test_other_kinds_of_adapters_are_refused(field, value, tmp_path):
  written(tmp_path, DECODER)
  file = tmp_path / 'adapter_config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
  with pytest.raises(ValueError, match=f'{field}={value!r}; only plain LoRA'):
    peft.read(tmp_path, CONFIG)


def test_an_adapter_of_another_model_is_refused_by_name(tmp_path):
  written(tmp_path, DECODER)
  other = small_config(num_heads=2)
  with pytest.raises(ValueError, match='misshapen for decoder/layers/attn/q_proj/lora_b'):
    peft.read(tmp_path, other)
