import numpy as np
import pytest

from tuna_jax.lab import balance, verdicts
from tuna_jax.lab.verdicts import Claim

CLAIM = Claim('a', '1', '2', verdicts.READ)


def scores(shares, seeds=3, items=400, start=0):
  """{seed: verdicts} of a row that is right as often as `shares`, the seed's own share added."""
  found = {}
  for seed in range(seeds):
    rng = np.random.default_rng((start, seed))
    share = shares + 0.01 * (seed - 1)
    found[seed] = {t: (rng.random(items) < share).astype(int) for t in ('captions', 'questions')}
  return found


@pytest.mark.parametrize(
  'better, worse, wanted',
  [(0.8, 0.4, verdicts.HOLDS), (0.4, 0.8, verdicts.FAILS), (0.6, 0.6, verdicts.OPEN)],
)
def test_a_claim_is_decided_where_the_interval_of_the_difference_leaves_zero_out(
  better, worse, wanted
):
  found = verdicts.judge(CLAIM, {'1': scores(better), '2': scores(worse, start=1)})
  assert found['verdict'] == wanted


def test_one_seed_decides_nothing_and_a_row_without_runs_is_named():
  rows = {'1': scores(0.9, seeds=1), '2': scores(0.1, seeds=1)}
  assert verdicts.judge(CLAIM, rows)['verdict'] == verdicts.OPEN
  assert verdicts.judge(CLAIM, {'1': rows['1']})['verdict'] == verdicts.MISSING


def test_the_interval_covers_a_true_difference_of_zero_where_seeds_and_items_both_vary():
  rng, missed, rounds = np.random.default_rng(0), 0, 300
  for _ in range(rounds):
    rates = rng.normal(0, 0.3, (1, 60)) + rng.normal(0, 0.03, (3, 1)) + rng.normal(0, 0.5, (3, 60))
    found = verdicts.interval(rates)
    missed += not found.low <= 0 <= found.high
  assert missed / rounds <= 0.07


def test_seeds_that_disagree_widen_the_interval():
  agree = verdicts.interval(np.tile(np.arange(40) % 2, (3, 1)))
  differ = verdicts.interval(np.tile(np.arange(40) % 2, (3, 1)) * np.array([[0.0], [1.0], [2.0]]))
  assert agree.mean == differ.mean
  assert differ.high - differ.low > 2 * (agree.high - agree.low)


def test_a_claim_of_two_parts_needs_both():
  assert verdicts.together([verdicts.HOLDS, verdicts.HOLDS]) == verdicts.HOLDS
  assert verdicts.together([verdicts.HOLDS, verdicts.OPEN]) == verdicts.OPEN
  assert verdicts.together([verdicts.FAILS, verdicts.OPEN]) == verdicts.FAILS


def test_the_representation_is_judged_over_seeds():
  def seed(cascade, fusion, projector):
    layers = lambda score: {'decoder 1': score, 'decoder 2': score - 0.1}
    both = {balance.CASCADE: layers(cascade), balance.FUSION: layers(fusion)}
    branches = {'semantic': 0.45, 'projector': projector}
    return {'reading': both, 'drawing': both, 'branches': branches}

  found = balance.judge([seed(0.8, 0.4, 0.1), seed(0.81, 0.41, 0.6), seed(0.79, 0.39, 0.3)])
  wanted = [verdicts.HOLDS, verdicts.FAILS, verdicts.HOLDS, verdicts.OPEN]
  assert [part['verdict'] for part in found] == wanted
