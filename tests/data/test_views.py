"""Some of the records of a source, and its texts alone."""

import json

import numpy as np
import pytest

from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig, open_sources
from tuna_jax.data.sources import SourceConfig, open_source

TALK = [{'from': 'human', 'value': '<image>\nWhat is it?'}, {'from': 'gpt', 'value': 'a cat'}]


@pytest.fixture
def mixture(tmp_path):
  """A mixture of captions and questions, whose pictures are not there."""
  captions = [{'image': 'gone.png', 'caption': f'cat {n}'} for n in range(9)]
  asked = [{'image': 'gone.png', 'conversations': TALK}]
  for name, lines in (('captions', captions), ('asked', asked)):
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  rows = [
    {'path': 'captions.jsonl', 'task': 't2i', 'weight': 3.0},
    {'path': 'asked.jsonl', 'task': 'vqa'},
  ]
  (tmp_path / 'my.json').write_text(json.dumps(rows))
  return tmp_path / 'my.json'


def test_rows_may_name_their_records(mixture):
  np.save(mixture.parent / 'few.npy', [7, 2])
  row = SourceConfig(
    str(mixture.parent / 'captions.jsonl'), 't2i', records=str(mixture.parent / 'few.npy')
  )
  source = open_source(row, MediaConfig())
  assert [source.raw(i)['caption'] for i in range(len(source))] == ['cat 7', 'cat 2']
  assert source.where(0).endswith('captions.jsonl:8')


def test_numbers_of_another_source_are_refused(mixture):
  np.save(mixture.parent / 'few.npy', [9])
  row = SourceConfig(
    str(mixture.parent / 'captions.jsonl'), 't2i', records=str(mixture.parent / 'few.npy')
  )
  with pytest.raises(UserError, match='0 to 8'):
    open_source(row, MediaConfig())


def test_a_decoder_is_pretrained_on_captions_and_questions_where_there_is_no_text(mixture):
  config = DataConfig(mixture=str(mixture), phases=((0.0, (('text', 1.0),)),))
  captions, asked = open_sources(config)
  assert (captions.task, captions.weight, asked.weight) == ('text', 3.0, 1.0)
  texts = lambda source, i: [turn['value'] for turn in source[i]['conversations']]
  assert texts(captions, 4) == ['Describe the image.', 'cat 4']
  assert texts(asked, 0) == ['What is it?', 'a cat']


def test_a_phase_that_finds_its_tasks_is_as_it_was(mixture):
  config = DataConfig(mixture=str(mixture), phases=((0.0, (('text', 0.1), ('t2i', 0.9))),))
  assert [source.task for source in open_sources(config)] == ['t2i', 'vqa']
