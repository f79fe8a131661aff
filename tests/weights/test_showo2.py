"""Show-o2 in its published layout, in and out; what a released checkpoint is, by its tensors."""

import dataclasses
import json

import numpy as np
import pytest

from tests.models import designs
from tests.weights.small import random_leaves, shapes_only
from tuna_jax.mappings import to_dict
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sizes import SIZES
from tuna_jax.weights import parts, safetensors, store, torchfile
from tuna_jax.weights.convert import export
from tuna_jax.weights.designs import SOURCES, identify, official
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import CheckpointError, lazies

CONFIG = designs.config('late_fusion')
CONFIG = dataclasses.replace(CONFIG, vae=dataclasses.replace(CONFIG.vae, residual=False))
LEAVES = random_leaves(tuna_shapes(CONFIG))
LEAVES['decoder/embed/embedding'][CONFIG.decoder.vocab_size :] = 0
VAE_LEAVES = random_leaves(vae_shapes(CONFIG.vae), 1)
TORCH = {'stem': 'pytorch_model', 'write': torchfile.write_file, 'end': '.bin'}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A folder of pickled shards with an index, and a Wan 2.1 VAE."""
  root = tmp_path_factory.mktemp('showo2')
  (root / 'showo2').mkdir()
  tensors = export(official(CONFIG), lazies(LEAVES))
  safetensors.write_folder(root / 'showo2', tensors, shard_bytes=100_000, **TORCH)
  (root / 'showo2' / 'config.json').write_text('{"image_latent_height": 3}')
  stored = store.Stored(None, None, CONFIG.vae, lazies(VAE_LEAVES), {})
  torchfile.write_file(root / 'Wan2.1_VAE.pth', parts.export_part('vae', stored)[0])
  (root / 'model.json').write_text(json.dumps(to_dict(CONFIG)))
  return root


def same(found, wanted):
  assert set(found) == set(wanted)
  for name, value in wanted.items():
    np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), err_msg=name)


def test_pickled_shards_are_imported_and_exported_byte_equal(convert, published):
  assert len(list((published / 'showo2').glob('*.bin'))) > 2
  output = published / 'ours'
  convert(
    'import',
    '--source=showo2',
    f'--model={published}/model.json',
    f'--input={published}/showo2',
    f'--vae={published}/Wan2.1_VAE.pth',
    f'--output={output}',
  )
  stored = store.open_stored(output)
  assert stored.config == CONFIG and stored.vae_config == CONFIG.vae
  assert stored.notes['pictures'] == [3 * CONFIG.strides[1]]
  same(stored.params, LEAVES)
  same(stored.vae, VAE_LEAVES)
  convert('export', f'--input={output}', f'--output={published}/back')
  convert('export', '--part=vae', f'--input={output}', f'--output={published}/vae')
  same(open_checkpoint(published / 'back'), open_checkpoint(published / 'showo2'))
  vae = open_checkpoint(published / 'vae' / 'Wan2.1_VAE.pth')
  same(vae, open_checkpoint(published / 'Wan2.1_VAE.pth'))
  assert json.loads((published / 'back/config.json').read_text())['_class_name'] == 'Showo2Qwen2_5'


def test_a_checkpoint_of_another_design_is_named(convert, published):
  said = convert('import', f'--input={published}/showo2', f'--output={published}/no', code=2)
  assert 'this is a showo2 checkpoint of width 32; --source=showo2' in said
  assert not (published / 'no').exists()


@pytest.mark.parametrize('damage', ['lost', 'moved'])
def test_shards_that_disagree_with_their_index_are_named(published, tmp_path, damage):
  tensors = open_checkpoint(published / 'showo2')
  safetensors.write_folder(tmp_path, tensors, shard_bytes=100_000, **TORCH)
  shard = sorted(tmp_path.glob('*.bin'))[1]
  if damage == 'lost':
    shard.unlink()
  else:
    torchfile.write_file(shard, {'elsewhere.weight': next(iter(tensors.values()))})
  with pytest.raises(CheckpointError, match=shard.name):
    open_checkpoint(tmp_path)


def test_training_starts_from_the_distilled_semantic_layers(tmp_path):
  tensors = export(official(CONFIG), lazies(LEAVES))
  own = ('image_embedder_und.', 'position_embedding.', 'und_trans.')
  kept = {name: value for name, value in tensors.items() if name.startswith(own)}
  torchfile.write_file(tmp_path / 'distilled.pt', kept)
  planned = parts.assemble(CONFIG, vision=tmp_path / 'distilled.pt', seed=0)
  same(
    {name: value for name, value in planned.leaves.items() if name not in planned.fresh},
    {name: value for name, value in LEAVES.items() if name.startswith('vision/')},
  )


PUBLISHED = [
  size
  for size, config in SIZES.items()
  if not size.startswith('tiny') and config.design in SOURCES.values()
]


@pytest.mark.parametrize('size', PUBLISHED)
def test_a_released_checkpoint_is_known_by_its_tensors(size):
  config = SIZES[size]
  found = identify('x', export(official(config), shapes_only(tuna_shapes(config))))
  assert found.size == size


def test_something_else_is_not_taken_for_a_released_checkpoint():
  with pytest.raises(CheckpointError, match='neither fusion_proj, vision_encoder nor siglip_proj'):
    identify('x', lazies({'model.norm.weight': np.zeros(3, np.float32)}))
