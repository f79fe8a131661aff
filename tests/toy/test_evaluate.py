"""The score table of the rendered world."""

import pytest

from tests.evals.small import HOW, N, generator
from tuna_jax.toy import evaluate


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


def test_targets_of_the_fast_size_are_lower():
  tiny, fast = evaluate.TARGETS['tiny'], evaluate.TARGETS['fast']
  assert all(fast[name] < tiny[name] for name in tiny)
