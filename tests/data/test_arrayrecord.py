"""Packed records: what is written is read back, whole or not at all."""

import json

import numpy as np
import pytest

from tuna_jax.config import UserError
from tuna_jax.data import arrayrecord
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord
from tuna_jax.data.sources import SourceConfig, open_source

RECORD = {
  'image': b'\x89PNG\0',
  'caption': 'r\u00f6t',
  'conversations': [{'from': 'gpt', 'value': ''}],
  'latents': np.arange(6, dtype=np.float32).reshape(2, 3),
  'n': 7,
  'none': None,
}


def shard(path, *records):
  with arrayrecord.writing(path) as add:
    for record in records:
      add(record)
  return str(path)


def test_a_record_comes_back_as_it_was():
  back = arrayrecord.loads(arrayrecord.dumps(RECORD))
  np.testing.assert_array_equal(back['latents'], RECORD['latents'])
  assert back['latents'].dtype == np.float32
  assert {**back, 'latents': 0} == {**RECORD, 'latents': 0}


def test_shards_of_a_pattern_are_one_source_in_order(tmp_path):
  for n in range(3):
    shard(tmp_path / f'x-{n}.array_record', *({'caption': f'{n}{k}'} for k in range(2)))
  for path in ('x-*.array_record', 'x-{0..2}.array_record'):
    source = open_source(SourceConfig(str(tmp_path / path), 't2i'), MediaConfig())
    assert [source.raw(i)['caption'] for i in range(len(source))] == '00 01 10 11 20 21'.split()


def test_shards_whose_counts_are_known_are_opened_when_they_are_read(tmp_path):
  path = shard(tmp_path / 'x.array_record', {'caption': 'a'}, {'caption': 'b'})
  counts = {'x.array_record': 2, 'y.array_record': 3}
  (tmp_path / arrayrecord.COUNTS).write_text(json.dumps(counts))
  data = arrayrecord.open_files([path, str(tmp_path / 'y.array_record')])
  assert len(data) == 5 and arrayrecord.loads(data[1]) == {'caption': 'b'}


def test_a_shard_that_fails_leaves_nothing(tmp_path):
  with pytest.raises(UserError, match='found object'), arrayrecord.writing(tmp_path / 'x') as add:
    add({'caption': 'a'})
    add({'caption': object()})
  assert not list(tmp_path.iterdir())


def test_records_of_others_are_named(tmp_path):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(tmp_path / 'x.array_record'), 'group_size:1')
  for data in (b'{"caption": 1}', b'\x07', b'\xc1'):
    writer.write(data)
  writer.close()
  source = open_source(SourceConfig(str(tmp_path / 'x.array_record'), 't2i'), MediaConfig())
  for index in range(3):
    with pytest.raises(BadRecord, match=rf'x\.array_record\[{index}\]: not a record that'):
      source.raw(index)
