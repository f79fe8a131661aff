"""Our towers against the public PyTorch ones, at tiny random sizes: outputs, one gradient each, and
bfloat16.

`launch/test.sh --live` installs what these need.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import public
from tests.weights.small import small_config
from tuna_jax import tree
from tuna_jax.models import rope
from tuna_jax.models.decoder import Decoder
from tuna_jax.models.layers import Span
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.models.vae import WanVae
from tuna_jax.models.vision import Vision
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.weights import hf, lora, parts, peft, safetensors, store, tables
from tuna_jax.weights.convert import convert, export
from tuna_jax.weights.tensors import lazies

pytestmark = pytest.mark.parity

OUTPUT = 2e-6  # relative L2 in float32, the bar of the golden set
GRADIENT = 1e-5  # a gradient passes every layer twice
BFLOAT16 = 2.0  # times the error of the reference's own bfloat16


@pytest.fixture(autouse=True)
def exact_products():
  with jax.default_matmul_precision('highest'):
    yield


def arrays(model):
  return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def difference(found, want):
  found, want = np.asarray(found), np.asarray(want)
  assert found.shape == want.shape
  return np.linalg.norm(found - want) / np.linalg.norm(want)


def half(config):
  return dataclasses.replace(config, dtype='bfloat16')


def assert_same(table, run, params, model, name, want):
  """Outputs agree, and so do the gradients of a random projection with respect to the torch tensor
  `name`.
  """
  import torch

  assert difference(quick_jit(run)(params), want.detach()) <= OUTPUT
  projection = np.random.default_rng(1).standard_normal(want.shape, np.float32)
  (want * torch.from_numpy(projection)).sum().backward()
  theirs = next(value for key, value in model.named_parameters() if key.endswith(name))
  gradients = export(table, quick_jit(jax.grad(lambda p: jnp.vdot(run(p), projection)))(params))
  assert difference(gradients[name], theirs.grad) <= GRADIENT


# ---- the decoder


def qwen2(tied):
  """(config, transformers' model, our parameters, ids)."""
  config = small_config(tied=tied)
  d, model = config.decoder, public.qwen2(config)
  params = convert(tables.qwen2(d), arrays(model), {'decoder': tuna_shapes(config)['decoder']})
  return config, model, params, np.random.default_rng(0).integers(0, d.vocab_size, (2, 12))


def decode(config, params, ids):
  d, variables, one = config.decoder, {'params': params['decoder']}, jnp.ones(ids.shape, jnp.int32)
  position = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  span = Span(rope.decoder_rotary(position, d.head_dim, d.rope_theta), position, one, one)
  hidden, _ = Decoder(config).apply(
    variables, Decoder(config).apply(variables, ids, method='embed'), span
  )
  return Decoder(config).apply(variables, hidden, method='logits')[..., : d.vocab_size]


@pytest.mark.parametrize('tied', [True, False])
def test_the_decoder_is_qwen2(tied):
  import torch

  config, model, params, ids = qwen2(tied)
  want = model(torch.from_numpy(ids)).logits
  assert_same(
    tables.qwen2(config.decoder),
    lambda params: decode(config, params, ids),
    params,
    model,
    'model.layers.0.self_attn.k_proj.weight',
    want,
  )


def test_bfloat16_costs_the_decoder_at_most_twice_what_it_costs_qwen2():
  import torch

  config, model, params, ids = qwen2(tied=True)
  with torch.no_grad():
    exact = model(torch.from_numpy(ids)).logits
    theirs = model.to(torch.bfloat16)(torch.from_numpy(ids)).logits.float()
  ours = quick_jit(lambda params: decode(half(config), params, ids))(params)
  assert 0 < difference(ours, exact) <= BFLOAT16 * difference(theirs, exact)


def test_an_adapter_of_peft_means_the_same_here_and_comes_back(tmp_path):
  import torch

  library = pytest.importorskip('peft')
  config, model, params, ids = qwen2(tied=True)
  names = ['q_proj', 'v_proj', 'down_proj']
  about = library.LoraConfig(r=4, lora_alpha=6, target_modules=names, rank_pattern={'v_proj': 2})
  base = lazies(tree.flatten(params))
  adapted = library.get_peft_model(model, about)
  with torch.no_grad():
    for name, value in adapted.named_parameters():
      if 'lora_' in name:
        value.copy_(torch.randn(value.shape) * 0.3)
    want = adapted(torch.from_numpy(ids)).logits
  adapted.save_pretrained(tmp_path / 'theirs')
  read = peft.read(tmp_path / 'theirs', config)
  merged = {leaf: jnp.asarray(a[()]) for leaf, a in lora.merged({**base, **read}).items()}
  ours = quick_jit(lambda params: decode(config, params, ids))(tree.unflatten(merged))
  assert difference(ours, want) <= OUTPUT
  tensors, written = peft.write(read, config, '')
  (tmp_path / 'ours').mkdir()
  safetensors.write_file(tmp_path / 'ours' / 'adapter_model.safetensors', tensors)
  (tmp_path / 'ours' / 'adapter_config.json').write_text(json.dumps(written))
  plain = public.qwen2(config)
  plain.load_state_dict(adapted.unload().state_dict())
  again = library.PeftModel.from_pretrained(plain, tmp_path / 'ours')
  with torch.no_grad():
    assert difference(again(torch.from_numpy(ids)).logits, want) <= OUTPUT


# ---- the vision tower


def siglip2():
  """(config, transformers' model, our parameters, latents [B, C, h, w])."""
  config = small_config()
  v, channels, model = config.vision, config.vae.latent_channels, public.siglip(config)
  params = convert(tables.siglip2(v), arrays(model), {'vision': tuna_shapes(config)['vision']})
  return (
    config,
    model,
    params,
    np.random.default_rng(0).standard_normal((2, channels, v.grid, v.grid), np.float32),
  )


def see(config, params, latents):
  rows, channels, *side = latents.shape
  cells = latents.reshape(rows, channels, -1).transpose(0, 2, 1)
  coords = np.broadcast_to(np.indices((1, *side)).reshape(3, -1).T, (*cells.shape[:2], 3))
  grid = np.broadcast_to(np.int32([1, *side]), (rows, 1, 3))
  return Vision(config).apply(
    {'params': params['vision']}, cells, coords, np.ones(cells.shape[:2], np.int32), grid
  )


def test_the_vision_tower_is_siglip_before_its_last_layer():
  import torch

  config, model, params, latents = siglip2()
  want = model(torch.from_numpy(latents), output_hidden_states=True).hidden_states[-2]
  assert_same(
    tables.siglip2(config.vision),
    lambda params: see(config, params, latents),
    params,
    model,
    'encoder.layers.0.self_attn.q_proj.weight',
    want,
  )


def test_bfloat16_costs_the_vision_tower_at_most_twice_what_it_costs_siglip():
  import torch

  config, model, params, latents = siglip2()
  pixels = torch.from_numpy(latents)
  with torch.no_grad():
    exact = model(pixels, output_hidden_states=True).hidden_states[-2]
    theirs = (
      model.to(torch.bfloat16)(pixels.bfloat16(), output_hidden_states=True)
      .hidden_states[-2]
      .float()
    )
  ours = quick_jit(lambda params: see(half(config), params, latents).astype(jnp.float32))(params)
  assert 0 < difference(ours, exact) <= BFLOAT16 * difference(theirs, exact)


def dinov3():
  """(config, transformers' model, our parameters, latents [B, C, h, w] of a wide picture)."""
  config = small_config()
  vision = dataclasses.replace(
    config.vision,
    encoder='dinov3',
    final_norm=True,
    norm_eps=1e-5,
    head_dim=16,
    dim=64,
    num_heads=4,
  )
  config = dataclasses.replace(config, vision=dataclasses.replace(vision, num_kv_heads=4))
  model = public.dinov3(config)
  table = tables.vision(config.vision)
  params = convert(table, arrays(model), {'vision': tuna_shapes(config)['vision']})
  shape = (2, config.vae.latent_channels, 3, 5)
  return config, model, params, np.random.default_rng(0).standard_normal(shape, np.float32)


def test_the_vision_tower_is_dinov3():
  import torch

  config, model, params, latents = dinov3()
  want = model(torch.from_numpy(latents)).last_hidden_state[:, 5:]
  assert_same(
    tables.vision(config.vision),
    lambda params: see(config, params, latents),
    params,
    model,
    'layer.0.attention.q_proj.weight',
    want,
  )


def test_a_folder_of_dinov3_is_read_whichever_names_its_layers_have(tmp_path):
  config, model, params, _ = dinov3()
  model.save_pretrained(tmp_path / 'class')
  (tmp_path / 'hub').mkdir()
  names = {name.removeprefix('model.'): value for name, value in arrays(model).items()}
  safetensors.write_file(tmp_path / 'hub' / 'model.safetensors', lazies(names))
  for folder in ('class', 'hub'):
    found = parts.assemble(config, vision=tmp_path / folder, seed=0)
    for leaf, value in tree.flatten(params).items():
      np.testing.assert_array_equal(found.leaves[leaf][()], value, err_msg=leaf)
    assert not [leaf for leaf in found.fresh if leaf.startswith('vision/')]


def test_the_config_of_an_exported_dinov3_is_that_of_its_class():
  import transformers

  config, model, *_ = dinov3()
  found = transformers.DINOv3ViTConfig.from_dict(hf.vision_json(config)).to_dict()
  named = (
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'key_bias',
  )
  named += ('use_gated_mlp', 'num_register_tokens', 'layer_norm_eps', 'hidden_act', 'patch_size')
  wanted = model.config.to_dict()
  assert {name: found[name] for name in named} == {name: wanted[name] for name in named}


def test_bfloat16_costs_the_vision_tower_at_most_twice_what_it_costs_dinov3():
  import torch

  config, model, params, latents = dinov3()
  pixels = torch.from_numpy(latents)
  with torch.no_grad():
    exact = model(pixels).last_hidden_state[:, 5:]
    theirs = model.to(torch.bfloat16)(pixels.bfloat16()).last_hidden_state[:, 5:].float()
  ours = quick_jit(lambda params: see(half(config), params, latents).astype(jnp.float32))(params)
  assert 0 < difference(ours, exact) <= BFLOAT16 * difference(theirs, exact)


# ---- the VAE


@pytest.fixture(scope='module')
def wan(tmp_path_factory):
  """(our config, table, parameters, the model of diffusers in its Wan 2.2 form); the weights go
  through its files.
  """
  config = dataclasses.replace(
    small_config(), vae=dataclasses.replace(small_config().vae, latent_mean=(), latent_std=())
  )
  model, folder = public.wan(config.vae), tmp_path_factory.mktemp('wan')
  model.save_pretrained(folder)
  params = store.load(parts.read_vae(config, folder).leaves, vae_shapes(config.vae))
  return config.vae, tables.diffusers_vae(config.vae), params, model


def channels_last(x):
  return x.permute(0, 2, 3, 4, 1)


def test_the_vae_encodes_as_wan_does(wan):
  import torch

  config, table, params, model = wan
  video = np.random.default_rng(0).uniform(-1, 1, (1, 5, 32, 48, 3)).astype(np.float32)
  model.zero_grad()
  want = channels_last(
    model.encode(torch.from_numpy(video.transpose(0, 4, 1, 2, 3))).latent_dist.mean
  )
  assert_same(
    table,
    lambda params: WanVae(config).apply({'params': params}, video, method='encode').mean,
    params,
    model,
    'encoder.conv_in.weight',
    want,
  )


def test_the_vae_decodes_as_wan_does(wan):
  import torch

  config, table, params, model = wan
  latents = np.random.default_rng(0).standard_normal(
    (1, 2, 2, 3, config.latent_channels), np.float32
  )
  model.zero_grad()
  want = channels_last(model.decode(torch.from_numpy(latents.transpose(0, 4, 1, 2, 3))).sample)
  assert 0.1 < np.abs(want.detach().numpy()).mean() < 0.9  # neither dark nor clamped away

  def run(params):
    return jnp.clip(WanVae(config).apply({'params': params}, latents, method='decode'), -1, 1)

  assert_same(table, run, params, model, 'decoder.mid_block.resnets.0.conv1.weight', want)
