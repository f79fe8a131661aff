"""Parquet: what `datasets` writes is read, and columns are checked before the run."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord
from tuna_jax.data.sources import SourceConfig, open_source

CONFIG = MediaConfig(image_size='16')


def encoded(size=(20, 30)):
  file = io.BytesIO()
  Image.new('RGB', size, 'red').save(file, 'PNG')
  return file.getvalue()


def written(path, rows, features=None, **how):
  table = pa.Table.from_pylist(rows)
  if features:
    described = json.dumps({'info': {'features': features}})
    table = table.replace_schema_metadata({'huggingface': described})
  pq.write_table(table, path, **how)
  return str(path)


def source(path, task, **row):
  return open_source(SourceConfig(str(path), task, **row), CONFIG)


def test_embedded_pictures_are_read_from_any_row_group_of_any_file(tmp_path):
  for n in range(2):
    rows = [{'image': {'bytes': encoded(), 'path': None}, 'caption': f'{n}{k}'} for k in range(5)]
    written(tmp_path / f'x-{n}.parquet', rows, row_group_size=2)
  found = source(tmp_path / 'x-*.parquet', 't2i')
  order = [9, 0, 3, 4, 5, 1]
  assert [found[i]['caption'] for i in order] == ['14', '00', '03', '04', '10', '01']
  assert found[7]['image'].shape == (16, 16, 3)
  assert found.where(7) == f'{tmp_path}/x-1.parquet[2]'


@pytest.mark.parametrize('value', [encoded(), 'red.png', {'bytes': None, 'path': 'red.png'}])
def test_a_picture_is_bytes_a_path_or_both_as_datasets_has_them(tmp_path, value):
  Image.new('RGB', (20, 30), 'red').save(tmp_path / 'red.png')
  path = written(tmp_path / 'x.parquet', [{'image': value, 'caption': 'a'}])
  assert source(path, 't2i')[0]['image'][0, 0].tolist() == [255, 0, 0]


def test_lists_of_pictures_with_turns_of_user_and_assistant_are_conversations(tmp_path):
  pictures = [{'bytes': encoded(), 'path': None}] * 2
  texts = [{'user': 'what?', 'assistant': 'red'}, {'user': 'sure?', 'assistant': 'yes'}]
  path = written(tmp_path / 'x.parquet', [{'images': pictures, 'texts': texts}])
  record = source(path, 'vqa', fields={'image': 'images', 'conversations': 'texts'})[0]
  assert [p.shape for p in record['image']] == [(16, 16, 3)] * 2
  assert [t['value'] for t in record['conversations']] == ['what?', 'red', 'sure?', 'yes']


def test_class_numbers_have_the_names_that_datasets_keeps(tmp_path):
  features = {'label': {'names': ['cat', 'dog'], '_type': 'ClassLabel'}}
  rows = [{'image': encoded(), 'label': n} for n in (1, 0, 7)]
  found = source(
    written(tmp_path / 'x.parquet', rows, features), 't2i', fields={'caption': 'label'}
  )
  assert [found[i]['caption'] for i in range(2)] == ['dog', 'cat']
  with pytest.raises(BadRecord, match=r'x\.parquet\[2\]: class 7: 2 names'):
    found[2]


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
  path = written(tmp_path / 'x.parquet', [{'image': encoded(), 'text': 'a'}])
  with pytest.raises(UserError, match="no column 'caption'; it has image, text.*fields"):
    source(path, 't2i')


def test_a_missing_value_is_one_bad_record(tmp_path):
  rows = [{'image': encoded(), 'caption': c} for c in ('a', None)]
  found = source(written(tmp_path / 'x.parquet', rows), 't2i')
  with pytest.raises(BadRecord, match=r'x\.parquet\[1\]: caption is empty'):
    found[1]


def test_a_file_that_is_no_parquet_is_named(tmp_path):
  (tmp_path / 'x.parquet').write_bytes(b'x' * 2000)
  with pytest.raises(UserError, match=r'x\.parquet: not a readable Parquet'):
    source(tmp_path / 'x.parquet', 't2i')


@pytest.mark.parametrize('fields', [{'captoin': 'text'}, {'caption': 7}])
def test_fields_of_a_row_are_checked(fields):
  with pytest.raises(UserError, match='fields: .*expected names for image, caption'):
    SourceConfig('x.parquet', 't2i', fields=fields)
