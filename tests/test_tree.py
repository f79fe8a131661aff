"""Names of leaves, and tables of patterns: nothing is uncovered, nothing is dead."""

import numpy as np
import pytest

from tuna_jax import tree

PARAMS = {
  'decoder': {'layers': {'q_proj': {'kernel': 1, 'bias': 2}}},
  'vision': {'norm': {'scale': 3}},
}


def test_flatten_and_unflatten_are_inverses():
  flat = tree.flatten(PARAMS)
  assert flat == {
    'decoder/layers/q_proj/bias': 2,
    'decoder/layers/q_proj/kernel': 1,
    'vision/norm/scale': 3,
  }
  assert tree.unflatten(flat) == PARAMS
  assert tree.names(PARAMS) == list(flat)


def test_named_tuples_and_lists_have_names_too():
  from tuna_jax.losses import Sum

  assert tree.names({'a': [Sum(np.zeros(1), np.zeros(1))]}) == ['a/0/total', 'a/0/count']


def test_the_first_row_that_matches_the_whole_name_wins():
  table = (('decoder/.*/bias', 'b'), ('decoder/.*', 'd'), ('.*', 'rest'))
  assert tree.flatten(tree.match_tree(PARAMS, table)) == {
    'decoder/layers/q_proj/bias': 'b',
    'decoder/layers/q_proj/kernel': 'd',
    'vision/norm/scale': 'rest',
  }
  part_and_whole = (('norm', 1), ('vision/norm/scale', 2))
  assert tree.match('vision/norm/scale', part_and_whole) == 2


def test_an_uncovered_leaf_is_named_with_the_nearest_row():
  with pytest.raises(
    ValueError, match="vision/norm/scale: no rule covers it; nearest is 'vision/norms/scale'"
  ):
    tree.match('vision/norm/scale', (('decoder/.*', 1), ('vision/norms/scale', 2)))


def test_every_uncovered_leaf_and_every_dead_row_is_listed_at_once():
  with pytest.raises(ValueError) as caught:
    tree.match_tree(
      PARAMS, (('decoder/.*/kernel', 1), ('vision/norm/scales', 1), ('decoder/layers/.*/kernel', 2))
    )
  lines = str(caught.value).splitlines()
  assert [line.split(':')[0] for line in lines] == [
    'decoder/layers/q_proj/bias',
    'vision/norm/scale',
    "'vision/norm/scales'",
    "'decoder/layers/.*/kernel'",
  ]
  assert "nearest is 'vision/norm/scale'" in lines[2]
