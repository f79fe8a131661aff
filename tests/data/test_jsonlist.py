"""Lists of JSON: an index finds the elements that a parser finds, and tasks take what is theirs."""

import json
import random

import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data import jsonlist, shards
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord
from tuna_jax.data.sources import SourceConfig, open_source

CONFIG = MediaConfig(image_size='16')
TALK = [{'from': 'human', 'value': '<image>\nwhat?'}, {'from': 'gpt', 'value': 'red "image": no'}]


def written(path, value, **how):
  path.write_text(json.dumps(value, **how), encoding='utf-8')
  return str(path)


def source(path, task, **row):
  return open_source(SourceConfig(str(path), task, **row), CONFIG)


@pytest.mark.parametrize('chunk', [3, 7, 50, 1000])
def test_the_elements_are_those_that_a_parser_finds(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(shards, 'CHUNK', chunk)
  rng, path = random.Random(chunk), tmp_path / 'x.json'
  for _ in range(40):
    records = []
    for _ in range(rng.randrange(1, 6)):
      text = ''.join(rng.choice('ab"\\,[]{}:\n\u00f6') for _ in range(rng.randrange(20)))
      record = {'t': text, 'l': [1, {'x': '"\\'}]} | ({'image': 'a'} if rng.random() < 0.5 else {})
      records.append(rng.choice([record, record, 7, 's,"', [1, [2]]]))
    written(path, records, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)
    found = shards.Shards([str(path)], jsonlist.elements, gap=1)
    assert [json.loads(found.read(i, 1000, '')) for i in range(len(found))] == records
    visual = jsonlist.elements(str(path))['visual'].tolist()
    assert visual == [isinstance(r, dict) and 'image' in r for r in records]


def test_of_llava_s_list_each_task_takes_the_records_that_are_its_own(tmp_path):
  Image.new('RGB', (20, 30), 'red').save(tmp_path / 'red.png')
  said = [{'from': 'human', 'value': 'hi'}, {'from': 'gpt', 'value': 'ho'}]
  seen = {'id': '1', 'image': 'red.png', 'conversations': TALK}
  path = written(tmp_path / 'x.json', [seen, {'id': '2', 'conversations': said}, seen])
  asked, talk = source(path, 'vqa'), source(path, 'text')
  assert len(asked) == 2 and asked[1]['image'].shape == (16, 16, 3)
  assert asked.where(1) == f'{path}[2]'
  assert len(talk) == 1 and talk[0]['conversations'] == said


def test_without_a_picture_in_any_record_each_is_named(tmp_path):
  path = written(tmp_path / 'x.json', [{'conversations': TALK}])
  with pytest.raises(BadRecord, match=r"x\.json\[0\]: no field 'image'"):
    source(path, 'vqa')[0]


def test_fields_of_other_names_and_other_turns_are_read(tmp_path):
  Image.new('RGB', (20, 30), 'red').save(tmp_path / 'red.png')
  turns = [{'role': 'user', 'content': 'what?'}, {'role': 'assistant', 'content': 'red'}]
  path = written(tmp_path / 'x.json', [{'picture': 'red.png', 'messages': turns}])
  renamed = {'image': 'picture', 'conversations': 'messages'}
  record = source(path, 'vqa', fields=renamed)[0]
  assert record['image'].shape == (16, 16, 3)
  assert [t['from'] for t in record['conversations']] == ['human', 'gpt']


def test_lines_in_a_json_file_are_read_as_lines(tmp_path):
  (tmp_path / 'x.json').write_text('\ufeff{"caption": "a"}\n{"caption": "b"}\n')
  assert [source(tmp_path / 'x.json', 't2i').raw(i)['caption'] for i in range(2)] == ['a', 'b']


@pytest.mark.parametrize(
  'text, words', [('[{"a": 1}, {"a"', 'cut off'), ('[ ]', 'no records'), ('[', 'cut off')]
)
def test_lists_that_are_empty_or_cut_off_are_named(tmp_path, text, words):
  (tmp_path / 'x.json').write_text(text)
  with pytest.raises(UserError, match=rf'x\.json: .*{words}'):
    source(tmp_path / 'x.json', 't2i')
