"""Own data become a training and a held-out mixture that share no picture."""

import json

import numpy as np
import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.sources import open_source, read_mixture
from tuna_jax.small.prepare import _digest, _split, prepare


def draw(path, number):
  path.parent.mkdir(parents=True, exist_ok=True)
  noise = np.random.default_rng(number).integers(0, 255, (16, 16, 3)).astype(np.uint8)
  Image.fromarray(noise).save(path)


def records(mixture):
  found = {}
  for row in read_mixture(mixture):
    source = open_source(row, MediaConfig(image_size='16'))
    found.setdefault(row.task, []).extend(source.raw(i) for i in range(len(source)))
  return found


def pixels(mixture):
  found = set()
  for row in read_mixture(mixture):
    source = open_source(row, MediaConfig(image_size='16'))
    found |= {source[i]['image'].tobytes() for i in range(len(source))}
  return found


@pytest.fixture
def album(tmp_path):
  """30 pictures, each under two names, captioned and asked about."""
  captions, questions = [], []
  for n in range(60):
    draw(tmp_path / 'pictures' / f'{n}.png', n % 30)
    captions.append({'image': f'pictures/{n}.png', 'caption': f'number {n % 30}'})
    talk = [{'from': 'human', 'value': 'Which?'}, {'from': 'gpt', 'value': str(n % 30)}]
    questions.append({'image': f'pictures/{n}.png', 'conversations': talk})
  for name, lines in (('captions', captions), ('questions', questions)):
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  rows = [{'path': 'captions.jsonl', 'task': t} for t in ('t2i', 'caption')]
  rows.append({'path': 'questions.jsonl', 'task': 'vqa', 'weight': 2.0})
  (tmp_path / 'my.json').write_text(json.dumps(rows))
  return tmp_path


def test_no_picture_is_in_both_whatever_its_name_and_task(album, tmp_path):
  train, test = prepare(str(album / 'my.json'), str(tmp_path / 'out'), share=0.3, say=str)
  assert not pixels(train) & pixels(test)
  assert len(pixels(train)) + len(pixels(test)) == 30
  assert {task: len(r) for task, r in records(test).items()} == dict.fromkeys(
    ('t2i', 'caption', 'vqa'), 2 * len(pixels(test))
  )
  assert {row.task: row.weight for row in read_mixture(train)}['vqa'] == 2.0


def test_pictures_of_a_given_test_are_not_trained_on(album, tmp_path):
  row = {'path': 'captions.jsonl', 'task': 'caption', 'records': 'few.npy'}
  np.save(album / 'few.npy', np.arange(5))
  (album / 'test.json').write_text(json.dumps([row]))
  said = []
  train, test = prepare(
    str(album / 'my.json'), str(tmp_path / 'out'), test=str(album / 'test.json'), say=said.append
  )
  assert len(pixels(test)) == 5 and not pixels(train) & pixels(test)
  assert any('30 records' in line for line in said)  # 5 pictures, 2 names, 3 tasks


def test_records_that_cannot_be_used_are_counted_and_named(tmp_path):
  record = {'image': 'https://example.com/a.png', 'caption': 'x'}
  (tmp_path / 'a.jsonl').write_text(json.dumps(record))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'a.jsonl', 'task': 't2i'}]))
  said = []
  with pytest.raises(UserError, match=r'no record to train on; .*a\.jsonl:1: .*download it'):
    prepare(str(tmp_path / 'm.json'), str(tmp_path / 'out'), say=said.append)
  assert said[0].startswith('1 records cannot be used')


def test_a_picture_that_is_none_is_named(tmp_path):
  (tmp_path / 'album').mkdir()
  (tmp_path / 'album' / 'fox.jpg').write_text('no picture')
  (tmp_path / 'album' / 'fox.txt').write_text('a red fox')
  with pytest.raises(UserError, match=r'no record to train on; .*fox\.jpg: not a readable picture'):
    prepare(str(tmp_path / 'album'), str(tmp_path / 'out'), say=str)


def test_a_line_of_metadata_that_is_no_json_is_named(tmp_path):
  draw(tmp_path / '1.png', 1)
  (tmp_path / 'metadata.jsonl').write_text('{"file_name": "1.png", "text": "fox"}\n{fox')
  with pytest.raises(UserError, match=r'metadata\.jsonl:2: '):
    prepare(str(tmp_path), str(tmp_path / 'out'), say=str)


def test_one_picture_is_too_few_and_it_is_said(tmp_path):
  draw(tmp_path / 'red_fox' / '1.png', 1)
  with pytest.raises(UserError, match='no record to train on; .*more pictures are needed'):
    prepare(str(tmp_path), str(tmp_path / 'out'), say=str)


def test_at_most_so_many_pictures_are_used_and_it_is_said(album, tmp_path):
  said = []
  train, _ = prepare(str(album / 'my.json'), str(tmp_path / 'out'), most=7, say=said.append)
  assert len(pixels(train)) == 7 and any('--most' in line for line in said)


@pytest.mark.parametrize('layout', ['beside', 'folders', 'metadata'])
def test_a_folder_of_pictures_with_captions_is_enough(tmp_path, layout):
  album = tmp_path / 'album'
  lines = []
  for n in range(8):
    name = f'red_fox/{n}.png' if layout == 'folders' else f'{n}.png'
    draw(album / name, n)
    if layout == 'beside':
      (album / f'{n}.txt').write_text('red fox\n')
    lines.append(json.dumps({'file_name': name, 'text': 'red fox'}))
  if layout == 'metadata':
    (album / 'metadata.jsonl').write_text('\n'.join(lines))
  train, test = prepare(str(album), str(tmp_path / 'out'), share=0.3, say=str)
  found = records(train), records(test)
  assert set(found[0]) == {'t2i', 'caption'}
  assert {r['caption'] for side in found for rows in side.values() for r in rows} == {'red fox'}
  assert len(found[0]['t2i']) + len(found[1]['t2i']) == 8
  assert len(pixels(train)) == len(found[0]['t2i'])


@pytest.mark.parametrize('layout', ['pairs', 'metadata'])
def test_a_folder_of_pairs_with_instructions_is_enough_for_edits(tmp_path, layout):
  album, lines = tmp_path / 'album', []
  for n in range(6):
    draw(album / f'{n}_before.png', n)
    draw(album / f'{n}_after.jpg', 10 + n)
    if layout == 'pairs':
      (album / f'{n}.txt').write_text('add snow\n')
    pair = {'file_name': f'{n}_before.png', 'edited_file_name': f'{n}_after.jpg'}
    lines.append(json.dumps(pair | {'instruction': 'add snow', 'text': 'a fox'}))
  if layout == 'metadata':
    (album / 'metadata.jsonl').write_text('\n'.join(lines))
  train, test = prepare(str(album), str(tmp_path / 'out'), share=0.3, say=str)
  edits = [r for mixture in (train, test) for r in records(mixture)['edit']]
  assert sorted((r['raw_image'], r['out_image'], r['instruction']) for r in edits) == [
    (f'{n}_before.png', f'{n}_after.jpg', 'add snow') for n in range(6)
  ]
  others = {'t2i', 'caption'} if layout == 'metadata' else set()
  assert set(records(train)) == {'edit'} | others


def test_of_pairs_of_pictures_the_asked_share_is_held_out():
  found = [{i: [_digest(b'%d' % i), _digest(b'-%d' % i)] for i in range(2000)}]
  assert 170 < len(_split(found, 0.1)['test'][0]) < 230


def test_metadata_may_hold_questions(tmp_path):
  album = tmp_path / 'album'
  for n in range(4):
    draw(album / f'{n}.png', n)
  lines = [{'file_name': f'{n}.png', 'question': 'Which?', 'answer': n} for n in range(4)]
  (album / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  train, _ = prepare(str(album), str(tmp_path / 'out'), say=str)
  assert set(records(train)) == {'vqa'}


def test_a_folder_without_texts_says_what_is_expected(tmp_path):
  draw(tmp_path / 'album' / '1.png', 1)
  with pytest.raises(UserError, match=r'NAME\.txt beside NAME\.jpg.*such as red_fox/1\.jpg'):
    prepare(str(tmp_path / 'album'), str(tmp_path / 'out'), say=str)
