"""The rendered world: its pictures, its sentences, its split and its builder."""

import json
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from tuna_jax.toy import captions, edits, questions, records, scenes, world

MANY = 400
FEW = 40


def some_records(task, split, count=MANY, seed=0):
  return [records.record(task, split, seed, i) for i in range(count)]


def scenes_of(record):
  found = [world.Scene.from_dict(record['scene'])]
  if 'before' in record['scene']:
    found.append(world.Scene.from_dict(record['scene']['before']))
  return found


def sentences(record):
  turns = [turn['value'] for turn in record.get('conversations', [])]
  return [record[name] for name in ('caption', 'instruction') if name in record] + turns


def scene_text(record):
  return json.dumps(record['scene'])


def checksum(value):
  if isinstance(value, np.ndarray):
    return zlib.crc32(value.tobytes())
  return value


@pytest.mark.parametrize('task', records.TASKS)
def test_no_train_record_holds_a_held_out_composition(task):
  for record in some_records(task, 'train'):
    assert not any(map(scenes.unseen, scenes_of(record)))


@pytest.mark.parametrize('task', records.TASKS)
def test_every_test_record_holds_a_held_out_composition(task):
  for record in some_records(task, 'test', FEW):
    assert any(map(scenes.unseen, scenes_of(record)))


def test_no_train_sentence_says_a_held_out_prompt():
  prompts = {p for kind in records.PROMPTS for p in records.prompts(kind)}
  said = {s for task in records.TASKS for r in some_records(task, 'train') for s in sentences(r)}
  assert not prompts & said


def test_train_shows_every_kind_size_place_number_and_motion():
  things = [t for r in some_records('caption', 'train', 2000) for t in scenes_of(r)[0].things]
  assert {t.kind for t in things} == set(world.KINDS)
  assert {(t.kind, t.place) for t in things} == {
    ((c, s), p)
    for c, s in world.KINDS
    for p in world.PLACES
    if (c, s, p) not in scenes.UNSEEN_PLACES
  }
  assert {(t.size, t.colour, t.shape) for t in things} == {
    (z, c, s) for c, s in world.KINDS for z in world.SIZES
  } - scenes.UNSEEN_THINGS
  clips = [t for r in some_records('video_caption', 'train') for t in scenes_of(r)[0].things]
  assert {t.motion for t in clips} == set(world.MOTIONS)
  assert {len(scenes_of(r)[0].things) for r in some_records('caption', 'train', FEW)} == {
    1,
    2,
    3,
    4,
  }


def test_the_held_out_tables_have_their_documented_sizes():
  sizes = {name: len(getattr(scenes, f'UNSEEN_{name}')) for name in ('THINGS', 'PLACES', 'COUNTS')}
  assert sizes == {'THINGS': 8, 'PLACES': 16, 'COUNTS': 15}
  assert 0.08 < len(scenes.UNSEEN_PAIRS) / 780 < 0.15
  assert 0.08 < len(scenes.UNSEEN_MOTIONS) / 200 < 0.15


def test_no_colour_shape_size_place_or_motion_is_held_out_whole():
  for table, width in (('THINGS', 3), ('PLACES', 3), ('COUNTS', 3), ('MOTIONS', 3)):
    rows = getattr(scenes, f'UNSEEN_{table}')
    for axis in range(width):
      counts = {}
      for row in rows:
        counts[row[axis]] = counts.get(row[axis], 0) + 1
      assert max(counts.values()) <= 0.7 * len(rows), (table, counts)


@pytest.mark.parametrize('task', records.TASKS)
def test_a_record_is_a_pure_function_of_its_arguments(task):
  once, again, other = (
    {k: checksum(v) for k, v in records.record(task, 'train', seed, 7).items()}
    for seed in (3, 3, 4)
  )
  assert once == again
  assert once != other


def test_records_are_the_same_in_another_process():
  code = (
    'import zlib; from tuna_jax.toy import records; r = records.record("t2i", "train", 0, 5);'
    'print(r["caption"], zlib.crc32(r["image"].tobytes()))'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  here = records.record('t2i', 'train', 0, 5)
  assert out.stdout.strip() == f'{here["caption"]} {checksum(here["image"])}'


def test_importing_records_needs_neither_jax_nor_tfds():
  code = (
    'import sys; from tuna_jax.toy import records; records.record("t2v", "train", 0, 0);'
    'print(sorted({"jax", "tensorflow", "tensorflow_datasets"} & set(sys.modules)))'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'


# ---- pictures


def test_every_thing_stays_in_its_quadrant_of_latent_cells():
  for shape in world.SHAPES:
    for dx in (-world.JITTER, world.JITTER):
      for dy in (-world.JITTER, world.JITTER):
        thing = world.Thing(shape, 'black', 'large', 'bottom right', dx, dy)
        picture = world.render(world.Scene((thing,)))
        assert (picture[:32] == 255).all() and (picture[:, :32] == 255).all()
        assert (picture[32:, 32:] < 255).any()
        assert (picture[-1] == 255).all() and (picture[:, -1] == 255).all()


def test_no_two_things_look_alike():
  looks = {
    checksum(world.render(world.Scene((world.Thing(s, c, z, p),))))
    for s in world.SHAPES
    for c in world.COLOURS
    for z in world.SIZES
    for p in world.PLACES
  }
  assert len(looks) == 5 * 8 * 2 * 4


def test_a_clip_begins_with_its_picture_and_walks_one_quadrant():
  start = world.Thing('cross', 'red', 'large', 'top left', 1, -1, 'right')
  clip = world.render_clip(world.Scene((start,)))
  end = world.Thing('cross', 'red', 'large', 'top right', 1, -1)
  assert clip.shape == (world.FRAMES, world.SIDE, world.SIDE, 3) and clip.dtype == np.uint8
  assert (clip[0] == world.render(world.Scene((start,)))).all()
  assert (clip[-1] == world.render(world.Scene((end,)))).all()


def test_a_clip_wants_motions():
  with pytest.raises(ValueError, match='motion'):
    world.render_clip(world.Scene((world.Thing('cross', 'red', 'large', 'top left'),)))


# ---- sentences


@pytest.mark.parametrize('task', ['t2i', 'caption', 't2v', 'video_caption'])
@pytest.mark.parametrize('split', scenes.SPLITS)
def test_captions_are_true_and_parse(task, split):
  for record in some_records(task, split, FEW):
    meaning = captions.parse_caption(record['caption'])
    assert meaning.true_of(scenes_of(record)[0].things)


def test_the_canonical_caption_parses_back_to_the_scene():
  for record in some_records('caption', 'train', FEW):
    phrases = captions.parse_caption(record['caption']).phrases
    assert [tuple(vars(p).values())[:4] for p in phrases] == [
      (t.shape, t.colour, t.size, t.place) for t in scenes_of(record)[0].things
    ]


@pytest.mark.parametrize(
  'text',
  [
    '',
    'a red',
    'a red circle and',
    'three red circle',
    'a red circles',
    'a huge red circle',
    'a red circle left of a blue square and a green cross',
    'a red circle at the middle',
  ],
)
def test_what_is_not_a_caption_does_not_parse(text):
  with pytest.raises(ValueError, match='caption|relation'):
    captions.parse_caption(text)


def test_t2i_captions_come_in_every_style():
  captions = ' | '.join(r['caption'] for r in some_records('t2i', 'train'))
  for words in ('three', 'left of', 'above', 'at the top left', 'small', '| a blue square'):
    assert words in captions


def test_the_language_has_few_words():
  said = set()
  for task in records.TASKS:
    for record in some_records(task, 'train', MANY):
      for s in sentences(record):
        said |= set(s.replace('<image>', '').translate({ord(c): None for c in '.,?'}).split())
  assert len(said) < 100  # with bytes and special tokens they fit into a vocabulary of 384


def test_yes_and_no_are_about_equally_often_the_answer():
  answers = [verdict(r) for r in some_records('vqa', 'train', 2000) if r['type'] == 'yesno']
  assert 0.42 < answers.count('yes') / len(answers) < 0.58


def test_captions_name_things_in_reading_order_but_where_they_say_the_places():
  for record in some_records('t2i', 'train', FEW):
    meaning = captions.parse_caption(record['caption'])
    things = scenes_of(record)[0].things
    if meaning.relation:
      assert (
        len({t.place.split()[0] for t in things}) == 1
        or len({t.place.split()[1] for t in things}) == 1
      )
    elif not all(p.place for p in meaning.phrases):
      assert [(p.colour, p.shape) for p in meaning.phrases] == [t.kind for t in things]


def verdict(record):
  return questions.verdict(record['conversations'][-1]['value'])


def test_a_verdict_is_the_longest_name_at_the_end():
  assert questions.verdict('the red circle is top left') == 'top left'
  assert questions.verdict('the red circle moves left') == 'left' == questions.verdict('left')
  assert questions.verdict('a red circle is nowhere, so no') == 'no'
  assert (
    questions.verdict('the red thing') == 'the red thing'
    and questions.verdict('upright') == 'upright'
  )


@pytest.mark.parametrize('task', ['vqa', 'video_vqa'])
def test_conversations_of_train_ask_up_to_twice_nothing_twice_and_every_answer_has_a_verdict(task):
  for split, turns in (('train', {2, 4}), ('test', {2})):
    made = some_records(task, split, FEW)
    assert {len(record['conversations']) for record in made} == turns
    for record in made:
      asked = [t['value'].removeprefix('<image>\n') for t in record['conversations'][::2]]
      assert len(set(asked)) == len(asked)
      assert {questions.verdict(t['value']) for t in record['conversations'][1::2]} <= set(
        questions.VERDICTS
      )


def test_answers_are_true_and_so_is_what_they_say_before_the_verdict():
  seen = set()
  for record in some_records('vqa', 'train', MANY):
    things = scenes_of(record)[0].things
    question, answer = (turn['value'] for turn in record['conversations'][-2:])
    if found := re.search(r'how many (?:(\w+) shapes|(\w+)) are there', question):
      name = found[1] or found[2]
      those = [t for t in things if name in ('shapes', t.colour, captions.PLURAL[t.shape])]
      want = captions.NUMBERS[len(those)]
    elif found := re.search(r'(is there an?|where is the) (\w+) (\w+)\?', question):
      name = found[1]
      those = [t for t in things if t.kind == found.groups()[1:]]
      alike = [t.shape for t in things if t.colour == found[2]]
      want = those[0].place if name.startswith('where') else 'yes' if those else 'no'
    else:
      continue
    seen.add(name)
    assert verdict(record) == want
    if name != 'shapes':
      listed = alike if name.startswith('is there') else [t.place for t in those]
      assert answer.split(', so ')[0].endswith(f' {" and ".join(listed) or "nowhere"}')
  assert {'shapes', 'is there a', 'where is the', 'red', 'circles'} <= seen


def test_relations_are_answered_by_the_halves_that_the_two_things_stand_in():
  asked = 0
  for record in some_records('vqa', 'train', MANY):
    question, answer = (
      turn['value'].removeprefix('<image>\n') for turn in record['conversations'][-2:]
    )
    if found := re.fullmatch(f'is the (.+) ({"|".join(captions.RELATIONS)}) the (.+)\\?', question):
      a, b = (
        next(t for t in scenes_of(record)[0].things if ' '.join(t.kind) == found[n]) for n in (1, 3)
      )
      axis = found[2] in ('left of', 'right of')
      true = captions.holds(found[2], a.center, b.center)
      assert answer == (
        f'{found[1]} {a.place.split()[axis]} and {found[3]} {b.place.split()[axis]}, '
        f'so {"yes" if true else "no"}'
      )
      asked += 1
  assert asked > 5


def test_all_question_and_edit_types_occur():
  assert {r['type'] for r in some_records('vqa', 'train', FEW)} == set(questions.QUESTIONS)
  assert {r['type'] for r in some_records('video_vqa', 'train', FEW)} == set(
    questions.CLIP_QUESTIONS
  )
  assert {r['type'] for r in some_records('edit', 'train', FEW)} == set(edits.EDITS)


def test_an_edit_changes_at_most_one_thing_and_keeps_the_others_to_the_pixel():
  for record in some_records('edit', 'train', FEW):
    after, before = scenes_of(record)
    assert len(set(after.things) ^ set(before.things)) in (1, 2)
    assert (world.render(before) == record['raw_image']).all()
    assert (world.render(after) == record['out_image']).all()
    assert (record['raw_image'] != record['out_image']).any()


@pytest.mark.parametrize('kind', records.PROMPTS)
def test_prompts_are_many_and_say_what_they_want(kind):
  assert len(records.prompts(kind)) >= 40
  first = records.prompt(kind, 0)
  assert first == records.prompt(kind, len(records.prompts(kind)))
  wanted = first['want']
  assert len(wanted['things']) >= {'one': 1}.get(kind, 2)
  assert (wanted['relation'] is not None) == (kind == 'position')
  json.dumps(first)


@pytest.mark.parametrize(
  'call, near',
  [
    (lambda: records.record('captoin', 'train', 0, 0), 'caption'),
    (lambda: records.record('caption', 'tets', 0, 0), 'test'),
    (lambda: records.prompt('counts', 0), 'count'),
    (
      lambda: world.Scene.from_dict(
        {'things': [{'shape': 'cirle', 'colour': 'red', 'size': 'large', 'place': 'top left'}]}
      ),
      'circle',
    ),
  ],
)
def test_a_wrong_name_is_answered_with_the_nearest(call, near):
  with pytest.raises(ValueError, match=f'nearest is {near!r}'):
    call()


# ---- the builder


@pytest.mark.parametrize('task', ['vqa', 'edit', 't2v'])
def test_the_builder_writes_and_reads_the_records_without_tensorflow(task, tmp_path):
  from tuna_jax.toy.tfds_builder import SEED, Shapes, ShapesConfig, decode

  config = ShapesConfig(name=f'{task}_few', task=task, train=3, test=2)
  builder = Shapes(data_dir=tmp_path, config=config)
  builder.download_and_prepare()
  for split, count in (('train', 3), ('test', 2)):
    rows = [decode(row) for row in builder.as_data_source(split)]
    made = [records.record(task, split, SEED, i) for i in range(count)]
    for row, record in zip(sorted(rows, key=scene_text), sorted(made, key=scene_text), strict=True):
      assert row.keys() == record.keys()
      assert all(np.array_equal(row[name], record[name]) for name in row)
  assert 'tensorflow' not in sys.modules
