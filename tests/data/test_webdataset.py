"""WebDataset tars: members of one key are one record, read with one request."""

import io
import json
import tarfile

import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data import shards
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord
from tuna_jax.data.sources import SourceConfig, open_source

CONFIG = MediaConfig(image_size='16', video_size='16', frames=5)
TALK = [{'from': 'human', 'value': '<image>\nwhat?'}, {'from': 'gpt', 'value': 'red'}]


def encoded(colour='red', size=(20, 30), form='PNG', **options):
  file = io.BytesIO()
  Image.new('RGB', size, colour).save(file, form, **options)
  return file.getvalue()


def tar(path, members, form=tarfile.PAX_FORMAT):
  with tarfile.open(path, 'w', format=form) as out:
    for name, data in members.items():
      data = data if isinstance(data, bytes) else str(data).encode()
      info = tarfile.TarInfo(name)
      info.size = len(data)
      out.addfile(info, io.BytesIO(data))
  return str(path)


def source(path, task, **row):
  return open_source(SourceConfig(str(path), task, **row), CONFIG)


@pytest.mark.parametrize('form', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_key_are_a_record(tmp_path, form):
  long = 'p' * 90 + '/' + 'q' * 60  # beyond the name field of a header
  members = {
    'a/001.jpg': encoded(form='JPEG'), 'a/001.txt': 'r\u00f6t', 'a/001.npy': b'x',
    f'{long}.png': encoded(), f'{long}.json': json.dumps({'caption': 'deep'}),
    'a/003.webp': encoded(form='WEBP'), 'a/003.txt': 'three',
  }  # fmt: skip
  found = source(tar(tmp_path / 'x.tar', members, form), 't2i')
  assert [found[i]['caption'] for i in range(len(found))] == ['r\u00f6t', 'deep', 'three']
  assert found[1]['image'].shape == (16, 16, 3) and found[1]['__key__'] == long
  assert found.where(2) == f'{tmp_path}/x.tar[2]'


@pytest.mark.parametrize(
  'task, members, field, shape',
  [
    ('caption', {'jpeg': encoded(), 'txt': 'red'}, 'image', (16, 16, 3)),
    ('vqa', {'png': encoded(), 'json': json.dumps({'conversations': TALK})}, 'image', (16, 16, 3)),
    (
      'edit',
      {'raw_image.png': encoded(), 'out_image.png': encoded('blue'), 'txt': 'blue'},
      'out_image',
      (16, 16, 3),
    ),
    (
      't2v',
      {
        'gif': encoded(form='GIF', save_all=True, append_images=[Image.new('RGB', (20, 30))]),
        'txt': 'red',
      },
      'video',
      (5, 16, 16, 3),
    ),
  ],
)
def test_members_become_the_fields_of_every_task(tmp_path, task, members, field, shape):
  path = tar(tmp_path / 'x.tar', {f'k.{e}': data for e, data in members.items()})
  assert source(path, task)[0][field].shape == shape


def test_numbered_members_are_a_list_in_the_order_of_their_numbers(tmp_path):
  sizes = {0: (16, 16), 2: (16, 32), 10: (32, 16)}
  members = {f'k.image.{n}.png': encoded(size=size) for n, size in sizes.items()}
  members['k.json'] = json.dumps({'conversations': TALK})
  images = source(tar(tmp_path / 'x.tar', members), 'vqa').raw(0)['image']
  assert [Image.open(io.BytesIO(data)).size for data in images] == list(sizes.values())


def test_class_numbers_have_the_names_of_the_row_s_file(tmp_path):
  (tmp_path / 'names.txt').write_text('cat\ndog\n')
  path = tar(tmp_path / 'x.tar', {'a.png': encoded(), 'a.cls': '1', 'b.png': encoded(), 'b.cls': 2})
  found = source(path, 't2i', classes=str(tmp_path / 'names.txt'))
  assert found[0]['caption'] == 'dog'
  with pytest.raises(BadRecord, match=r'x\.tar\[1\]: class 2: 2 names of classes are known'):
    found[1]


def test_fields_of_a_row_choose_members(tmp_path):
  members = {'a.small.png': encoded('red'), 'a.big.png': encoded('blue'), 'a.de.txt': 'blau'}
  row = {'image': 'big.png', 'caption': 'de.txt'}
  record = source(tar(tmp_path / 'x.tar', members), 't2i', fields=row)[0]
  assert record['caption'] == 'blau' and record['image'][0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
  'members, words',
  [
    ({'a.png': b'no picture', 'a.txt': 'x'}, 'not a readable picture'),
    ({'a.png': encoded()}, "no field 'caption'"),
    ({'a.png': encoded(), 'a.json': '{'}, 'JSON'),
    ({'a.png': encoded(), 'a.json': '[1]'}, 'expected an object, found list'),
  ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path, members, words):
  with pytest.raises(BadRecord, match=rf'x\.tar\[0\]: .*{words}'):
    source(tar(tmp_path / 'x.tar', members), 't2i')[0]


def test_a_file_that_is_no_tar_is_named(tmp_path):
  (tmp_path / 'x.tar').write_bytes(b'x' * 2000)
  with pytest.raises(UserError, match=r'x\.tar: not a tar'):
    source(tmp_path / 'x.tar', 't2i')


def test_an_index_is_kept_beside_the_file_until_the_file_changes(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, 'SMALL', 0)
  path, beside = tmp_path / 'x.tar', tmp_path / 'x.tar.index.npz'
  tar(path, {'a.txt': 'a', 'b.txt': 'b'})
  assert len(source(path, 't2i')) == 2 and beside.exists()
  made = beside.stat().st_mtime_ns
  assert len(source(path, 't2i')) == 2 and beside.stat().st_mtime_ns == made
  tar(path, {'a.txt': 'a', 'b.txt': 'b', 'c.txt': 'c' * 20000})
  assert len(source(path, 't2i')) == 3 and beside.stat().st_mtime_ns != made
  beside.write_bytes(b'damaged')
  assert len(source(path, 't2i')) == 3
