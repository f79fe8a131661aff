"""Real files, written by transformers and diffusers, through the command line and back."""

import dataclasses
import json

import numpy as np
import pytest

from tests.weights import public
from tests.weights.small import small_config
from tuna_jax import files, tree
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.weights import parts, safetensors, store
from tuna_jax.weights.open import ignored, open_checkpoint

pytestmark = pytest.mark.parity
CONFIG = small_config()
TOLERANCE = 2e-6  # relative L2 in float32, as in issue 3 of the golden set


def whole(params=None, vae=None):
  return store.Stored(CONFIG, params, CONFIG.vae, vae, {})


def saved(model, folder, **options):
  """The model, written by its own library."""
  model.save_pretrained(folder, **options)
  return model


def assert_same_files(a, b):
  """Weights equal byte for byte: whole files where they have one shard, tensors otherwise."""
  first, second = open_checkpoint(a), open_checkpoint(b)
  assert sorted(first) == sorted(second)
  for name, value in first.items():
    assert (
      value.dtype == second[name].dtype and value[()].tobytes() == second[name][()].tobytes()
    ), name


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('shard', ['5GB', '40KB'])
def test_qwen_files_go_in_and_come_out_byte_equal(tmp_path, tied, shard):
  config = small_config(tied=tied, vocab_multiple=1)
  saved(public.qwen2(config), tmp_path / 'qwen', max_shard_size=shard)
  planned = parts.assemble(config, decoder=tmp_path / 'qwen', seed=0)
  store.write(tmp_path / 'ours', config, planned.leaves, None, planned.notes())
  stored = store.open_stored(tmp_path / 'ours')
  tensors, _, stem = parts.export_part('decoder', stored)
  (tmp_path / 'back').mkdir()
  safetensors.write_folder(tmp_path / 'back', tensors, stem=stem)
  assert_same_files(tmp_path / 'qwen', tmp_path / 'back')
  if shard == '5GB':
    file = 'model.safetensors'
    assert (tmp_path / 'qwen' / file).read_bytes() == (tmp_path / 'back' / file).read_bytes()


def test_an_exported_decoder_is_a_model_that_transformers_loads_with_equal_outputs(tmp_path):
  import torch
  import transformers

  model = saved(public.qwen2(CONFIG), tmp_path / 'qwen')
  planned = parts.assemble(CONFIG, decoder=tmp_path / 'qwen', seed=0)
  tensors, config_json, stem = parts.export_part('decoder', whole(planned.leaves))
  (tmp_path / 'back').mkdir()
  safetensors.write_folder(tmp_path / 'back', tensors, stem=stem)
  files.write_json(tmp_path / 'back' / 'config.json', config_json)
  loaded = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / 'back')
  ids = torch.arange(12)[None] % 50
  with torch.no_grad():
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_an_exported_vision_tower_is_a_model_that_transformers_loads(tmp_path):
  import torch
  import transformers

  model = saved(public.siglip(CONFIG), tmp_path / 'siglip')
  planned = parts.assemble(CONFIG, vision=tmp_path / 'siglip', seed=0)
  assert not [leaf for leaf in planned.fresh if leaf.startswith('vision/')]
  tensors, config_json, stem = parts.export_part('vision', whole(planned.leaves))
  (tmp_path / 'back').mkdir()
  safetensors.write_folder(tmp_path / 'back', tensors, stem=stem)
  source = open_checkpoint(tmp_path / 'siglip')
  for name, value in tensors.items():
    assert value[()].tobytes() == source[name][()].tobytes(), name
  files.write_json(tmp_path / 'back' / 'config.json', config_json)
  loaded = transformers.SiglipVisionModel.from_pretrained(tmp_path / 'back')
  pixels = torch.randn(1, 48, 4, 4)
  with torch.no_grad():
    want = model(pixels, output_hidden_states=True).hidden_states[-2]
    found = loaded(pixels, output_hidden_states=True).hidden_states[-1]
  assert torch.equal(found, want)


def test_an_rgb_siglip_gives_everything_but_its_patch_embedding(tmp_path):
  saved(public.siglip(CONFIG, image_size=48, patch_size=16, num_channels=3), tmp_path / 'siglip')
  planned = parts.assemble(CONFIG, vision=tmp_path / 'siglip', seed=0)
  fresh = sorted(leaf for leaf in planned.fresh if leaf.startswith('vision/'))
  assert fresh == ['vision/patch_embed/bias', 'vision/patch_embed/kernel']
  assert planned.adapted == {'vision/position_embed/embedding': 'resampled from 3x3 to 4x4'}


def test_resampled_positions_are_those_of_torch(tmp_path):
  import torch

  model = saved(
    public.siglip(CONFIG, image_size=48, patch_size=16, num_channels=3), tmp_path / 'siglip'
  )
  planned = parts.assemble(CONFIG, vision=tmp_path / 'siglip', seed=0)
  table = dict(model.named_parameters())
  table = next(v for n, v in table.items() if 'position_embedding' in n).detach()
  want = torch.nn.functional.interpolate(
    table.reshape(1, 3, 3, -1).permute(0, 3, 1, 2), (4, 4), mode='bicubic', align_corners=False
  )
  want = want.permute(0, 2, 3, 1).reshape(16, -1).numpy()
  found = planned.leaves['vision/position_embed/embedding'][()]
  assert np.linalg.norm(found - want) <= TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize('residual', [True, False], ids=['wan22', 'wan21'])
def test_a_diffusers_vae_goes_in_and_comes_out_byte_equal(tmp_path, residual):
  vae = dataclasses.replace(CONFIG.vae, residual=residual)
  saved(public.wan(vae), tmp_path / 'vae')
  planned = parts.read_vae(dataclasses.replace(CONFIG, vae=vae), tmp_path / 'vae')
  stored = dataclasses.replace(whole(vae=planned.leaves), vae_config=vae)
  tensors, config_json, stem = parts.export_part('vae-diffusers', stored)
  (tmp_path / 'back').mkdir()
  safetensors.write_folder(tmp_path / 'back', tensors, stem=stem)
  file = 'diffusion_pytorch_model.safetensors'
  assert (tmp_path / 'vae' / file).read_bytes() == (tmp_path / 'back' / file).read_bytes()
  theirs = json.loads((tmp_path / 'vae' / 'config.json').read_text())
  same = set(config_json) - {'latents_mean', 'latents_std'}
  assert {k: config_json[k] for k in same} == {k: theirs[k] for k in same}


def test_a_wan_pth_goes_in_and_comes_out_equal(tmp_path):
  import torch

  rng = np.random.default_rng(0)
  leaves = {
    n: rng.standard_normal(a.shape).astype(np.float32)
    for n, a in tree.flatten(vae_shapes(CONFIG.vae)).items()
  }
  tensors, _, _ = parts.export_part('vae', whole(vae=leaves))
  torch.save(
    {name: torch.from_numpy(value[()].copy()) for name, value in tensors.items()},
    tmp_path / 'Wan2.2_VAE.pth',
  )
  planned = parts.read_vae(CONFIG, tmp_path / 'Wan2.2_VAE.pth')
  for name, value in leaves.items():
    np.testing.assert_array_equal(planned.leaves[name][()], value, err_msg=name)


def test_a_torch_file_with_averages_gives_either_and_says_what_it_leaves(tmp_path):
  import torch

  model, ema = ({'w': torch.full((2, 3), x)} for x in (1.0, 2.0))
  torch.save({'model': model, 'ema': ema, 'step': 5}, tmp_path / 'x.pt')
  for weights, value, other in (('model', 1, 'ema'), ('ema', 2, 'model')):
    assert (open_checkpoint(tmp_path / 'x.pt', weights)['w'][()] == value).all()
    assert ignored(tmp_path / 'x.pt', weights) == {
      other: f'1 tensors, which --weights={other} takes', 'step': 'a int'
    }  # fmt: skip
  torch.save({'weights': model}, tmp_path / 'x.pt')
  with pytest.raises(ValueError, match='at ema, model_ema.*; the file holds weights'):
    open_checkpoint(tmp_path / 'x.pt', 'ema')
