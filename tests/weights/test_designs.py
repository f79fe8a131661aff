"""Official names of Show-o2 and the pixel variants: full size by shapes, tiny by values."""

import numpy as np
import pytest

from tests.models import designs
from tests.weights.small import random_leaves, shapes_only
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.sizes import size
from tuna_jax.weights import tables
from tuna_jax.weights.convert import export, plan
from tuna_jax.weights.designs import SOURCES, official
from tuna_jax.weights.tensors import CheckpointError, lazies

# Tensors without the tied head, and some shapes, of docs/showo2.md 9 and docs/pixel.md 9.
SIZES = {'showo2-1.5b': 909, 'showo2-7b': 910, 'tuna-r-7b': 980, 'tuna-2-7b': 560}
SHAPES = {
  'showo2-1.5b': {
    'image_embedder_und.proj.weight': (1152, 16, 2, 2),
    'image_embedder_gen.proj.weight': (1536, 16, 2, 2),
    'position_embedding.weight': (729, 1152),
    'und_trans.layers.25.mlp.fc2.weight': (1152, 4304),
    'fusion_proj.0.weight': (1152 + 1536,),
    'fusion_proj.1.weight': (1536, 1152 + 1536),
    'time_embed.mlp.2.weight': (2048, 2048),
    'time_embed_proj.weight': (1536, 2048),
    'diff_proj.0.weight': (2048, 1536),
    'diffusion_head_a.9.self_attn.k_proj.weight': (512, 2048),
    'diffusion_head_b.linear.weight': (64, 2048),
    'showo.model.layers.27.self_attn.o_proj.weight': (1536, 1536),
  },
  'tuna-2-7b': {
    'vision_encoder.patch_embedding.weight': (3584, 3, 16, 16),
    'vision_encoder.norm.weight': (3584,),
    'mask_token': (1, 1, 3584),
    'diffusion_head_b.linear.weight': (768, 3584),
  },
  'tuna-r-7b': {
    'vision_model.embeddings.patch_embedding.weight': (1152, 3, 16, 16),
    'vision_model.embeddings.position_embedding.weight': (1024, 1152),
    'siglip_proj.1.weight': (3584, 1152),
  },
}


@pytest.mark.parametrize('name', SIZES)
def test_a_full_size_model_has_the_official_tensors(name):
  config = size(name)
  shapes = tuna_shapes(config)
  tensors = export(official(config), shapes_only(shapes))
  assert len(tensors) == SIZES[name]
  assert {key: tensors[key].shape for key in SHAPES.get(name, ())} == SHAPES.get(name, {})
  assert set(plan(official(config), tensors, shapes).leaves) == set(shapes_only(shapes))


@pytest.mark.parametrize('design', [d for d in SOURCES.values() if d != 'cascade'])
def test_export_and_import_give_the_same_bytes_slice_by_slice(design):
  config = designs.config(design)
  shapes = tuna_shapes(config)
  leaves = random_leaves(shapes)
  tensors = export(official(config), lazies(leaves))
  back = plan(official(config), tensors, shapes).leaves
  real = config.decoder.vocab_size
  for name, value in leaves.items():
    if name == 'decoder/embed/embedding':
      value[real:] = 0  # rows past the vocabulary are not carried
    np.testing.assert_array_equal(np.asarray(back[name]), value, err_msg=name)
  kernel = next(n for n in ('patches/embed/kernel', 'vision/patch_embed/kernel') if n in leaves)
  part = (slice(3, 9), slice(2, 5))
  np.testing.assert_array_equal(back[kernel][part], leaves[kernel][part])


def test_a_patch_convolution_is_a_matrix_over_row_column_channel():
  config = designs.config('pixel')
  leaves = random_leaves(tuna_shapes(config))
  weight = np.asarray(
    export(official(config), lazies(leaves))['vision_encoder.patch_embedding.weight']
  )
  patch = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
  np.testing.assert_allclose(
    np.einsum('dcrq,rqc->d', weight, patch),
    patch.reshape(-1) @ leaves['patches/embed/kernel'],
    rtol=2e-5,
    atol=1e-5,
  )


def test_decoupled_takes_the_whole_tower_of_siglip2_and_has_no_published_checkpoint():
  config = size('decoupled-2b')
  with pytest.raises(CheckpointError, match="no checkpoint of the design 'decoupled'"):
    official(config)
  shapes = {'vision': tuna_shapes(config)['vision']}
  table = tables.siglip2(config.vision, config.window)
  tensors = export(table, shapes_only(shapes))
  embed = 'embeddings.patch_embedding.weight'
  assert tensors[embed].shape == (1152, 3, 16, 16)
  found = plan(table, tensors, shapes)
  assert not found.fresh and not found.adapted
