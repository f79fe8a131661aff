"""A tiny trained run is scored from the command line, in the rendered world and on records of one's
own.
"""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from tests import shrink
from tuna_jax.cli.evaluate import find_run
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.evals import evaluate, mixture
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.sample.generate import Drawing, Generator
from tuna_jax.sample.image import Guidance
from tuna_jax.train import checkpoint

HOW = Drawing(Guidance(1.0), 2, 1.0)
N = 3


@functools.cache
def generator():
  """Random weights: everything it says and draws is wrong."""
  config = shrink.stage('stage3')
  vae_config, vae_params = checkpoint.load_vae(config.vae)
  return Generator(
    config.model,
    shrink.randomise(tuna_shapes(config.model), 1),
    vae_params,
    Tokenizer.from_dir(config.tokenizer),
    vae_config=vae_config,
    tasks=config.data.tasks,
    media=MediaConfig('64', '64', 9),
    batch_size=12,
  )


@pytest.fixture(scope='module')
def world_scores():
  said = []
  return evaluate.evaluate(generator(), N, HOW, say=said.append), said


@pytest.mark.slow
def test_the_table_has_its_nine_rows_in_order(world_scores):
  scores, said = world_scores
  assert list(scores.rows) == list(evaluate.TITLES) == list(evaluate.TARGETS['tiny'])
  assert all(row.n == N for row in scores.rows.values())
  assert len(said) == len(scores.seconds) == 6


@pytest.mark.slow
def test_the_ceiling_of_every_row_is_the_judges_verdict_on_the_truth(world_scores):
  scores, _ = world_scores
  assert all(row.ceiling == 1.0 for row in scores.rows.values())


@pytest.mark.slow
def test_random_weights_score_nothing(world_scores):
  scores, _ = world_scores
  drawn = ('captions', 'one', 'two', 'count', 'position', 'edits', 'clips')
  assert all(scores.rows[name].score == 0 for name in drawn)


@pytest.mark.slow
def test_every_row_that_draws_says_what_its_vae_can_show(world_scores):
  scores, _ = world_scores
  assert set(scores.rebuilt) == {'one', 'two', 'count', 'position', 'edits', 'clips'}


@pytest.fixture(scope='module')
def own_data(tmp_path_factory):
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


def test_records_of_ones_own_are_scored_in_training_and_held_out(own_data):
  scores = evaluate.evaluate_mixture(
    generator(),
    str(own_data / 'train.json'),
    str(own_data / 'test.json'),
    N,
    HOW,
    say=lambda _: None,
  )
  assert list(scores.rows) == list(mixture.TITLES)
  assert {name: row.n for name, row in scores.rows.items() if 'questions' in name} == {
    'questions_train': 4,
    'questions_test': 4,
  }
  assert all(row.target is None and row.ceiling == 1.0 for row in scores.rows.values())
  assert scores.rows['captions_train'].floor == 0.5 and scores.rows['captions_test'].floor == 0.0


def test_words_in_common():
  assert mixture.f1('a red cat', 'a red cat') == 1.0
  assert mixture.f1('a dog', 'a red cat') == pytest.approx(2 / 5)
  assert mixture.f1('', 'a red cat') == 0.0


def test_the_nearest_picture_is_the_own_one_in_spite_of_noise():
  rng = np.random.default_rng(0)
  gallery = rng.integers(0, 200, (5, 64, 64, 3)).astype(np.uint8)
  noisy = [(x + rng.integers(0, 40, x.shape)).astype(np.uint8) for x in gallery]
  assert mixture.nearest_of(noisy, gallery) == [0, 1, 2, 3, 4]


def a_run(path):
  path.mkdir()
  (path / 'config.json').write_text('{}')


def test_the_last_stage_trained_is_taken(tmp_path):
  a_run(tmp_path / 'stage1')
  a_run(tmp_path / 'stage2')
  assert find_run(str(tmp_path), '') == str(tmp_path / 'stage2')
  assert find_run(str(tmp_path), 'stage1') == str(tmp_path / 'stage1')
  assert find_run(str(tmp_path / 'stage1'), '') == str(tmp_path / 'stage1')


def test_a_stage_that_is_not_there_is_named_with_the_nearest(tmp_path):
  a_run(tmp_path / 'stage2')
  with pytest.raises(UserError, match="--stage=stage3: no such run .* nearest is 'stage2'"):
    find_run(str(tmp_path), 'stage3')
  with pytest.raises(UserError, match='no run there; expected stage3 or stage2 or stage1'):
    find_run(str(tmp_path / 'nothing'), '')


def test_targets_are_those_of_the_issue_and_fast_ones_are_lower():
  tiny, fast = evaluate.TARGETS['tiny'], evaluate.TARGETS['fast']
  assert dict(tiny) == {
    'captions': 0.90,
    'questions': 0.92,
    'one': 0.90,
    'two': 0.75,
    'count': 0.75,
    'position': 0.75,
    'edits': 0.75,
    'clips': 0.75,
    'clip_questions': 0.80,
  }
  assert all(fast[name] < tiny[name] for name in tiny)
