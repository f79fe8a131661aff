"""The commands of docs/weights.md 1, as they stand there, on real files of the tiny size."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest

from tests.weights import public
from tests.weights.small import random_leaves
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.toy.sizes import TINY
from tuna_jax.weights import parts, store
from tuna_jax.weights.open import open_checkpoint
from tuna_jax.weights.tensors import lazies

pytestmark = pytest.mark.parity
PAGE = (pathlib.Path(__file__).parents[2] / 'docs' / 'weights.md').read_text()
SECTION = PAGE.partition('## 1. Commands\n')[2].partition('\n## ')[0]
COMMANDS = {
  line.split()[2]: line.strip()
  for line in SECTION.splitlines()
  if line.startswith('    tuna-jax convert ')
}


def command(action, **places):
  """The page's line of that action as arguments, its placeholders replaced in order,
  and the size tiny, which no published part has.

  places: {flag: path}, and 'paths' for what stands beside the flags. Optional flags in brackets are
  given, but for the source.
  """
  line = re.sub(r'[\[\]]', '', COMMANDS[action].replace('[--source=showo2] ', ''))
  if action in ('assemble', 'import'):
    yield '--size=tiny'
  paths = iter(places.pop('paths', ()))
  for word in shlex.split(line)[2:]:
    flag, _, value = word.partition('=')
    if value in ('DIR', 'PATH'):
      yield f'{flag}={places.pop(flag.removeprefix("--"))}'
    else:
      yield str(next(paths)) if word in ('PATH', 'A', 'B') else word
  assert not places


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Qwen2.5 in shards and an RGB SigLIP-2 by transformers, the VAE's and Tuna's .pth by torch."""
  import torch

  root = tmp_path_factory.mktemp('files')
  public.qwen2(TINY).save_pretrained(root / 'qwen', max_shard_size='200KB')
  (root / 'qwen' / 'tokenizer.json').write_text('{}')
  public.siglip(TINY, image_size=48, patch_size=16, num_channels=3).save_pretrained(root / 'siglip')
  leaves, vae = random_leaves(tuna_shapes(TINY)), random_leaves(vae_shapes(TINY.vae), 1)
  stored = store.Stored(TINY, lazies(leaves), TINY.vae, lazies(vae), {})
  for part, file, wrap in (
    ('vae', 'Wan2.2_VAE.pth', dict),
    ('tuna', 'tuna.pt', lambda tensors: {'model': tensors}),
  ):
    tensors = {
      name: torch.from_numpy(value[()].copy())
      for name, value in parts.export_part(part, stored)[0].items()
    }
    torch.save(wrap(tensors), root / file)
  return root


def test_the_section_has_every_action():
  assert list(COMMANDS) == ['assemble', 'import', 'export', 'merge', 'inspect', 'diff']


def test_each_command_of_the_page_runs_as_written(convert, files):
  said = convert(
    *command(
      'assemble',
      decoder=files / 'qwen',
      vision=files / 'siglip',
      vae=files / 'Wan2.2_VAE.pth',
      output=files / 'assembled',
    )
  )
  assert 'vision/patch_embed/kernel' in said and 'resampled from 3x3 to 4x4' in said
  config = store.open_stored(files / 'assembled').config
  store.load_weights(str(files / 'assembled'), tuna_shapes(config))  # as stage 1 does
  store.load_vae(str(files / 'assembled' / 'vae'))
  assert (files / 'assembled' / 'tokenizer.json').exists()

  convert(
    *command(
      'import', input=files / 'tuna.pt', vae=files / 'Wan2.2_VAE.pth', output=files / 'imported'
    )
  )
  assert json.loads((files / 'imported' / 'recover.json').read_text()) == {}

  convert(*command('export', input=files / 'imported', output=files / 'exported'))
  theirs, ours = open_checkpoint(files / 'tuna.pt'), open_checkpoint(files / 'exported')
  assert sorted(theirs) == sorted(ours)
  for name, value in ours.items():
    np.testing.assert_array_equal(value[()], theirs[name][()].astype(value.dtype), err_msg=name)

  assert f'{len(theirs)} tensors' in convert(*command('inspect', paths=[files / 'tuna.pt']))
  assert (
    convert(*command('diff', paths=[files / 'tuna.pt', files / 'tuna.pt']))
    == f'equal: {len(theirs)} tensors\n'
  )
  assert 'type float32 and bfloat16' in convert(
    *command('diff', paths=[files / 'tuna.pt', files / 'exported']), code=1
  )
