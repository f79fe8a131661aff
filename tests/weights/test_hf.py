"""config.json of Hugging Face libraries: read, compared and written by one table."""

import pytest

from tests.weights.small import small_config
from tuna_jax import files
from tuna_jax.weights import hf
from tuna_jax.weights.tensors import CheckpointError

CONFIG = small_config()


def test_a_decoder_comes_back_from_its_own_config():
  written = hf.qwen2_json(CONFIG.decoder)
  found = hf.decoder_config(written, written['vocab_size'])
  for field in ('num_layers', 'dim', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim', 'tied'):
    assert getattr(found, field) == getattr(CONFIG.decoder, field)


def test_a_vision_tower_ends_at_the_feature_layer():
  written = hf.vision_json(CONFIG)
  found = hf.vision_config(written, grid=CONFIG.vision.grid)
  assert found == CONFIG.vision
  assert hf.vision_config(written, grid=4, feature_layer=-2).num_layers == found.num_layers - 1


def test_a_missing_field_is_named():
  written = hf.qwen2_json(CONFIG.decoder)
  del written['num_key_value_heads']
  with pytest.raises(CheckpointError, match='no num_key_value_heads'):
    hf.decoder_config(written, 8)


def test_a_part_of_another_size_is_told_its_sizes(tmp_path):
  written = hf.qwen2_json(CONFIG.decoder)
  files.write_json(tmp_path / 'config.json', {**written, 'vocab_size': 999})
  hf.check_sizes(tmp_path, CONFIG.decoder, {})
  files.write_json(tmp_path / 'config.json', {**written, 'hidden_size': 96})
  wanted = f'hidden_size is 96; the model .* has {CONFIG.decoder.dim}'
  with pytest.raises(CheckpointError, match=wanted):
    hf.check_sizes(tmp_path, CONFIG.decoder, {})


def test_a_vision_tower_may_have_layers_that_are_not_read(tmp_path):
  written = hf.vision_json(CONFIG)
  longer = {**written, 'num_hidden_layers': written['num_hidden_layers'] + 1}
  files.write_json(tmp_path / 'config.json', {'vision_config': longer})
  hf.check_sizes(tmp_path, CONFIG.vision, {})
