"""Rows hold the examples of their phases, or the run says so before it begins."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image
from tuna_jax.configs import common

from tuna_jax.config import UserError
from tuna_jax.data import segments, tasks
from tuna_jax.data.examples import exceeds
from tuna_jax.data.media import BUCKETS
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.tokenizer import Letters, Tokenizer

TEXT = 'make it blue and keep all of the rest as it is, please, thanks'
TOKENIZER = Tokenizer.train([TEXT], 300)


def blank(*size):
  return np.broadcast_to(np.uint8(0), (*size, 3))


def plans(task, media):
  """Plans of a task without text, of every size and number that the published data have."""
  if task in ('t2v', 'video_caption', 'video_vqa'):
    return [[segments.Video(blank(media.frames, *BUCKETS[media.video_size][0]))]]
  counts = {'vqa': (1, 2, 4), 'edit': (2, 3), 'text': ()}.get(task, (1,))
  pictures = [segments.Image(blank(*size)) for size in BUCKETS[media.image_size]]
  return [[picture] * count for picture in pictures for count in counts]


@pytest.mark.parametrize('size', ['2b', '7b', '2b-video', '7b-video'])
@pytest.mark.parametrize('stage', ['stage1', 'stage2', 'stage3'])
def test_published_rows_hold_every_task_of_their_phases(stage, size):
  module = importlib.import_module(f'tuna_jax.configs.{stage}')
  if stage == 'stage1' and size.endswith('video'):
    with pytest.raises(UserError, match='only 2b and 7b of stages 2 and 3'):
      module.get_config(size)
    return
  config = common.from_config_dict(module.get_config(size))
  longest = segments.Text([6] * config.data.tasks.max_text)
  used = {task for _, weights in config.data.phases for task, weight in weights if weight}
  assert used > {'t2i', 'caption'} or stage == 'stage1'
  for task in used:
    for plan in plans(task, config.data.media):
      laid = segments.layout([longest, *plan], Letters(), (4, 16))
      assert not exceeds(laid, config.sizes[1:4]), (task, laid.needs, config.sizes)


def open_pipeline(folder, rows, edits=(TEXT,), answers=(), *, phases=None, **config):
  """Pictures of 512x512 with captions, edits of them from step 3 on, and conversations."""
  Image.new('RGB', (512, 512), 'red').save(folder / 'red.png')
  edits = [{'raw_image': 'red.png', 'out_image': 'red.png', 'instruction': text} for text in edits]
  turns = lambda answer: [{'from': 'human', 'value': 'why?'}, {'from': 'gpt', 'value': answer}]
  records = {
    't2i': [{'image': 'red.png', 'caption': 'red'}] * 3,
    'edit': edits,
    'text': [{'conversations': turns(answer)} for answer in answers],
  }
  records = {task: lines for task, lines in records.items() if lines}
  for task, lines in records.items():
    (folder / f'{task}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  mixture = [{'path': f'{task}.jsonl', 'task': task} for task in records]
  (folder / 'm.json').write_text(json.dumps(mixture))
  phases = phases or ((0, (('t2i', 1.0),)), (3, tuple((task, 0.5) for task in records)))
  task_config = tasks.TaskConfig(system=None, caption_dropout=0.0, **config)
  return Pipeline(
    DataConfig(str(folder / 'm.json'), phases=phases, prefetch=0, tasks=task_config),
    TOKENIZER,
    encode=lambda x: np.zeros((len(x), 1, 32, 32, 4), np.float32),
    strides=(4, 16),
    sizes=(1, *rows, 4),
    seed=0,
    steps=10,
  )


@pytest.mark.parametrize(
  'rows, fields',
  [
    ((2048, 2048, 16), ['--config.length=2176', 'data.media.image_size']),
    ((2048, 1024, 16), ['--config.length=2176 and --config.visual=2048']),
    ((4096, 4096, 1), ['--config.images=2']),
  ],
)
def test_a_task_of_a_later_phase_that_no_row_holds_is_refused_at_the_start(tmp_path, rows, fields):
  with pytest.raises(UserError) as caught:
    open_pipeline(tmp_path, rows)
  length, visual, images = rows
  for words in (
    'edit.jsonl:1: the example of edit needs L=2', 'V=2048, M=2', 'the smallest record',
    f'a row has L={length}, V={visual}, M={images}', 'from step 3 on', *fields,
  ):  # fmt: skip
    assert words in str(caught.value)


def test_rows_that_hold_every_task_are_read(tmp_path):
  data = open_pipeline(tmp_path, (2176, 2048, 16))
  for _ in range(8):
    next(data)
  assert set(data.counts()['examples']) == {'t2i', 'edit'}


def test_texts_longer_than_max_text_are_skipped_and_counted_and_text_alone_may_fill_a_row(tmp_path):
  edits, answers = [TEXT * 40, TEXT, TEXT, TEXT], ['because ' * 60] * 4
  data = open_pipeline(tmp_path, (2304, 2048, 16), edits, answers, max_text=120)
  for _ in range(12):
    next(data)
  counts = data.counts()
  assert [*counts['too_large'].values()] == [1] and counts['skipped'] == {}
  assert 'edit.jsonl:1: its texts take' in counts['skipped_first'][0]
  assert 'max_text=120' in counts['skipped_first'][0]
  assert set(counts['examples']) == {'t2i', 'edit', 'text'}


def test_a_source_whose_texts_are_all_too_long_is_refused_at_the_start(tmp_path):
  with pytest.raises(UserError, match=r'edit.jsonl: no text .*max_text=20.*data.tasks.max_text'):
    open_pipeline(tmp_path, (2304, 2048, 16), [TEXT * 9] * 3, max_text=20)


def test_phases_begin_in_the_order_of_their_steps(tmp_path):
  phases = ((0, (('t2i', 1.0),)), (0.5, (('text', 1.0),)), (2, (('edit', 1.0),)))
  data = open_pipeline(tmp_path, (2176, 2048, 16), answers=['red'], phases=phases)
  kinds = [{*batch.task[batch.segment > 0].tolist()} for batch in (next(data) for _ in range(7))]
  t2i, edit, text = (tasks.TASKS[name].number for name in ('t2i', 'edit', 'text'))
  assert kinds == [{t2i}] * 2 + [{edit}] * 3 + [{text}] * 2
