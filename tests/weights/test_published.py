"""Published models from the hub to weights of ours, against a server on loopback."""

import dataclasses
import os
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from tests.models import designs
from tests.sample import small
from tests.weights import hub as hubs
from tests.weights.small import random_leaves
from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.sample.open import open_generator
from tuna_jax.weights import parts, published, safetensors, store, torchfile
from tuna_jax.weights.convert import export
from tuna_jax.weights.designs import official
from tuna_jax.weights.published import Model, Source
from tuna_jax.weights.tensors import lazies

CONFIG = designs.config('late_fusion')
CONFIG = dataclasses.replace(CONFIG, vae=dataclasses.replace(CONFIG.vae, residual=False))
LEAVES = random_leaves(tuna_shapes(CONFIG))
LEAVES['decoder/embed/embedding'][CONFIG.decoder.vocab_size :] = 0
MODEL = Model(
  'Tiny Show-o2',
  CONFIG,
  Source('lab/tiny', ('config.json', 'pytorch_model*.bin*')),
  Source('lab/vae', ('VAE.pth',)),
  Source('lab/words', ('tokenizer*.json',)),
  (32,),
)


@pytest.fixture(scope='module')
def repos(tmp_path_factory):
  """{repository: {file name: bytes}} of MODEL, with files that nobody asks for."""
  root = tmp_path_factory.mktemp('published')
  for name in ('tiny', 'words', 'vae'):
    (root / name).mkdir()
  tensors = export(official(CONFIG), lazies(LEAVES))
  torch = {'stem': 'pytorch_model', 'write': torchfile.write_file, 'end': '.bin'}
  safetensors.write_folder(root / 'tiny', tensors, shard_bytes=100_000, **torch)
  (root / 'tiny' / 'config.json').write_text('{"_class_name": "Showo2Qwen2_5"}')
  (root / 'tiny' / 'README.md').write_text('nobody asks for it')
  vae = store.Stored(None, None, CONFIG.vae, lazies(random_leaves(vae_shapes(CONFIG.vae), 1)), {})
  torchfile.write_file(root / 'vae' / 'VAE.pth', parts.export_part('vae', vae)[0])
  small.tokenizer().save(root / 'words')
  return {
    f'lab/{folder.name}': {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    for folder in root.iterdir()
  }


@pytest.fixture
def server(repos):
  with hubs.serving({repo: dict(named) for repo, named in repos.items()}) as hub:
    yield hub


def client(server):
  return huggingface_hub.HfApi(endpoint=server.url)


def test_a_published_model_becomes_weights_that_draw(server, tmp_path):
  said = []
  output = tmp_path / 'model'
  published.obtain(client(server), MODEL, output, said.append, cache=tmp_path / 'hub')
  assert said[0].startswith('Tiny Show-o2: draws 32x32')
  first = next(i for i, line in enumerate(said) if line.startswith('memory'))
  assert first < said.index('verified; converting')
  stored = store.open_stored(output)
  for name, value in LEAVES.items():
    np.testing.assert_array_equal(np.asarray(stored.params[name]), value, err_msg=name)
  assert 'README.md' not in [name for name, _ in server.asked]
  drawn = open_generator(output).image('a ball', points=2)
  assert drawn.pixels.shape == (32, 32, 3)  # the size that was published
  asked = len(server.asked)
  published.obtain(client(server), MODEL, output, said.append, cache=tmp_path / 'hub')
  assert said[-1] == f'Tiny Show-o2: already in {output}' and len(server.asked) == asked


def test_a_dry_run_says_what_is_needed_and_downloads_nothing(server, tmp_path, repos):
  said, output = [], tmp_path / 'model'
  published.obtain(client(server), MODEL, output, said.append, dry_run=True)
  assert not server.asked and not output.exists()
  wanted = [data for name, data in repos['lab/tiny'].items() if name != 'README.md']
  size = published.gigabytes(sum(map(len, wanted)))
  assert f'  lab/tiny  {len(wanted)} files, {size}, licence Apache-2.0' in said


def test_a_lost_connection_continues_where_it_broke_off(server, tmp_path, repos, monkeypatch):
  monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 64)  # the client continues at whole chunks
  listing = published.look_up(client(server), MODEL.vae)
  server.cut.add('VAE.pth')
  folder = published.fetch(client(server), listing, tmp_path)
  data = repos['lab/vae']['VAE.pth']
  assert (folder / 'VAE.pth').read_bytes() == data
  assert server.asked == [('VAE.pth', None), ('VAE.pth', f'bytes={len(data) // 2 // 64 * 64}-')]
  published.fetch(client(server), listing, tmp_path)
  assert len(server.asked) == 2  # a complete file is not sent again


@pytest.mark.parametrize('name, source', [('VAE.pth', 1), ('config.json', 0)])
def test_a_file_damaged_on_the_way_is_named_and_fetched_anew(server, tmp_path, repos, name, source):
  listing = published.look_up(client(server), published.sources(MODEL)[source])
  server.damaged.add(name)
  with pytest.raises(UserError, match=f'{name}: the file that arrived is damaged'):
    published.fetch(client(server), listing, tmp_path)
  server.damaged.clear()
  folder = published.fetch(client(server), listing, tmp_path)
  assert (folder / name).read_bytes() == repos[listing.source.repo][name]


def test_a_file_of_another_size_than_was_published_is_named(server, tmp_path):
  listing = published.look_up(client(server), MODEL.vae)
  server.short.add('VAE.pth')
  with pytest.raises(UserError, match='lab/vae: .* did not give its files .*size'):
    published.fetch(client(server), listing, tmp_path)
  server.short.clear()
  assert (published.fetch(client(server), listing, tmp_path) / 'VAE.pth').exists()


def test_what_the_cache_holds_already_is_not_sent_again(server, tmp_path):
  listing = published.look_up(client(server), MODEL.weights)
  half = listing._replace(files=listing.files[:2])
  published.fetch(client(server), half, tmp_path)
  first = [name for name, _ in server.asked]
  published.fetch(client(server), listing, tmp_path)
  rest = [name for name, _ in server.asked][len(first) :]
  assert first == [file.name for file in half.files]
  assert rest == [file.name for file in listing.files[2:]]


def test_a_file_damaged_in_the_cache_is_noticed(server, tmp_path):
  listing = published.look_up(client(server), MODEL.vae)
  file = os.path.realpath(published.fetch(client(server), listing, tmp_path) / 'VAE.pth')
  with open(file, 'r+b') as opened:
    opened.write(b'?')
  with pytest.raises(UserError, match='damaged'):
    published.fetch(client(server), listing, tmp_path)


def test_a_repository_that_lost_its_files_is_named(server):
  gone = MODEL.vae._replace(patterns=('other.pth',))
  with pytest.raises(UserError, match='lab/vae: holds none of other.pth any more'):
    published.look_up(client(server), gone)


def test_a_published_name_that_was_not_fetched_says_how(tmp_path, monkeypatch):
  monkeypatch.setenv(files.CACHE, str(tmp_path))
  with pytest.raises(UserError, match='`tuna-jax get showo2-1.5b` fetches it'):
    open_generator('showo2-1.5b')


def get(*arguments, code=0, endpoint='http://127.0.0.1:9', verb='get', **environment):
  """Runs `tuna-jax get ARGUMENTS`, or another verb, and returns what it printed."""
  done = subprocess.run(
    [sys.executable, '-m', 'tuna_jax.cli.main', verb, *arguments],
    env=os.environ | {'HF_ENDPOINT': endpoint, **environment},
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stderr
  return done.stdout + done.stderr


def test_get_lists_the_names():
  assert 'showlab/show-o2-1.5B-HQ' in get()


def test_get_tells_what_to_do_where_the_hub_cannot_be_reached():
  said = get('showo2-1.5b', '--dry-run', code=2)
  assert 'http://127.0.0.1:9 did not give its files' in said
  assert (
    'Set HF_ENDPOINT to a mirror' in said
    and '`tuna-jax convert import --source=showo2 --vae=Wan2.1_VAE.pth --input=FOLDER` takes it'
    in said
  )
  said = get('siglip', code=2)
  assert 'google/siglip-so400m-patch14-384 in any other way' in said
  assert '`tuna-jax convert assemble --vision=FOLDER` takes it' in said


def test_get_reads_from_the_endpoint_that_is_named():
  data = {'Wan2.1_VAE.pth': bytes(2000), 'README.md': b'no'}
  with hubs.serving({'Wan-AI/Wan2.1-T2V-14B': data}) as hub:
    said = get('wan2.1-vae', '--dry-run', endpoint=hub.url)
  assert 'Wan2.1_VAE.pth' in said and 'README.md' not in said and not hub.asked


@pytest.mark.slow
def test_generate_says_what_a_model_needs_before_it_downloads(tmp_path):
  model = published.MODELS['showo2-1.5b']
  names = ('config.json', 'pytorch_model.bin'), ('Wan2.1_VAE.pth',), ('tokenizer.json',)
  repos = {
    source.repo: dict.fromkeys(files, b'{}')
    for source, files in zip(published.sources(model), names)
  }
  with hubs.serving(repos) as hub:
    hub.damaged.add('config.json')
    folders = {'HF_HOME': f'{tmp_path}/hub', files.CACHE: f'{tmp_path}/ours'}
    given = ('t2i', 'a red ball', '--model=showo2-1.5b', f'--output={tmp_path}/ball.png')
    said = get(*given, code=2, endpoint=hub.url, verb='generate', **folders)
  lines = said.splitlines()
  assert lines[0] == 'Show-o2 1.5B: draws 432x432, 11.83 GB in float32'
  assert lines[4].startswith('disk: 0.00 GB of downloads, 11.83 GB converted in ')
  assert lines[5].startswith(
    'memory: 11.83 GB for the parameters, half of it with --dtype=bfloat16'
  )
  assert 'are needed' in lines[-1] or 'config.json: the file that arrived is damaged' in lines[-1]
