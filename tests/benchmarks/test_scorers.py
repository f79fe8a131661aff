"""The sums of the official scorers, held to the rows that the paper prints."""

import json
import pathlib

import pytest

from tuna_jax.benchmarks import paper, scorers
from tuna_jax.benchmarks.scorers import Box

PROMPTS = pathlib.Path(__file__).parent / 'prompts'
ROWS = {
  row['tag']: row for row in map(json.loads, (PROMPTS / 'geneval.jsonl').read_text().splitlines())
}


@pytest.mark.parametrize('model', ['Tuna 1.5B', 'Show-o2 1.5B'])
def test_vbench_totals_of_the_paper_follow_from_its_dimensions(model):
  row = paper.TABLES['vbench'].of(model)
  found = scorers.vbench({name: value / 100 for name, value in row.items()})
  for name in ('quality', 'semantic', 'total'):
    assert round(100 * found[name], 2) == pytest.approx(row[name], abs=0.0051), name


@pytest.mark.parametrize('model', paper.MODELS)
def test_geneval_overall_of_the_paper_is_the_mean_of_its_tags(model):
  row = dict(paper.TABLES['geneval'].of(model))
  overall = row.pop('overall')
  mean = scorers.mean_of_means({tag: [value] for tag, value in row.items()}, 'overall')['overall']
  assert mean == pytest.approx(overall, abs=0.01)  # the tags are printed with two decimals


def test_imgedit_overall_of_the_paper_is_the_mean_of_types_not_of_samples():
  row = dict(paper.TABLES['imgedit'].of('Tuna 7B'))
  overall = row.pop('overall')
  assert len(row) == 9 and round(sum(row.values()) / 9, 2) == overall == 4.31


def test_oneig_overall_of_the_paper_leaves_room_for_the_diversity_it_does_not_print():
  row = dict(paper.TABLES['oneig'].of('Tuna 7B'))
  assert 5 * row.pop('overall') - sum(row.values()) == pytest.approx(0.17, abs=1e-9)


def test_geneval_shares_and_their_mean():
  judged = [('counting', True), ('counting', False), ('position', True)]
  assert scorers.geneval(judged) == {'counting': 0.5, 'position': 1.0, 'overall': 0.75}


def box(x, y, size=20, **more):
  return Box(x, y, x + size, y + size, **more)


GOOD = {
  'single_object': {'clock': [box(0, 0)]},
  'counting': {'cup': [box(0, 0), box(50, 0)]},
  'colors': {'vase': [box(0, 0, color='red')]},
  'position': {'cup': [box(0, 0)], 'book': [box(60, 0)]},
  'color_attr': {'vase': [box(0, 0, color='blue')], 'cup': [box(50, 0, color='green')]},
}
BAD = {
  'single_object': {'clock': [box(0, 0, confidence=0.3)]},
  'counting': {'cup': [box(0, 0), box(50, 0), box(90, 0)]},
  'colors': {'vase': [box(0, 0, color='blue')]},
  'position': {'cup': [box(60, 0)], 'book': [box(0, 0)]},
  'color_attr': {'vase': [box(0, 0, color='green')], 'cup': [box(50, 0, color='blue')]},
}


@pytest.mark.parametrize('tag', GOOD)
def test_geneval_judges_boxes_as_the_row_asks(tag):
  assert scorers.geneval_correct(ROWS[tag], GOOD[tag])
  assert not scorers.geneval_correct(ROWS[tag], BAD[tag])
  assert not scorers.geneval_correct(ROWS[tag], {})


def test_geneval_counts_with_a_higher_confidence_and_the_best_box_alone():
  unsure = {'cup': [box(0, 0), box(50, 0, confidence=0.8)]}
  assert not scorers.geneval_correct(ROWS['counting'], unsure)
  two = {'vase': [box(0, 0, color='blue', confidence=0.5), box(40, 0, color='red')]}
  assert scorers.geneval_correct(ROWS['colors'], two)


@pytest.mark.parametrize(
  'x, y, expected',
  [
    (-60, 0, {'left of'}),
    (60, 0, {'right of'}),
    (0, -60, {'above'}),
    (0, 60, {'below'}),
    (60, 60, {'right of', 'below'}),
    (3, 3, set()),  # inside the margin of a tenth of both sizes
    (60, 20, {'right of'}),
  ],
)
def test_relations_are_those_of_the_centres_less_a_margin(x, y, expected):
  assert scorers.relations(box(100 + x, 100 + y), box(100, 100)) == expected


@pytest.mark.parametrize(
  'answers, expected',
  [
    ({1: True, 2: True, 3: True}, 1.0),
    ({1: False, 2: True, 3: True}, 0.0),  # 2 depends on 1, and 3 on 2
    ({1: True, 2: False, 3: True}, 1 / 3),
    ({1: True, 2: True, 3: False}, 2 / 3),
  ],
)
def test_dpg_counts_no_question_whose_parent_failed(answers, expected):
  assert scorers.dpg(answers, {1: [0], 2: [1], 3: [1, 2]}) == pytest.approx(expected)


@pytest.mark.parametrize(
  'distance, complete, words, worst, expected',
  [
    (0, 1.0, 1.0, 100, 1.0),
    (100, 0.0, 0.0, 100, 0.0),
    (250, 0.0, 0.0, 100, 0.0),
    (50, 0.5, 0.5, 100, 0.875),
    (50, 0.5, 0.5, 50, 0.75),
  ],
)
def test_oneig_text_score(distance, complete, words, worst, expected):
  assert scorers.oneig_text(distance, complete, words, worst) == pytest.approx(expected)


def test_imgedit_reads_the_numbered_lines_of_a_judge():
  reply = (
    'Brief reasoning: the circle is blue.\nPrompt Compliance: 5\nVisual Seamlessness: 4\n'
    'Physical & Detail Fidelity: 5'
  )
  assert scorers.imgedit_score(reply) == 4.67
  assert scorers.imgedit_score('I cannot see a picture.') is None
  replies = {'a': reply, 'b': 'Prompt Compliance: 1', 'c': 'Prompt Compliance: 3', 'd': 'none'}
  types = {'a': 'add', 'b': 'style', 'c': 'style', 'd': 'add'}
  assert scorers.imgedit(replies, types) == {'add': 4.67, 'style': 2.0, 'overall': 3.335}


def test_viescore_is_the_root_of_the_worst_of_each():
  assert scorers.viescore([9, 4], [9, 9]) == 6.0
  assert scorers.viescore([0, 10], [10]) == 0.0
