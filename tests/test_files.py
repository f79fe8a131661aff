"""Paths mean what the user typed, and a write is whole or absent."""

import json
import os
import stat

import pytest

from tuna_jax import files
from tuna_jax.config import UserError


def test_a_tilde_is_the_home_folder_and_other_characters_stand_for_themselves(monkeypatch):
  monkeypatch.setenv('HOME', '/home/ada')
  assert str(files.path('~/run')) == '/home/ada/run'
  assert str(files.path('a%20b/~')) == 'a%20b/~'
  assert str(files.path('gs://bucket/a%20b')) == 'gs://bucket/a%20b'


def test_only_local_paths_are_made_absolute(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert str(files.absolute('a/../b%20c')) == f'{tmp_path}/b%20c'
  assert str(files.absolute('gs://bucket/run')) == 'gs://bucket/run'


def test_json_comes_back_and_a_byte_order_mark_is_ignored(tmp_path):
  value = {'words': 'Häuser', 'numbers': [1, 2.5, None]}
  files.write_json(tmp_path / 'a.json', value)
  assert files.read_json(tmp_path / 'a.json') == value
  (tmp_path / 'b.json').write_bytes(b'\xef\xbb\xbf' + json.dumps(value).encode())
  assert files.read_json(tmp_path / 'b.json') == value


@pytest.mark.parametrize('content', [b'', b'{"a": 1,\n]', b'\xff\xfe{}', b'<html>'])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(UserError, match=r'a\.json.*not JSON'):
    files.read_json(tmp_path / 'a.json')


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
  files.write_text(tmp_path / 'a', 'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    files.write_text(tmp_path / 'a', 'new')
  assert (tmp_path / 'a').read_text() == 'old'
  assert os.listdir(tmp_path) == ['a']


def test_a_written_file_is_readable_by_others_and_keeps_a_link(tmp_path):
  (tmp_path / 'link').symlink_to(tmp_path / 'real')
  files.write_text(tmp_path / 'link', 'x')
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'real').read_text() == 'x'
  mask = os.umask(0)
  os.umask(mask)
  assert stat.S_IMODE((tmp_path / 'real').stat().st_mode) == 0o666 & ~mask


def test_a_device_is_written_to():
  files.write_text('/dev/null', 'x')


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
  with pytest.raises(RuntimeError), files.new_folder(tmp_path / 'out') as folder:
    (folder / 'half').write_text('')
    assert not (tmp_path / 'out').exists()
    raise RuntimeError
  assert not list(tmp_path.iterdir())
  with files.new_folder(tmp_path / 'deep' / 'out') as folder:
    (folder / 'a').write_text('x')
  assert (tmp_path / 'deep' / 'out' / 'a').read_text() == 'x'
  with pytest.raises(UserError, match='exists already'), files.new_folder(tmp_path / 'deep'):
    pass


@pytest.mark.parametrize(
  'url, words',
  [('https://example.com/a.json', 'download it'), ('ftp://example.com/a', 'expected a local path')],
)
def test_an_address_that_is_no_path_is_refused_by_name(url, words):
  with pytest.raises(UserError, match=f'{url}: .*{words}'):
    files.absolute(url)
