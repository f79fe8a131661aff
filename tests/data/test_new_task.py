"""A task is one function and one mixture row: everything else finds it in the table of tasks."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from tuna_jax import losses
from tuna_jax.data import examples, tasks
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig, open_sources, texts
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.segments import Image as Picture
from tuna_jax.data.segments import Text
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.tools import preview
from tuna_jax.train import metrics


@pytest.fixture
def title():
  """The task `title`: a picture, then its title, which is learned."""

  @tasks.task(picture='picture', name='text')
  def title(record, ctx, rng):
    words = (*ctx.tokenizer.encode(record['name']), ctx.tokenizer.eos)
    return [Picture(record['picture']), Text(words, loss=True)]

  yield 'title'
  del tasks.TASKS['title']


@pytest.fixture
def config(title, tmp_path):
  Image.new('RGB', (20, 30), 'red').save(tmp_path / 'red.png')
  records = [{'picture': 'red.png', 'name': f'red number {n}'} for n in range(20)]
  records[7]['name'] = ''
  (tmp_path / 'titles.jsonl').write_text('\n'.join(map(json.dumps, records)))
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'titles.jsonl', 'task': title}]))
  return DataConfig(
    str(tmp_path / 'm.json'), media=MediaConfig(image_size='16'), max_skip_share=0.1, prefetch=0
  )


def test_its_texts_train_a_tokenizer_and_its_records_make_batches_and_metrics(config):
  tokenizer = Tokenizer.train(texts(config), 320)
  encode = lambda pixels: np.zeros((len(pixels), 1, 1, 1, 3), np.float32)
  sizes, strides = (2, 64, 8, 8, 3), (4, 16)
  data = Pipeline(config, tokenizer, encode=encode, strides=strides, sizes=sizes, seed=0)
  batch = next(data)
  assert set(data.counts()['examples']) == {'title'} and batch.label_weight.any()
  hidden, head = np.zeros((2, 64, 4), np.float32), np.zeros((4, 320), np.float32)
  found = jax.jit(losses.next_token, static_argnums=(0, 5))(
    lambda h: h @ head, hidden, batch.labels, batch.label_weight, batch.task, len(tasks.TASKS)
  )
  values = metrics.means({'ntp': found})
  assert values['ntp/title'] == values['ntp/all'] == pytest.approx(np.log(320))


def test_check_counts_its_records_and_names_one_that_cannot_be_used(config):
  (source,), said = open_sources(config), []
  found = examples.check(source, len(source), said.append)
  assert (found.read, found.bad, dict(found.sizes)) == (20, 1, {'16x16': 19})
  assert len(said) == 1 and 'titles.jsonl:8: name is empty' in said[0]


def test_the_preview_shows_what_is_learned_of_it(config):
  tokenizer = Tokenizer.train(texts(config), 320)
  (source,) = open_sources(config)
  laid = examples.example(source, 0, tasks.Context(tokenizer), np.random.default_rng(0))
  _, shown = preview.page([('title', laid)], tokenizer).split('<h3>')
  assert shown.count('class="learned"') == len(tokenizer.encode('red number 0')) + 1


def test_a_name_is_given_once(title):
  with pytest.raises(ValueError, match='task title'):
    tasks.task(name='text')(tasks.TASKS[title].plan)
  with pytest.raises(ValueError, match='task text'):
    tasks.task(name='sound')(tasks.TASKS['text'].plan)
