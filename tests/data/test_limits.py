"""Paths of records are found below their root, and files are opened once and within limits."""

import os

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tuna_jax import files
from tuna_jax.data.limits import Limits, MediaError, locate, read
from tuna_jax.data.media import read_image


@pytest.fixture
def root(tmp_path):
  (tmp_path / 'base' / 'sub').mkdir(parents=True)
  Image.new('RGB', (16, 16)).save(tmp_path / 'private.png')
  Image.new('RGB', (16, 16)).save(tmp_path / 'base' / 'a.png')
  os.symlink('../private.png', tmp_path / 'base' / 'link.png')
  os.symlink('..', tmp_path / 'base' / 'up')
  os.symlink('a.png', tmp_path / 'base' / 'inside.png')
  return str(tmp_path / 'base')


@pytest.mark.parametrize(
  'path', ['a.png', 'sub/../a.png', './a.png', 'inside.png', 'up/base/a.png']
)
def test_a_path_below_the_root_is_found(root, path):
  assert locate(path, root) == os.path.realpath(f'{root}/a.png')


@pytest.mark.parametrize(
  'path',
  ['../private.png', '/etc/passwd', 'link.png', 'up/private.png', 'up', 'sub/../../private.png'],
)
def test_links_and_dots_do_not_leave_the_root(root, path):
  with pytest.raises(MediaError, match='leaves the root'):
    locate(path, root)


def test_a_root_that_is_a_link_itself_is_followed(root, tmp_path):
  os.symlink(root, tmp_path / 'shortcut')
  assert locate('a.png', str(tmp_path / 'shortcut')) == os.path.realpath(f'{root}/a.png')


@pytest.mark.parametrize('name', ['a#b.png', 'a%20b.png', 'a b.png', 'what?.png', '猫.png', '~'])
def test_every_character_of_a_path_stands_for_itself(root, name):
  assert locate(name, root) == f'{os.path.realpath(root)}/{name}'


def test_a_url_is_never_joined_to_a_local_folder(root):
  for url, remedy in (
    ('gs://bucket/a.png', 'root of the row'),
    ('https://a.de/b.png', 'download it'),
  ):
    with pytest.raises(MediaError, match=f'{url}.*{remedy}'):
      locate(url, root)


def test_paths_below_a_bucket_are_relative_or_whole():
  for path in ('x/a b#.png', 'gs://bucket/data/x/a b#.png'):
    assert locate(path, 'gs://bucket/data/') == 'gs://bucket/data/x/a b#.png'
  for path in (
    'gs://other/a.png',
    'gs://bucket/database/a.png',
    '../a.png',
    '/a.png',
    'https://a.de/b',
  ):
    with pytest.raises(MediaError, match='leaves the root'):
      locate(path, 'gs://bucket/data')


@pytest.mark.parametrize('path', ['', None, 7, ['a.png']])
def test_what_is_no_path_is_named(root, path):
  with pytest.raises(MediaError, match='expected a path'):
    locate(path, root)


class Bucket(MemoryFileSystem):
  """Object storage in memory that writes down what it is asked for."""

  asked = []
  protocol = ('gs', 'gcs')

  def info(self, path, **_):
    self.asked.append('info')
    return super().info(path)

  def ls(self, path, *_, **__):
    self.asked.append('ls')
    return super().ls(path)

  def cat_file(self, path, start=None, end=None, **_):
    self.asked.append('get')
    return self.store['/' + path.split('://')[-1].lstrip('/')].getvalue()[start:end]


@pytest.fixture
def bucket(monkeypatch):
  monkeypatch.setattr(files, 'storage', lambda where: Bucket())
  Bucket.asked.clear()
  yield Bucket()
  Bucket.store.clear()


def test_a_picture_on_object_storage_costs_one_request(bucket, root):
  with bucket.open('/bucket/a b.png', 'wb') as file:
    file.write(open(f'{root}/a.png', 'rb').read())
  Bucket.asked.clear()
  assert read_image('gs://bucket/a b.png', '16').shape == (16, 16, 3)
  assert Bucket.asked == ['get']
  with pytest.raises(MediaError, match=r'gs://bucket/a b\.png: .*limits\.bytes'):
    read_image('gs://bucket/a b.png', '16', limits=Limits(bytes=20))
  with pytest.raises(MediaError, match=r'gs://bucket/gone\.png: not a readable'):
    read_image('gs://bucket/gone.png', '16')


def test_a_file_larger_than_allowed_is_not_read(tmp_path):
  (tmp_path / 'a').write_bytes(b'x' * 100)
  assert read(str(tmp_path / 'a'), Limits(bytes=100)) == b'x' * 100
  with pytest.raises(MediaError, match='more than limits.bytes=99'):
    read(str(tmp_path / 'a'), Limits(bytes=99))
