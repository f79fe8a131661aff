"""Scores on records of one's own, in training and held out."""

import copy
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.evals.small import HOW, N, generator
from tuna_jax.evals import own_data
from tuna_jax.sample.image import Usual


@pytest.fixture(scope='module')
def album(tmp_path_factory):
  """Pictures of one colour each, named by it, with mixture files of train and test."""
  root = tmp_path_factory.mktemp('own')
  colours = {'red': (255, 0, 0), 'green': (0, 200, 0), 'blue': (0, 0, 255), 'pink': (255, 150, 200)}
  for name, colour in colours.items():
    Image.fromarray(np.full((64, 64, 3), colour, np.uint8)).save(root / f'{name}.png')
  for split, names in (('train', ('red', 'green')), ('test', ('blue', 'pink'))):
    rows = []
    for task in ('t2i', 'caption', 'vqa'):
      lines = [
        json.dumps({'image': f'{name}.png', 'caption': name, 'conversations': talk(name)})
        for name in names
      ]
      (root / f'{split}.{task}.jsonl').write_text('\n'.join(lines) + '\n')
      rows.append({'path': f'{split}.{task}.jsonl', 'root': '.', 'task': task, 'weight': 1.0})
    (root / f'{split}.json').write_text(json.dumps(rows))
  return root


def talk(name):
  asked = (('<image>\nWhich colour?', name), ('Is it red?', 'yes' if name == 'red' else 'no'))
  return [
    {'from': who, 'value': text} for pair in asked for who, text in zip(('human', 'gpt'), pair)
  ]


def test_records_of_ones_own_are_scored_in_training_and_held_out(album):
  scores = own_data.evaluate(
    generator(), str(album / 'train.json'), str(album / 'test.json'), N, HOW, say=lambda _: None
  )
  asked = ('captions', 'caption_words', 'questions', 'pictures')
  assert list(scores.rows) == [name for name in own_data.TITLES if name.startswith(asked)]
  assert all(
    'training items' in scores.titles[name] for name in scores.training if name in scores.rows
  )
  assert {name: row.n for name, row in scores.rows.items() if 'questions' in name} == {
    'questions_train': 4,
    'questions_test': 4,
  }
  assert all(row.target is None and row.ceiling == 1.0 for row in scores.rows.values())
  assert scores.rows['captions_train'].floor == 0.5 and scores.rows['captions_test'].floor == 0.0


def test_edits_are_drawn_as_the_run_says_and_shown_with_what_they_change(album):
  record = {'raw_image': 'red.png', 'out_image': 'blue.png', 'instruction': 'make it blue'}
  (album / 'edit.jsonl').write_text(json.dumps(record))
  (album / 'edits.json').write_text(json.dumps([{'path': 'edit.jsonl', 'task': 'edit'}]))
  own = copy.copy(generator())
  own.usual = Usual(guidance=1.0, points=2)
  edits = str(album / 'edits.json')
  scores = own_data.evaluate(own, edits, edits, N, say=lambda _: None, splits=('test',))
  assert list(scores.rows) == ['edits_test', 'edits_own_test'] and scores.rows['edits_test'].n == 1
  assert scores.rows['edits_own_test'].floor == 1.0, 'no other source has this instruction'
  (sample,) = scores.results['edits_test'].samples
  assert list(sample.pictures) == ['before', 'drawn', 'true'] and sample.text == 'make it blue'
  drawn = own.edit([str(album / 'red.png')], ['make it blue'], seed=0, guidance=1.0, points=2)[0]
  np.testing.assert_array_equal(sample.pictures['drawn'], drawn)


def test_records_that_training_passed_over_are_passed_over(album, tmp_path):
  for path in album.glob('*.png'):
    shutil.copy(path, tmp_path)
  good = {'image': 'red.png', 'caption': 'red', 'conversations': talk('red')}
  bad = [
    '{"image": "red.png", "capt',
    {'image': 'red.png'},
    {**good, 'caption': '\ud800', 'conversations': []},
    {**good, 'caption': None, 'conversations': None},
    {**good, 'image': 'gone.png'},
  ]
  silent = {**good, 'conversations': [{'from': 'gpt', 'value': 'I was not asked.'}]}
  rows = []
  for task in ('t2i', 'caption', 'vqa'):
    lines = [x if isinstance(x, str) else json.dumps(x) for x in [*bad, good, *bad, silent, good]]
    (tmp_path / f'{task}.jsonl').write_text('\n'.join(lines))
    rows.append({'path': f'{task}.jsonl', 'task': task})
  (tmp_path / 'bad.jsonl').write_text('\n'.join(json.dumps(x) for x in bad[1:]))
  (tmp_path / 'train.json').write_text(json.dumps(rows))
  (tmp_path / 'test.json').write_text(json.dumps([{'path': 'bad.jsonl', 'task': 'caption'}]))
  said = []
  scores = own_data.evaluate(
    generator(), str(tmp_path / 'train.json'), str(tmp_path / 'test.json'), N, HOW, said.append
  )
  assert {name: row.n for name, row in scores.rows.items()} == {
    'captions_train': 3,
    'caption_words_train': 3,
    'questions_train': 4,
    'pictures_train': 3,
  }
  assert any('bad.jsonl: no record can be used' in line for line in said)


def test_words_in_common():
  assert own_data.f1('a red cat', 'a red cat') == 1.0
  assert own_data.f1('a dog', 'a red cat') == pytest.approx(2 / 5)
  assert own_data.f1('', 'a red cat') == 0.0
