"""Names and shapes against docs/architecture.md 11, at full size through shapes alone."""

import dataclasses

import numpy as np
import pytest

from tests.weights.small import random_leaves, shapes_only, small_config
from tuna_jax.config import VaeConfig, VisionConfig
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sizes import TUNA_2B, TUNA_7B, TUNA_R_7B, WAN21_VAE
from tuna_jax.weights import tables
from tuna_jax.weights.convert import export, plan
from tuna_jax.weights.tensors import lazies

# Counts and shapes of docs/architecture.md 0 and 11, without the VAE and the tied head.
SIZES = {
  '2b': (TUNA_2B, 1291, 4_422_346_064, (1536, 8960, 256, 512)),
  '7b': (TUNA_7B, 980, 13_073_235_792, (3584, 18944, 512, 896)),
}


@pytest.fixture
def config():
  return small_config()


@pytest.fixture(scope='module', params=sorted(SIZES))
def full(request):
  config, count, parameters, widths = SIZES[request.param]
  return (
    config,
    count,
    parameters,
    widths,
    export(tables.tuna_official(config), shapes_only(tuna_shapes(config))),
  )


def test_a_full_size_model_has_the_official_number_of_tensors_and_parameters(full):
  _, count, parameters, _, official = full
  assert len(official) == count
  assert sum(int(np.prod(t.shape)) for t in official.values()) == parameters


def test_full_size_tensors_have_the_official_shapes(full):
  config, _, _, (d, f, kv, flow_kv), official = full
  wanted = {
    'tuna.model.embed_tokens.weight': (151669, d),
    'tuna.model.layers.27.self_attn.k_proj.weight': (kv, d),
    'tuna.model.layers.0.self_attn.q_proj.bias': (d,),
    'tuna.model.layers.0.mlp.down_proj.weight': (d, f),
    'tuna.model.layers.0.post_attention_layernorm.weight': (d,),
    'vision_model.embeddings.patch_embedding.weight': (1152, 48, 1, 1),
    'vision_model.embeddings.position_embedding.weight': (1024, 1152),
    'vision_model.encoder.layers.25.mlp.fc1.weight': (4304, 1152),
    'siglip_proj.1.weight': (d, 1152),
    'time_embed.mlp.0.weight': (d, 256),
    'diffusion_head_a.0.self_attn.v_proj.weight': (flow_kv, d),
    'diffusion_head_a.0.self_attn.q_norm.weight': (64,),
    'diffusion_head_a.0.adaLN_modulation.1.weight': (6 * d, d),
    f'diffusion_head_a.{config.flow_head.num_layers - 1}.mlp.up_proj.weight': (f, d),
    'diffusion_head_b.linear.weight': (48, d),
    'diffusion_head_b.adaLN_modulation.1.bias': (2 * d,),
  }
  assert {name: official[name].shape for name in wanted} == wanted
  assert ('tuna.lm_head.weight' in official) == (not config.decoder.tied)


def test_a_full_size_official_checkpoint_maps_one_to_one(full):
  config, _, _, _, official = full
  shapes = tuna_shapes(config)
  planned = plan(tables.tuna_official(config), official, shapes)
  assert (
    set(planned.leaves) == set(shapes_only(shapes)) and not planned.fresh and not planned.dropped
  )


@pytest.mark.parametrize('table', [tables.wan_vae, tables.diffusers_vae])
@pytest.mark.parametrize(
  'config, count, parameters',
  [(VaeConfig(), 196, 704_688_668), (WAN21_VAE, 194, 126_892_531)],
  ids=['wan22', 'wan21'],
)
def test_the_full_size_vae_has_the_official_tensors_and_parameters(
  table, config, count, parameters
):
  shapes = vae_shapes(config)
  official = export(table(config), shapes_only(shapes))
  assert len(official) == count
  assert sum(int(np.prod(t.shape)) for t in official.values()) == parameters
  assert set(plan(table(config), official, shapes).leaves) == set(shapes_only(shapes))


def test_wan_names_and_shapes_are_those_of_the_file():
  official = export(tables.wan_vae(VaeConfig()), shapes_only(vae_shapes(VaeConfig())))
  wanted = {
    'encoder.conv1.weight': (160, 12, 3, 3, 3),
    'encoder.downsamples.1.downsamples.0.shortcut.weight': (320, 160, 1, 1, 1),
    'encoder.downsamples.3.downsamples.1.residual.3.gamma': (640, 1, 1, 1),
    'encoder.downsamples.2.downsamples.2.time_conv.weight': (640, 640, 3, 1, 1),
    'encoder.middle.1.norm.gamma': (640, 1, 1),
    'decoder.middle.1.to_qkv.weight': (3072, 1024, 1, 1),
    'conv1.weight': (96, 96, 1, 1, 1),
    'decoder.upsamples.2.upsamples.3.resample.1.weight': (512, 512, 3, 3),
    'decoder.upsamples.1.upsamples.3.time_conv.weight': (2048, 1024, 3, 1, 1),
    'decoder.head.2.weight': (12, 256, 3, 3, 3),
  }
  assert {name: official[name].shape for name in wanted} == wanted


def test_wan21_names_count_blocks_and_resamples_in_one_list():
  official = export(tables.wan_vae(WAN21_VAE), shapes_only(vae_shapes(WAN21_VAE)))
  wanted = {
    'encoder.conv1.weight': (96, 3, 3, 3, 3),
    'encoder.downsamples.6.shortcut.weight': (384, 192, 1, 1, 1),
    'encoder.downsamples.8.time_conv.weight': (384, 384, 3, 1, 1),
    'decoder.upsamples.4.shortcut.weight': (384, 192, 1, 1, 1),
    'decoder.upsamples.7.resample.1.weight': (192, 384, 3, 3),
    'decoder.upsamples.3.time_conv.weight': (768, 384, 3, 1, 1),
    'decoder.upsamples.14.residual.6.bias': (96,),
    'decoder.head.2.weight': (3, 96, 3, 3, 3),
  }
  assert {name: official[name].shape for name in wanted} == wanted


def test_dinov3_has_the_published_names_and_parameters():
  vision = VisionConfig(32, 1280, 20, 20, 64, 5120, 1e-5, encoder='dinov3', final_norm=True)
  config = dataclasses.replace(TUNA_R_7B, vision=vision)
  own = shapes_only({'vision': tuna_shapes(config)['vision']})
  official = export(tables.dinov3(vision, 16), own)
  assert sum(np.prod(leaf.shape) for leaf in official.values()) == 840_592_640 - 1280  # mask_token
  wanted = {
    'embeddings.register_tokens': (1, 4, 1280),
    'embeddings.patch_embeddings.weight': (1280, 3, 16, 16),
    'layer.31.attention.k_proj.weight': (1280, 1280),
    'layer.31.layer_scale2.lambda1': (1280,),
    'layer.0.mlp.down_proj.weight': (1280, 5120),
    'norm.bias': (1280,),
  }
  assert {name: official[name].shape for name in wanted} == wanted
  assert 'layer.0.attention.k_proj.bias' not in official


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('name', ['tuna_official', 'qwen2', 'siglip2', 'wan_vae', 'diffusers_vae'])
def test_every_row_of_a_table_is_about_some_leaf(name, tied):
  config = small_config(tied=tied)
  part = {'tuna_official': config, 'qwen2': config.decoder, 'siglip2': config.vision}.get(
    name, config.vae
  )
  leaves = shapes_only(vae_shapes(config.vae) if 'vae' in name else tuna_shapes(config))
  table = getattr(tables, name)(part)
  assert [row.ours for row in table.rows if all(row.match(leaf) is None for leaf in leaves)] == []


@pytest.mark.parametrize('tied', [True, False])
def test_out_and_in_again_is_the_identity(tied):
  config = small_config(tied=tied)
  shapes = tuna_shapes(config)
  leaves = random_leaves(shapes)
  leaves['decoder/embed/embedding'][50:] = 0  # rows past the vocabulary are not carried
  if not tied:
    leaves['decoder/lm_head/kernel'][:, 50:] = 0
  table = tables.tuna_official(config)
  planned = plan(table, export(table, leaves), shapes)
  for name, value in leaves.items():
    np.testing.assert_array_equal(planned.leaves[name][()], value, err_msg=name)


def test_a_linear_kernel_is_the_transpose_of_its_weight(config):
  shapes = tuna_shapes(config)
  leaves = random_leaves(shapes)
  official = export(tables.tuna_official(config), leaves)
  np.testing.assert_array_equal(
    official['tuna.model.layers.1.mlp.up_proj.weight'][()],
    leaves['decoder/layers/mlp/up_proj/kernel'][1].T,
  )


def test_a_convolution_kernel_moves_its_window_to_the_front(config):
  leaves = random_leaves(vae_shapes(config.vae))
  official = export(tables.wan_vae(config.vae), leaves)
  np.testing.assert_array_equal(
    official['encoder.conv1.weight'][()], leaves['encoder/conv_in/kernel'].transpose(4, 3, 0, 1, 2)
  )


def test_any_slice_equals_the_slice_of_the_whole(config):
  shapes = tuna_shapes(config)
  table = tables.tuna_official(config)
  planned = plan(table, export(table, random_leaves(shapes)), shapes)
  for name in (
    'decoder/layers/mlp/up_proj/kernel',
    'decoder/embed/embedding',
    'vision/patch_embed/kernel',
  ):
    value = planned.leaves[name]
    index = tuple(slice(n // 3, n - n // 4) for n in value.shape)
    np.testing.assert_array_equal(value[index], value[()][index], err_msg=name)


def test_positions_of_another_grid_are_resampled_as_the_tower_would(config):
  shapes = {'vision': tuna_shapes(config)['vision']}
  leaves = random_leaves(shapes)
  table = tables.siglip2(config.vision)
  source = {n: v for n, v in export(table, leaves).items()}
  constant = np.full((9, 32), 2.5, np.float32)
  source |= lazies({'embeddings.position_embedding.weight': constant})
  planned = plan(table, source, shapes)
  np.testing.assert_allclose(planned.leaves['vision/position_embed/embedding'][()], 2.5, rtol=1e-6)
  assert planned.adapted['vision/position_embed/embedding'] == 'resampled from 3x3 to 4x4'
