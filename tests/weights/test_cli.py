"""The convert verb in real processes, on tiny files of the real formats."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.weights.small import random_leaves, small_config
from tuna_jax import tree
from tuna_jax.mappings import to_dict
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.weights import lora, parts, peft, safetensors, store, tables, torchfile
from tuna_jax.weights.convert import export
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import lazies

CONFIG = small_config()
SHAPES, VAE_SHAPES = tuna_shapes(CONFIG), vae_shapes(CONFIG.vae)
LEAVES, VAE_LEAVES = random_leaves(SHAPES), random_leaves(VAE_SHAPES, 1)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder with the parts, an official checkpoint, and the model's config."""
  root = tmp_path_factory.mktemp('files')
  stored = store.Stored(CONFIG, lazies(LEAVES), CONFIG.vae, lazies(VAE_LEAVES), {})
  for name in ('decoder', 'vision', 'tuna'):
    (root / name).mkdir()
    tensors, _, stem = parts.export_part(name, stored)
    safetensors.write_folder(root / name, tensors, stem=stem, shard_bytes=100_000)
  torchfile.write_file(root / 'Wan2.2_VAE.pth', parts.export_part('vae', stored)[0])
  torchfile.write_file(root / 'tuna.pt', parts.export_part('tuna', stored)[0])
  (root / 'decoder' / 'tokenizer.json').write_text('{}')
  (root / 'model.json').write_text(json.dumps(to_dict(CONFIG)))
  return root


@pytest.fixture(scope='module')
def imported(convert, files):
  """The official checkpoint, converted."""
  convert(
    'import',
    f'--model={files}/model.json',
    f'--input={files}/tuna',
    f'--vae={files}/Wan2.2_VAE.pth',
    f'--output={files}/imported',
  )
  return files / 'imported'


def test_parts_assemble_to_a_directory_that_training_loads(convert, files):
  output = files / 'assembled'
  said = convert(
    'assemble',
    f'--model={files}/model.json',
    f'--decoder={files}/decoder',
    f'--vision={files}/vision',
    f'--vae={files}/Wan2.2_VAE.pth',
    f'--output={output}',
  )
  assert 'flow_head/final/linear/kernel: no source: initial values' in said
  assert store.open_stored(output).config == CONFIG and (output / 'tokenizer.json').exists()
  params = tree.flatten(store.load_weights(str(output), SHAPES))
  for name, value in params.items():
    if name.startswith(('decoder/layers', 'vision/')):
      np.testing.assert_array_equal(np.asarray(value), LEAVES[name], err_msg=name)
  assert not np.asarray(params['flow_head/layers/adaln/kernel']).any()
  vae_config, vae = store.load_vae(str(output / 'vae'))
  assert vae_config == CONFIG.vae
  for name, value in tree.flatten(vae).items():
    np.testing.assert_array_equal(np.asarray(value), VAE_LEAVES[name], err_msg=name)
  notes = json.loads((output / 'config.json').read_text())['notes']
  assert 'connector/fc1/kernel' in notes['fresh'] and notes['sources']['vae'].endswith(
    'Wan2.2_VAE.pth'
  )


def test_loading_on_a_mesh_gives_every_device_its_share(imported):
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(8), ('fsdp',))
  spec = lambda a: (
    jax.sharding.PartitionSpec(*[None] * (len(a.shape) - 1), 'fsdp')
    if a.shape and a.shape[-1] % 8 == 0
    else jax.sharding.PartitionSpec()
  )
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(
      a.shape, a.dtype, sharding=jax.sharding.NamedSharding(mesh, spec(a))
    ),
    SHAPES,
  )
  kernel = store.load_weights(str(imported), abstract)['decoder']['layers']['mlp']['up_proj'][
    'kernel'
  ]
  assert {s.data.shape for s in kernel.addressable_shards} == {(3, 64, 12)}
  np.testing.assert_array_equal(np.asarray(kernel), LEAVES['decoder/layers/mlp/up_proj/kernel'])


def test_official_weights_come_in_with_the_latent_statistics_they_were_trained_with(imported):
  vae = store.open_stored(imported).config.vae
  assert vae.latent_mean == vae.latent_std == CONFIG.vae.latent_std


@pytest.mark.parametrize('part', ['vae', 'vae-diffusers'])
def test_latents_keep_their_statistics_there_and_back(convert, files, tmp_path, part):
  # A VAE that was trained here knows them; the config of a run beside it does not.
  plain = dataclasses.replace(CONFIG.vae, latent_mean=(), latent_std=())
  model = dataclasses.replace(CONFIG, vae=plain)
  (tmp_path / 'model.json').write_text(json.dumps(to_dict(model)))
  mean, std = ((x,) * plain.latent_channels for x in (0.25, 2.5))
  measured = dataclasses.replace(plain, latent_mean=mean, latent_std=std)
  store.save(tmp_path / 'vae', measured, VAE_LEAVES)
  convert('export', f'--input={tmp_path}/vae', f'--part={part}', f'--output={tmp_path}/theirs')
  given = f'--model={tmp_path}/model.json', f'--vae={tmp_path}/theirs'
  convert('assemble', *given, f'--decoder={files}/decoder', f'--output={tmp_path}/assembled')
  convert('import', *given, f'--input={files}/tuna', f'--output={tmp_path}/imported')
  for name in ('assembled', 'imported'):
    assert store.open_stored(tmp_path / name).config.vae == measured
    assert store.load_vae(tmp_path / name / 'vae')[0] == measured
  # What we export says itself what the model was trained with.
  convert('export', f'--input={tmp_path}/assembled', f'--output={tmp_path}/tuna')
  convert('import', given[0], f'--input={tmp_path}/tuna', f'--output={tmp_path}/again')
  assert store.open_stored(tmp_path / 'again').config.vae == measured


def test_official_in_and_out_is_the_identity(convert, imported, files):
  convert('export', f'--input={imported}', f'--output={files}/out')
  assert (
    convert('diff', files / 'tuna', files / 'out')
    == f'equal: {len(open_checkpoint(files / "tuna"))} tensors\n'
  )
  assert json.loads((files / 'out' / 'config.json').read_text())['model_type'] == 'tuna'


@pytest.mark.parametrize(
  'part, source', [('decoder', 'decoder'), ('vision', 'vision'), ('vae', 'Wan2.2_VAE.pth')]
)
def test_each_part_goes_back_to_its_own_format(convert, imported, files, part, source):
  convert('export', f'--input={imported}', f'--part={part}', f'--output={files}/back_{part}')
  assert 'equal' in convert('diff', files / source, files / f'back_{part}')


def test_what_training_saved_is_exported_too(convert, files):
  params = tree.unflatten(LEAVES)
  store.save(files / 'trained', CONFIG, params)
  convert('export', f'--input={files}/trained', f'--output={files}/from_trained')
  assert 'equal' in convert('diff', files / 'tuna', files / 'from_trained')


def test_a_pt_file_gives_what_the_shards_give(convert, imported, files):
  convert(
    'import', f'--model={files}/model.json', f'--input={files}/tuna.pt', f'--output={files}/from_pt'
  )
  said = convert('diff', imported, files / 'from_pt', code=1)
  assert {line.partition(': ')[2][:4] for line in said.splitlines()} == {
    'vae/'
  }  # which was not given


def test_a_dry_run_writes_nothing(convert, files):
  before = sorted(files.iterdir())
  said = convert(
    'import',
    f'--model={files}/model.json',
    f'--input={files}/tuna',
    f'--output={files}/dry',
    '--dry-run',
  )
  assert 'was not written' in said and sorted(files.iterdir()) == before


def test_a_faulty_checkpoint_exits_2_with_every_fault_and_leaves_nothing(convert, files, tmp_path):
  tensors = dict(open_checkpoint(files / 'tuna'))
  del tensors['siglip_proj.0.weight']
  tensors['stray.weight'] = tensors['siglip_proj.1.bias']
  safetensors.write_folder(tmp_path, tensors)
  said = convert(
    'import',
    f'--model={files}/model.json',
    f'--input={tmp_path}',
    f'--output={tmp_path}/out',
    code=2,
  )
  assert 'siglip_proj.0.weight: missing' in said and 'stray.weight: unused' in said
  assert [p.name for p in tmp_path.iterdir()] == ['model.safetensors']


def test_damage_found_while_writing_leaves_nothing(convert, files, tmp_path):
  leaves = {**LEAVES, 'flow_head/final/norm/scale': np.full(64, np.inf, np.float32)}
  safetensors.write_folder(tmp_path, export(tables.tuna_official(CONFIG), leaves))
  said = convert(
    'import',
    f'--model={files}/model.json',
    f'--input={tmp_path}',
    f'--output={tmp_path}/out',
    code=2,
  )
  assert 'diffusion_head_b.norm_final.weight: holds infinite' in said
  assert [p.name for p in tmp_path.iterdir()] == ['model.safetensors']


def test_an_existing_output_is_never_overwritten(convert, imported, files):
  said = convert(
    'import', f'--model={files}/model.json', f'--input={files}/tuna', f'--output={imported}', code=2
  )
  assert 'exists already' in said


def test_inspect_lists_tensors_and_a_checksum_that_shards_do_not_change(convert, files, tmp_path):
  safetensors.write_folder(tmp_path, open_checkpoint(files / 'tuna'))
  whole, sharded = convert('inspect', tmp_path), convert('inspect', files / 'tuna')
  assert whole == sharded and 'diffusion_head_b.linear.bias  float32[48]  192' in whole


def test_recover_names_the_layers_and_writes_the_stage(convert, files, tmp_path):
  config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, num_layers=8))
  leaves = random_leaves(tuna_shapes(config))
  for name, value in leaves.items():
    if name.startswith('decoder/layers/'):
      value[5] = 1 if name.endswith('scale') else value[5] * 3
  (tmp_path / 'in').mkdir()
  safetensors.write_folder(tmp_path / 'in', export(tables.tuna_official(config), leaves))
  (tmp_path / 'model.json').write_text(json.dumps(to_dict(config)))
  convert(
    'import',
    f'--model={tmp_path}/model.json',
    f'--input={tmp_path}/in',
    f'--output={tmp_path}/out',
    '--recover',
  )
  assert list(json.loads((tmp_path / 'out' / 'recover.json').read_text())['decoder']) == ['5']
  assert 'decoder/layers/.*' in (tmp_path / 'out' / 'recover.py').read_text()


def test_a_certificate_stands_beside_what_was_written_and_a_fault_exits_1(convert, files, tmp_path):
  tokens = np.int32([[3, 1, 4, 1, 5, 9]])
  tensors = {
    'in.a.text_tokens': tokens,
    'in.a.mp': np.int32([[[-1, -1]]]),
    'out.a.hidden0': LEAVES['decoder/embed/embedding'][tokens],
  }
  (tmp_path / 'index.json').write_text(
    json.dumps(
      {
        'cases': [
          {
            'name': 'c',
            'kind': 'certificate',
            'file': 'c.safetensors',
            'config': {'subs': ['a']},
            'tensors': {
              name: {'shape': value.shape, 'dtype': str(value.dtype)}
              for name, value in tensors.items()
            },
          }
        ]
      }
    )
  )
  safetensors.write_file(tmp_path / 'c.safetensors', lazies(tensors))
  source = (f'--model={files}/model.json', f'--input={files}/tuna', f'--verify={tmp_path}')
  said = convert('import', *source, f'--output={tmp_path}/right')
  assert '# Parity certificate: PASS' in said and '| decoder | pass | 1 |' in said
  assert json.loads((tmp_path / 'right' / 'certificate.json').read_text())['passed']
  safetensors.write_file(
    tmp_path / 'c.safetensors', lazies({**tensors, 'out.a.hidden0': 2 * tensors['out.a.hidden0']})
  )
  said = convert(
    'export',
    f'--input={tmp_path}/right',
    f'--verify={tmp_path}',
    f'--output={tmp_path}/wrong',
    code=1,
  )
  assert '| decoder | FAIL | 1 |' in said and (tmp_path / 'wrong' / 'certificate.md').exists()
  said = convert(
    'import',
    f'--model={files}/model.json',
    f'--input={files}/tuna',
    f'--output={tmp_path}/none',
    f'--verify={files}',
    code=2,
  )
  assert 'no index.json there' in said and not (tmp_path / 'none').exists()


def test_an_adapter_is_merged_on_request(convert, imported, tmp_path):
  rows = (('decoder/layers/attn/q_proj/kernel', 2, 4.0),)
  shapes = tree.flatten(lora.extend(SHAPES, rows))
  leaves = {name: aval for name, aval in shapes.items() if lora.is_adapter(name)}
  adapter = random_leaves(tree.unflatten(leaves))
  adapter['decoder/layers/attn/q_proj/lora_scale'][:] = 2
  tensors, about = peft.write(lazies(adapter), CONFIG, '')
  safetensors.write_file(tmp_path / 'adapter_model.safetensors', tensors)
  (tmp_path / 'adapter_config.json').write_text(json.dumps(about))
  convert('merge', f'--input={imported}', f'--lora={tmp_path}', f'--output={tmp_path}/merged')
  merged, before = (store.open_stored(d) for d in (tmp_path / 'merged', imported))
  assert merged.config == before.config and merged.notes['sources']['lora'] == str(tmp_path)
  changed = 'decoder/layers/attn/q_proj/kernel'
  for name, value in merged.params.items():
    assert np.array_equal(value[()], before.params[name][()]) == (name != changed)
  added = [2 * a @ b for a, b in zip(*(adapter[changed[:-6] + part] for part in lora.PARTS[:2]))]
  np.testing.assert_allclose(merged.params[changed][()], before.params[changed][()] + added, 1e-5)
  said = convert('export', f'--input={imported}', '--part=lora', f'--output={tmp_path}/x', code=2)
  assert 'holds no adapters' in said


def test_a_part_of_another_size_is_one_line(convert, files):
  parts_of = [f'--{name}={files}/{name}' for name in ('decoder', 'vision')]
  output = f'--output={files}/none'
  said = convert('assemble', '--size=2b', *parts_of, output, code=2)
  assert 'your decoder is 64 wide with 3 layers; the model' in said and 'wants 1536 and 28' in said
  assert said.count('\n') == 1
  said = convert('assemble', *parts_of, output, code=2)
  assert 'which no size has (2b 1536 and 28, 7b 3584 and 28)' in said


def test_what_is_elsewhere_or_something_else_is_told_where_to_go(convert, files, tmp_path):
  asked = ('assemble', '--size=2b', f'--output={tmp_path}/x')
  said = convert(*asked, '--decoder=Qwen/Qwen2.5-1.5B-Instruct', code=2)
  assert '`tuna-jax get qwen2.5-1.5b` downloads it' in said
  (tmp_path / 'adapter_config.json').write_text('{}')
  said = convert('import', f'--input={tmp_path}', f'--output={tmp_path}/x', code=2)
  assert 'is an adapter of PEFT; `tuna-jax convert merge' in said
