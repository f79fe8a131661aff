"""Record sources and mixture files."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data import media, shards
from tuna_jax.data.records import BadRecord
from tuna_jax.data.sources import SourceConfig, open_source, read_mixture

CONFIG = media.MediaConfig(image_size='16', video_size='16', frames=5)
TALK = [{'from': 'human', 'value': '<image>\nwhat?'}, {'from': 'gpt', 'value': 'red'}]


@pytest.fixture
def root(tmp_path):
  Image.new('RGB', (20, 30), 'red').save(tmp_path / 'red.png')
  Image.new('RGB', (40, 30), 'blue').save(tmp_path / 'blue.png')
  (tmp_path / 'broken.png').write_bytes(b'not a picture')
  clip = tmp_path / 'clip'
  clip.mkdir()
  for i in range(5):
    Image.new('RGB', (16, 16), (i, 0, 0)).save(clip / f'{i}.png')
  return tmp_path


def jsonl(root, task, *records, config=CONFIG):
  lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
  (root / 'data.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return open_source(SourceConfig(str(root / 'data.jsonl'), task), config)


def world(task, seed=0, size=10):
  return open_source(SourceConfig('shapes', task, seed=seed, size=size), CONFIG)


@pytest.mark.parametrize(
  'task, record, field, shape',
  [
    ('t2i', {'image': 'red.png', 'caption': 'red'}, 'image', (16, 16, 3)),
    ('caption', {'image': 'red.png', 'caption': 'red'}, 'image', (16, 16, 3)),
    ('vqa', {'image': 'red.png', 'conversations': TALK}, 'image', (16, 16, 3)),
    (
      'edit',
      {'raw_image': 'red.png', 'out_image': 'blue.png', 'instruction': 'blue'},
      'out_image',
      (16, 16, 3),
    ),
    ('t2v', {'video': 'clip', 'caption': 'red'}, 'video', (5, 16, 16, 3)),
    ('video_caption', {'video': 'clip', 'caption': 'red'}, 'video', (5, 16, 16, 3)),
    ('video_vqa', {'video': 'clip', 'conversations': TALK}, 'video', (5, 16, 16, 3)),
  ],
)
def test_the_official_records_are_read(root, task, record, field, shape):
  assert jsonl(root, task, record)[0][field].shape == shape


def test_text_records_have_conversations(root):
  assert jsonl(root, 'text', {'conversations': TALK})[0]['conversations'] == TALK


def test_an_edit_s_result_takes_the_size_of_its_source(root):
  wide = media.MediaConfig(image_size='512')
  record = jsonl(
    root, 'edit', {'raw_image': 'red.png', 'out_image': 'blue.png', 'instruction': 'x'}, config=wide
  )[0]
  assert record['out_image'].shape == record['raw_image'].shape == (672, 384, 3)


def test_further_sources_of_an_edit_take_the_size_of_the_first(root):
  wide = media.MediaConfig(image_size='512')
  both = {'raw_image': ['blue.png', 'red.png'], 'out_image': 'red.png', 'instruction': 'x'}
  record = jsonl(root, 'edit', both, config=wide)[0]
  assert {p.shape for p in (*record['raw_image'], record['out_image'])} == {(448, 576, 3)}


def test_pictures_that_are_asked_about_keep_their_own_sizes(root):
  wide = media.MediaConfig(image_size='512')
  both = {'image': ['blue.png', 'red.png'], 'conversations': TALK}
  pictures = jsonl(root, 'vqa', both, config=wide)[0]['image']
  assert [p.shape for p in pictures] == [(448, 576, 3), (672, 384, 3)]


def test_blank_lines_are_no_records_and_keep_line_numbers(root):
  source = jsonl(
    root,
    't2i',
    '',
    {'image': 'red.png', 'caption': 'r\u00f6t'},
    '',
    {'image': 'x.png', 'caption': 'b'},
  )
  assert len(source) == 2 and source[0]['caption'] == 'r\u00f6t'
  assert source.where(1).endswith('data.jsonl:4')


@pytest.mark.parametrize(
  'task, record, words',
  [
    ('t2i', {'image': 'gone.png', 'caption': 'a'}, 'gone.png: No such file'),
    ('t2i', {'image': 'broken.png', 'caption': 'a'}, 'broken.png: not a readable picture'),
    ('t2i', {'image': 'red.png', 'caption': '  '}, 'caption is empty'),
    ('t2i', {'image': 'red.png'}, "no field 'caption'; a record of t2i has image, caption"),
    ('t2i', {'image': '../x.png', 'caption': 'a'}, 'leaves the root'),
    ('t2i', {'image': '/etc/x.png', 'caption': 'a'}, 'leaves the root'),
    ('t2v', {'video': ['../x.png'], 'caption': 'a'}, 'leaves the root'),
    ('t2i', {'image': 7, 'caption': 'a'}, 'expected a path, found 7'),
    ('t2i', '{"image": "red.png",', 'not JSON'),
    ('t2i', '[1]', 'expected a JSON object'),
    ('t2i', {'image': ['red.png'], 'caption': 'a'}, 'image: expected one path'),
    ('edit', {'raw_image': [], 'out_image': 'red.png', 'instruction': 'a'}, 'raw_image'),
    ('vqa', {'image': 'red.png', 'conversations': TALK[:1]}, 'no answer'),
  ],
)
def test_a_bad_record_names_file_line_and_reason(root, task, record, words):
  source = jsonl(root, task, {'image': 'red.png'}, record)
  with pytest.raises(BadRecord, match=words) as e:
    source[1]
  assert 'data.jsonl:2' in str(e.value)


def test_a_missing_or_empty_file_is_named(root):
  with pytest.raises(FileNotFoundError, match=r'gone\.jsonl'):
    open_source(SourceConfig(str(root / 'gone.jsonl'), 't2i'), CONFIG)
  (root / 'empty.jsonl').write_text('\n')
  with pytest.raises(ValueError, match='empty.jsonl: no records'):
    open_source(SourceConfig(str(root / 'empty.jsonl'), 't2i'), CONFIG)


@pytest.mark.parametrize('end', ['', '\n', '\n\n'])
def test_lines_are_found_across_the_chunks_of_a_file(root, monkeypatch, end):
  monkeypatch.setattr(shards, 'CHUNK', 7)
  (root / 'data.jsonl').write_text('{"n": 1000}\n\n{"n": 2}\r\n{"n": 333}' + end)
  source = open_source(SourceConfig(str(root / 'data.jsonl'), 'text'), CONFIG)
  assert [source.raw(i)['n'] for i in range(len(source))] == [1000, 2, 333]
  assert source.where(2).endswith('data.jsonl:4') and source.smallest() == 1


_MEMORY = """
import json, sys, resource
from tuna_jax.data.mixture import DataConfig, open_sources, phases_of
path = sys.argv[1]
used = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
before, config = used(), DataConfig(mixture=path)
(source,) = open_sources(config)
(phase,) = phases_of(config, [source], 0, None)
index = phase.locate(12345)[1]
assert source.raw(index)['caption'] == f'caption {index}'
print(len(source), (used() - before) / len(source))
"""


@pytest.mark.slow
def test_a_million_records_take_less_than_a_hundred_bytes_of_memory_each(tmp_path):
  with open(tmp_path / 'x.jsonl', 'w', encoding='utf-8') as file:
    for n in range(1_000_000):
      file.write(f'{{"image": "pictures/{n:08}.jpg", "caption": "caption {n}"}}\n')
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'x.jsonl', 'task': 't2i'}]))
  command = [sys.executable, '-c', _MEMORY, str(tmp_path / 'm.json')]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  count, each = done.stdout.split()
  assert int(count) == 1_000_000 and float(each) < 100


def test_the_world_is_a_source():
  source = world('t2i', seed=3)
  assert len(source) == 10 and source[4]['image'].dtype == np.uint8
  np.testing.assert_array_equal(source[4]['image'], world('t2i', seed=3)[4]['image'])


def test_a_prepared_tfds_directory_is_a_source(tmp_path):
  from tuna_jax.toy.tfds_builder import Shapes, ShapesConfig

  for task in ('vqa', 't2v'):
    builder = Shapes(
      data_dir=tmp_path, config=ShapesConfig(name=f'few_{task}', task=task, train=2, test=1)
    )
    builder.download_and_prepare()
    source = open_source(
      SourceConfig(f'tfds:{builder.data_path}', task), media.MediaConfig('64', '64', 9)
    )
    made, field = world(task), 'image' if task == 'vqa' else 'video'
    known = {made[i][field].tobytes(): made[i] for i in range(2)}  # the builder shuffles
    for i in range(2):
      record = source[i]
      assert record[field].tobytes() in known
      for name in ('caption', 'conversations'):
        assert record.get(name) == known[record[field].tobytes()].get(name)


def test_mixture_paths_start_at_the_file(tmp_path):
  rows = [
    {'path': 'a.jsonl', 'root': 'pictures', 'task': 't2i', 'weight': 2},
    {'path': 'shapes', 'task': 'vqa'},
    {'path': 'tfds:world', 'task': 'edit'},
    {'path': '/b.jsonl', 'task': 'text'},
  ]
  (tmp_path / 'm.json').write_text(json.dumps(rows))
  here = str(tmp_path)
  assert read_mixture(tmp_path / 'm.json') == (
    SourceConfig(f'{here}/a.jsonl', 't2i', f'{here}/pictures', 2.0),
    SourceConfig('shapes', 'vqa'),
    SourceConfig(f'tfds:{here}/world', 'edit'),
    SourceConfig('/b.jsonl', 'text'),
  )


@pytest.mark.parametrize(
  'row, words',
  [
    ({'path': 'a', 'task': 't2l'}, "row 1: unknown task 't2l'.*nearest is 't2"),
    ({'path': 'a', 'task': 't2i', 'wieght': 1}, "row 1: wieght: no such field.*'weight'"),
    ({'task': 't2i'}, 'row 1: path: missing'),
    ({'path': 'a', 'task': 't2i', 'weight': 0}, 'weight=0'),
    ({'path': 'a', 'task': 't2i', 'weight': '1'}, 'row 1: weight: expected float'),
  ],
)
def test_a_wrong_mixture_row_is_named(tmp_path, row, words):
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'shapes', 'task': 't2i'}, row]))
  with pytest.raises((ValueError, TypeError), match=words):
    read_mixture(tmp_path / 'm.json')


@pytest.mark.parametrize(
  'content, words',
  [('{', 'm.json:1: not JSON'), ('{}', 'expected a list'), ('[]', 'expected a list')],
)
def test_a_mixture_file_that_is_no_list_is_explained(tmp_path, content, words):
  (tmp_path / 'm.json').write_text(content)
  with pytest.raises(ValueError, match=words):
    read_mixture(tmp_path / 'm.json')


def test_home_folders_are_expanded_in_mixtures(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  rows = [
    {'path': '~/a.jsonl', 'root': '~/pictures', 'task': 't2i'},
    {'path': '~a.jsonl', 'task': 't2i'},
  ]
  (tmp_path / 'm.json').write_text(json.dumps(rows))
  home, beside = read_mixture(tmp_path / 'm.json')
  assert (home.path, home.root) == (f'{tmp_path}/home/a.jsonl', f'{tmp_path}/home/pictures')
  assert beside.path == f'{tmp_path}/~a.jsonl'


def test_a_mixture_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match=r'mixture .*gone\.json: no such file'):
    read_mixture(tmp_path / 'gone.json')
