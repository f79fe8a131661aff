"""The pipeline: one sequence of batches, whatever the hosts, the threads and the interruptions."""

import json
import logging
import re

import jax
import numpy as np
import pytest
from PIL import Image
from tuna_jax.configs import mixtures

from tuna_jax import batch as batch_lib
from tuna_jax.config import UserError
from tuna_jax.data import pipeline, tasks
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig, open_sources, phases_of, texts
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.tokenizer import Tokenizer

SIZES = (4, 160, 64, 4, 3)
TASKS = tasks.TaskConfig(system=None)
ALL = ((0.0, tuple((task, 1.0) for task in tasks.TASKS)),)
TOKENIZER = Tokenizer.train(texts(DataConfig(tasks=TASKS), limit=30), 384)


def encode(pixels):
  """A stand-in encoder: the mean colour of each cell's first frame."""
  n, f, h, w, _ = pixels.shape
  cells = pixels[:, ::4].reshape(n, 1 + (f - 1) // 4, h // 16, 16, w // 16, 16, 3)
  return cells.mean((3, 5)).astype(np.float32)


def make(phases=ALL, *, rows=None, seed=5, sizes=SIZES, steps=None, encoder=encode, **config):
  config = DataConfig(**{'phases': phases, 'tasks': TASKS, 'prefetch': 0, 'size': 500, **config})
  return Pipeline(
    config,
    TOKENIZER,
    encode=encoder,
    strides=(4, 16),
    sizes=sizes,
    seed=seed,
    rows=rows,
    steps=steps,
  )


def take(data, n):
  return [next(data) for _ in range(n)]


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_task_makes_valid_batches():
  data = make()
  for batch in take(data, 12):
    batch_lib.check(batch)
  assert set(data.counts()['examples']) == set(tasks.TASKS)


@pytest.mark.parametrize(
  'options', [{'prefetch': 2}, {'threads': 3}, {'prefetch': 1, 'threads': 2}]
)
def test_background_reading_changes_nothing(options):
  data = make(**options)
  assert all(map(same, take(make(), 5), take(data, 5)))
  data.close()


def test_another_seed_is_another_sequence():
  assert not same(next(make(seed=1)), next(make(seed=2)))


@pytest.mark.parametrize(
  'options', [{}, {'prefetch': 2}, {'look_ahead': 0}, {'look_ahead': 11, 'prefetch': 2}]
)
def test_a_restored_pipeline_gives_the_identical_next_batch(options):
  whole, first = make(**options), make(**options)
  expected = take(whole, 7)
  take(first, 4)
  state = json.loads(json.dumps(first.state()))
  second = make(**options)
  second.restore(state)
  assert all(map(same, take(second, 3), expected[4:]))
  for data in (whole, first, second):
    data.close()


def test_a_used_pipeline_can_be_set_back():
  data = make(prefetch=2)
  expected = take(data, 1)
  state = data.state()
  expected = take(data, 3)
  data.restore(state)
  assert all(map(same, take(data, 3), expected))
  data.close()


def test_two_hosts_read_what_one_host_reads():
  whole, low, high = make(), make(rows=range(2)), make(rows=range(2, 4))
  for _ in range(4):
    parts = (next(low), next(high))
    assert same(next(whole), batch_lib.Batch(*map(np.concatenate, zip(*parts, strict=True))))


def test_one_host_continues_what_two_began():
  whole, low, high = make(), make(rows=range(2)), make(rows=range(2, 4))
  for data in (whole, low, high):
    take(data, 3)
  again = make()
  again.restore(pipeline.merge_states([high.state(), low.state()]))
  third = make(rows=[0, 2])  # not a run, as on a pod
  third.restore(again.state())
  expected = next(whole)
  assert same(next(again), expected)
  assert np.array_equal(next(third).tokens, expected.tokens[[0, 2]])


@pytest.mark.parametrize(
  'change, words',
  [
    ({'seed': 6}, 'seed=5'),
    ({'look_ahead': 1}, 'look_ahead=3'),
    ({'sizes': (8, *SIZES[1:])}, 'batch=4'),
  ],
)
def test_a_position_of_another_run_is_refused(change, words):
  with pytest.raises(ValueError, match=words):
    make(**change).restore(make().state())


@pytest.mark.parametrize(
  'change', [{'seed': 6}, {'look_ahead': 1}, {'sizes': (8, *SIZES[1:])}, {'sizes': (1, *SIZES[1:])}]
)
def test_a_position_of_another_run_that_is_allowed_passes_over_what_was_drawn(change):
  before, after = make(), make(**change)
  take(before, 3)
  state = before.state()
  after.restore(state, moved=True)
  found = after.state()
  drawn = 4 * max(row[0] for row in state['next'])
  assert found['step'] == 3
  assert {-(-drawn // found['batch'])} == {row[0] for row in found['next']}
  assert {-1} == {k for row in found['next'] for k in row[1:]}
  batch_lib.check(next(after))


def test_positions_join_where_hosts_hold_rows_by_turns_and_name_one_that_is_missing():
  states = [make(rows=rows).state() for rows in ([0, 2], [1, 2])]
  with pytest.raises(ValueError, match='none holds row 3'):
    pipeline.merge_states(states)
  assert pipeline.merge_states([*states, make(rows=[3]).state()]) == make().state()


def test_states_of_different_steps_do_not_join():
  low, high = make(rows=range(2)), make(rows=range(2, 4))
  next(low)
  with pytest.raises(ValueError, match='do not join'):
    pipeline.merge_states([low.state(), high.state()])


class Listened:
  """A source that notes which of its records are read."""

  def __init__(self, source):
    self.source, self.read = source, []
    self.task, self.name, self.where = source.task, source.name, source.where

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    self.read.append(index)
    return self.source[index]


@pytest.mark.parametrize('look_ahead', [0, 3, 11])
def test_records_are_packed_once_and_wait_for_few_batches(look_ahead):
  """Within an epoch a record that is read is packed once, or waits; the oldest is packed next."""
  phases = ((0.0, (('caption', 1.0),)),)
  data = make(phases, sizes=(2, 160, 64, 4, 3), size=5000, look_ahead=look_ahead)
  data.sources[0] = source = Listened(data.sources[0])
  packed, rows = 0, data.state()['next']
  for _ in range(20):
    batch = next(data)
    batch_lib.check(batch)
    packed += batch.segment.max(1).sum()
    before, rows = rows, data.state()['next']
    for old, new in zip(before, rows, strict=True):
      assert old[1] == -1 or old[1] not in new[1:]
      assert new[1:] == sorted(new[1:]) and len(new) == 2 + look_ahead and max(new[1:]) < new[0]
  waiting = sum(k >= 0 for row in rows for k in row[1:])
  assert packed + waiting == len(source.read) == len(set(source.read)) == sum(r[0] for r in rows)


def test_pictures_that_do_not_stay_in_memory_are_read_again_and_change_nothing():
  assert all(map(same, take(make(look_ahead=7), 5), take(make(look_ahead=7, pool_mb=0), 5)))


def stream(phases, **config):
  """(the sources, the first phase) of the rendered world."""
  config = DataConfig(phases=phases, tasks=TASKS, **config)
  sources = open_sources(config)
  return sources, phases_of(config, sources, seed=5, steps=None)[0]


def test_an_epoch_reads_every_record_once_and_the_next_in_another_order():
  _, phase = stream(((0.0, (('text', 1.0),)),), size=37)
  first, second = ([phase.locate(i)[1] for i in range(at, at + 37)] for at in (0, 37))
  assert sorted(first) == sorted(second) == list(range(37)) and first != second


def test_the_mixture_follows_its_weights():
  sources, phase = stream(((0.0, (('text', 3.0), ('caption', 1.0))),), size=500)
  assert [sources[phase.locate(i)[0]].task for i in range(400)].count('text') == 300


def test_a_source_that_no_phase_draws_is_named(caplog, tmp_path):
  rows = [{'path': 'shapes', 'task': task, 'size': 9} for task in ('text', 'caption')]
  (tmp_path / 'my.json').write_text(json.dumps(rows))
  stream(((0.0, (('text', 1.0),)),), mixture=str(tmp_path / 'my.json'))
  assert 'no phase draws caption: its records are not used' in caplog.text


def test_rows_are_not_bound_to_tasks():
  data = make(((0.0, (('text', 1.0), ('caption', 1.0))),), sizes=(2, 160, 64, 4, 3))
  batches = take(data, 6)
  for row in range(2):
    assert len({int(t) for b in batches for t in b.task[row][b.segment[row] > 0]}) == 2


def test_a_task_joins_at_its_step():
  phases = ((0.0, (('text', 1.0),)), (0.5, (('caption', 1.0),)), (7.0, (('t2i', 1.0),)))
  data = make(phases, steps=8)
  kinds = [{int(t) for t in b.task[b.segment > 0]} for b in take(data, 9)]
  text, caption, t2i = (tasks.TASKS[name].number for name in ('text', 'caption', 't2i'))
  assert kinds == [{text}] * 4 + [{caption}] * 3 + [{t2i}] * 2


def test_restoring_works_on_both_sides_of_a_phase():
  phases = ((0.0, (('text', 1.0),)), (3.0, (('caption', 1.0),)))
  expected = take(make(phases), 6)
  for at in (2, 3, 4):
    first, second = make(phases), make(phases)
    take(first, at)
    second.restore(first.state())
    assert all(map(same, take(second, 6 - at), expected[at:]))


def test_a_share_of_the_run_needs_its_length():
  with pytest.raises(ValueError, match='number of steps'):
    make(((0.0, (('text', 1.0),)), (0.5, (('caption', 1.0),))))


@pytest.mark.parametrize(
  'phases', [((0.5, ()),), ((0.0, ()), (9.0, ()), (0.5, ())), ((0.0, ()), (0.0, ()))]
)
def test_phases_out_of_order_are_refused(phases):
  with pytest.raises(ValueError, match='phases start at'):
    DataConfig(phases=phases)


@pytest.mark.parametrize('name', mixtures.MIXTURES)
def test_the_named_mixtures_read(name):
  next(make(mixtures.MIXTURES[name], steps=10))


def test_text_alone_needs_no_encoder_and_no_visual_space():
  batch = next(make(mixtures.DECODER, sizes=(2, 128, 0, 0, 3), encoder=None))
  assert batch.latents.size == 0 and np.all(batch.slot == -1)


def test_pictures_without_an_encoder_are_refused():
  with pytest.raises(ValueError, match='encoder'):
    next(make(encoder=None))


def test_look_ahead_fills_rows_better():
  fills = []
  for look_ahead in (0, 4):
    data = make(look_ahead=look_ahead)
    take(data, 25)
    fills.append(data.counts()['fill']['L'])
  assert fills[1] > fills[0] + 0.02


def test_latents_lie_where_their_cells_say():
  data = make(((0.0, (('caption', 1.0),)),), sizes=(1, 400, 64, 4, 3))
  batch = next(data)
  first = data.sources[0][stream(((0.0, (('caption', 1.0),)),), size=500)[1].locate(0)[1]]
  np.testing.assert_array_equal(
    batch.latents[0, :16], encode(first['image'][None, None])[0].reshape(16, 3)
  )


# ---- records that cannot be used


@pytest.fixture
def album(tmp_path):
  """200 records of one picture, lines 10, 20 and 30 broken in three ways; and the mixture file."""
  Image.new('RGB', (16, 16), 'red').save(tmp_path / 'red.png')
  lines = [json.dumps({'image': 'red.png', 'caption': f'a red square {i}'}) for i in range(200)]
  lines[9], lines[19] = '{broken', json.dumps({'image': 'gone.png', 'caption': 'x'})
  lines[29] = json.dumps({'image': 'red.png', 'caption': ''})
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'a.jsonl', 'task': 'caption'}]))
  return {'phases': (), 'mixture': str(tmp_path / 'm.json'), 'media': MediaConfig(image_size='16')}


def test_unusable_records_are_counted_named_and_skipped(album, caplog):
  data = make(**album, max_skip_share=0.02)
  with caplog.at_level(logging.WARNING):
    take(data, 40)
  counts = data.counts()
  assert list(counts['skipped'].values()) == [3]
  for line, why in ((10, 'not JSON'), (20, 'gone.png'), (30, 'caption is empty')):
    assert any(f'a.jsonl:{line}: ' in text and why in text for text in counts['skipped_first'])
    assert any(f'a.jsonl:{line}: ' in message for message in caplog.messages)


def talks(tmp_path, answers, **config):
  """A pipeline over one conversation for each answer."""
  turns = lambda answer: [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': answer}]
  lines = [json.dumps({'conversations': turns(answer)}) for answer in answers]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'a.jsonl', 'task': 'text'}]))
  return make((), mixture=str(tmp_path / 'm.json'), **config)


@pytest.mark.parametrize('threads', [1, 4])
def test_many_unusable_records_of_one_batch_are_all_counted_and_the_first_ten_named(
  tmp_path, caplog, threads
):
  good = json.dumps(
    {'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}]}
  )
  (tmp_path / 'a.jsonl').write_text('\n'.join(['{broken'] * 25 + [good] * 25))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'a.jsonl', 'task': 'text'}]))
  data = make((), mixture=str(tmp_path / 'm.json'), max_skip_share=0.9, threads=threads, prefetch=0)
  with caplog.at_level(logging.WARNING):
    take(data, 8)
  counts = data.counts()
  assert list(counts['skipped'].values()) == [25] and len(counts['skipped_first']) == 10
  assert [int(m.split('record ')[1].split()[0]) for m in caplog.messages] == list(range(1, 11))
  assert all('a.jsonl:' in message for message in caplog.messages)


def test_too_many_unusable_records_stop_the_run(album):
  with pytest.raises(ValueError, match='3 of its 200 records.*max_skip_share=0.01.*a.jsonl:'):
    take(make(**album), 40)


def test_a_share_of_one_does_not_loop_for_ever(album, tmp_path):
  (tmp_path / 'a.jsonl').write_text('x1\nx2\n')
  with pytest.raises(ValueError, match='2 of its 2'):
    next(make(**album, max_skip_share=1.0))


def test_examples_larger_than_a_row_are_counted_apart_and_do_not_stop_the_run(tmp_path, caplog):
  data = talks(tmp_path, ['b'] * 80 + ['b' * 500] * 20, sizes=(2, 128, 0, 0, 3))
  with caplog.at_level(logging.WARNING):
    take(data, 30)
  counts = data.counts()
  assert counts['skipped'] == {} and list(counts['too_large'].values()) == [20]
  assert any(re.search(r'a.jsonl:\d+: the example needs L=\d+', m) for m in caplog.messages)


def test_a_source_of_which_most_is_larger_than_a_row_stops_the_run(tmp_path):
  data = talks(tmp_path, ['b'] * 20 + ['b' * 500] * 80, sizes=(2, 128, 0, 0, 3))
  with pytest.raises(UserError, match='of its 100 records are too large for a row'):
    take(data, 30)


def test_a_phase_without_a_source_is_explained(album):
  with pytest.raises(ValueError, match='no source for any task.*edit.*caption'):
    make(**{**album, 'phases': ((0.0, (('edit', 1.0),)),)})


def test_a_phase_task_without_a_source_is_left_out_loudly(album, caplog):
  with caplog.at_level(logging.WARNING):
    make(**{**album, 'phases': ((0.0, (('edit', 1.0), ('caption', 1.0))),)})
  assert 'no source for edit' in caplog.text


# ---- the encoder


def test_a_wrong_encoder_is_explained():
  with pytest.raises(ValueError, match='expected 16 cells of 3 channels'):
    next(make(((0.0, (('t2i', 1.0),)),), encoder=lambda x: np.zeros((len(x), 1, 4, 4, 7))))


def test_a_jitted_encoder_and_a_placement_fit_in():
  batch = next(
    Pipeline(
      DataConfig(phases=ALL, tasks=TASKS, size=50),
      TOKENIZER,
      encode=jax.jit(lambda x: x[:, ::4, ::16, ::16] * 1.0),
      strides=(4, 16),
      sizes=SIZES,
      seed=0,
      put=jax.device_put,
    )
  )
  assert isinstance(batch.tokens, jax.Array) and batch.sizes == SIZES
