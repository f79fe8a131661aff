"""A checkpoint is called by its name where another was said, and never half loaded."""

import dataclasses

import numpy as np
import pytest

from tests.models import designs
from tests.weights.small import random_leaves, shapes_only
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sizes import SIZES
from tuna_jax.weights import parts, peft, safetensors, store, tables
from tuna_jax.weights.convert import export
from tuna_jax.weights.designs import SOURCES, identify, official
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import CheckpointError, Lazy, lazies

TITLES = {
  'tuna': 'a tuna checkpoint of width 32',
  'showo2': 'a showo2 checkpoint of width 32',
  'tuna-r': 'a tuna-r checkpoint of width 32',
  'tuna-2': 'a tuna-2 checkpoint of width 32',
}
ASSEMBLE = 'no released checkpoint; `tuna-jax convert assemble'
OTHERS = {
  'decoder': f'this is a language model, {ASSEMBLE} --decoder=PATH` takes it',
  'tower': f'this is SigLIP, {ASSEMBLE} --vision=PATH` takes it',
  'vae': 'this is the VAE of Wan, no released checkpoint; --vae=PATH takes it beside the model',
  'layers': f'this is the semantic layers of Show-o2, {ASSEMBLE} --vision=PATH` takes them',
}


def model(source):
  config = designs.config(SOURCES[source])
  if source == 'tuna':  # a cell per token
    config = dataclasses.replace(config, patch=1, layout='patch')
  return config


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """One folder for each of SOURCES and OTHERS, an adapter, and a model of ours."""
  root = tmp_path_factory.mktemp('sources')
  for source in SOURCES:
    config = model(source)
    tensors = export(official(config), lazies(random_leaves(tuna_shapes(config))))
    write(root / source, tensors)
  config = model('tuna')
  leaves = random_leaves(tuna_shapes(config))
  vae = lazies(random_leaves(vae_shapes(config.vae)))
  of = lambda part: lazies({n: x for n, x in leaves.items() if n.startswith(f'{part}/')})
  write(root / 'decoder', export(tables.qwen2(config.decoder), of('decoder')))
  write(root / 'tower', export(tables.siglip2(config.vision, config.window), of('vision')))
  write(root / 'vae', export(tables.wan_vae(config.vae), vae))
  semantic = ('image_embedder_und.', 'position_embedding.', 'und_trans.')
  showo2 = export(official(model('showo2')), lazies(random_leaves(tuna_shapes(model('showo2')))))
  write(root / 'layers', {n: x for n, x in showo2.items() if n.startswith(semantic)})
  write(
    root / 'adapter', {'base_model.model.x.lora_A.weight': next(iter(vae.values()))}, 'adapter_'
  )
  (root / 'adapter' / peft.CONFIG).write_text('{}')
  store.save(root / 'ours', config, leaves)
  return root


def write(folder, tensors, prefix=''):
  folder.mkdir()
  safetensors.write_file(folder / f'{prefix}model.safetensors', tensors)


@pytest.mark.parametrize('said', SOURCES)
@pytest.mark.parametrize('found', [*SOURCES, *OTHERS])
def test_every_checkpoint_is_named_under_every_source(files, found, said):
  reader = open_checkpoint(files / found)
  if found == said:
    assert identify('x', reader, said).source == said
    planned = parts.official(model(said), files / found, reader)
    assert not planned.fresh and set(planned.leaves) == set(shapes_only(tuna_shapes(model(said))))
    return
  with pytest.raises(CheckpointError) as error:
    identify('x', reader, said)
  assert OTHERS.get(found, f'this is {TITLES.get(found)}; --source={found}') in str(error.value)


@pytest.mark.parametrize(
  'found, said',
  [
    ('showo2', f'this is {TITLES["showo2"]}; --source=showo2'),
    ('adapter', 'is an adapter of PEFT; `tuna-jax convert merge --input=MODEL'),
    ('ours', 'is a model of ours, which needs no import'),
  ],
)
def test_a_refused_import_writes_nothing(convert, files, tmp_path, found, said):
  options = ['--source=tuna-2', f'--input={files / found}', f'--output={tmp_path}/out']
  assert said in convert('import', *options, code=2)
  assert not list(tmp_path.iterdir())


def test_a_released_checkpoint_that_was_not_imported_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"_class_name": "Showo2Qwen2_5"}')
  with pytest.raises(CheckpointError, match='`tuna-jax convert import` reads released checkpoints'):
    store.open_stored(tmp_path)


def test_another_size_is_named(convert, tmp_path):
  config = SIZES['2b']
  wide = Lazy((3584,), np.dtype(np.float32), lambda index: np.zeros(3584, np.float32))
  names = export(official(config), shapes_only(tuna_shapes(config)))
  small = lazies(
    {name: np.zeros([1] * len(value.shape), np.float32) for name, value in names.items()}
  )
  write(tmp_path / 'in', {**small, 'tuna.model.norm.weight': wide})
  heard = convert(
    'import', '--size=2b', f'--input={tmp_path}/in', f'--output={tmp_path}/out', code=2
  )
  assert 'this is Tuna 7B; --size=7b, or none' in heard


@pytest.mark.parametrize(
  'source, given, said',
  [
    ('showo2', 'vae', 'is the VAE of Wan 2.2; this model takes Wan 2.1'),
    ('showo2', 'decoder', 'holds no VAE of Wan'),
    ('tuna', 'showo2', 'holds no VAE of Wan'),
    ('tuna-2', 'vae', "the design 'pixel' sees pixels and has no VAE"),
  ],
)
def test_what_is_no_vae_of_the_model_is_named(files, source, given, said):
  config = model(source)
  if config.vae is not None:
    config = dataclasses.replace(
      config, vae=dataclasses.replace(config.vae, residual=source == 'tuna')
    )
  with pytest.raises(CheckpointError, match=said):
    parts.read_vae(config, files / given)
