"""`data encode`: from a mixture of pictures to a run without a VAE."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import shrink
from tuna_jax import sharding
from tuna_jax.train import encoder, feed
from tuna_jax.weights import store

BFLOAT16 = 2**-8  # relative


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('encode')
  rows = [{'path': 'shapes', 'task': task, 'size': 6} for task in ('t2i', 'edit', 'text')]
  (folder / 'mixture.json').write_text(json.dumps(rows))
  done = encode(folder)
  assert done.returncode == 0, done.stderr
  assert 'encoder.online=False' in done.stdout
  return folder


def encode(folder, *options):
  return subprocess.run(
    [
      sys.executable, '-m', 'tuna_jax.cli.data', 'encode', f'{folder}/mixture.json',
      f'--vae={shrink.assets()}/vae', f'--out={folder}/out', '--config=configs/stage2.py:tiny',
      '--config.data.media.frames=5', '--shard_records=4', *options,
    ],
    cwd=shrink.ROOT, capture_output=True, text=True, check=False, timeout=600,
  )  # fmt: skip


def config(folder, online, **changes):
  base = shrink.stage('stage2', **changes)
  mixture = folder / ('mixture.json' if online else 'out/mixture.json')
  phases = ((0.0, (('t2i', 1.0), ('edit', 1.0), ('text', 1.0))),)
  return dataclasses.replace(
    base,
    data=dataclasses.replace(base.data, mixture=str(mixture), phases=phases),
    encoder=dataclasses.replace(base.encoder, online=online),
  )


def first_batch(config, workdir):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    pipeline = feed.Feed(config, mesh).pipeline(config.data, config.seed)
    batch = next(pipeline)
    pipeline.close()
  return batch


def test_a_run_on_latents_needs_no_vae_and_gets_the_same_batch(folder, tmp_path):
  online = first_batch(config(folder, True), tmp_path / 'a')
  offline = first_batch(config(folder, False, vae=''), tmp_path / 'b')
  np.testing.assert_allclose(online.latents, offline.latents, rtol=2 * BFLOAT16, atol=1e-4)
  np.testing.assert_array_equal(online.tokens, offline.tokens)


def test_the_same_command_writes_nothing_again(folder):
  shards = sorted((folder / 'out').rglob('*.array_record'))
  before = [path.stat().st_mtime_ns for path in shards]
  assert len(shards) == 6 and encode(folder).returncode == 0
  assert [path.stat().st_mtime_ns for path in shards] == before


def test_latents_of_another_vae_are_refused(folder, tmp_path):
  vae, params = encoder.read(f'{shrink.assets()}/vae')
  params['quant']['bias'] = params['quant']['bias'] + 1
  store.save(tmp_path / 'vae', vae, params)
  with pytest.raises(ValueError, match='not the VAE whose encoder made'):
    first_batch(config(folder, False, vae=f'{tmp_path}/vae'), tmp_path / 'run')


def test_pixels_are_refused_where_latents_are_promised(folder, tmp_path):
  pixels = config(folder, True)
  promised = dataclasses.replace(pixels.encoder, online=False)
  with pytest.raises(ValueError, match='holds pictures or clips.*data encode'):
    first_batch(dataclasses.replace(pixels, encoder=promised), tmp_path / 'run')
