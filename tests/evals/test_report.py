"""The report: what its page and its numbers hold."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tuna_jax.evals import curves, page, report
from tuna_jax.evals.results import Evaluation, Result, Row, Sample, table
from tuna_jax.toy.evaluate import TARGETS, TITLES

STILL = np.full((64, 64, 3), 200, np.uint8)
CLIP = np.stack([np.full((64, 64, 3), 20 * k, np.uint8) for k in range(9)])


def a_result(right=(True, False), pictures=None, **words):
  samples = [
    Sample('a <b>red</b> circle', ok, pictures or {'drawn': STILL}, **words) for ok in right
  ]
  return Result(right, [False] * len(right), [True] * len(right), [True] * len(right), samples)


@pytest.fixture
def evaluation():
  results = {name: a_result() for name in TITLES}
  results['clips'] = a_result(pictures={'filmed': CLIP, 'rendered': CLIP})
  results['questions'] = a_result(answer='a blue & small one', wanted='red')
  rows = {name: Row.of(result, TARGETS['tiny'][name]) for name, result in results.items()}
  return Evaluation(results, TITLES, rows, {'pictures': 1.0})


@pytest.fixture
def written(evaluation, tmp_path):
  run = tmp_path / 'stage1'
  run.mkdir()
  lines = [
    {'step': s, 'loss': 1.0, 'ntp/all': 1 / s, 'ntp/caption': 1 / s, 'ntp/vqa': 2 / s}
    for s in range(1, 50)
  ]
  (run / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  (tmp_path / 'steps.jsonl').write_text(
    '{"step": "vae", "seconds": 60, "command": "tuna-jax pretrain"}\n' * 2
  )
  page = report.write(
    str(tmp_path / 'report'),
    evaluation,
    str(tmp_path),
    title='A <title>',
    facts={'jax': '1'},
    command='tuna-jax evaluate',
    seconds=7.0,
  )
  return open(page).read(), json.loads((tmp_path / 'report' / 'report.json').read_text())


def test_every_row_has_exactly_the_documented_numbers(written):
  _, numbers = written
  assert set(numbers['scores']) == set(TITLES)
  for row in numbers['scores'].values():
    assert set(row) == {'score', 'floor', 'ceiling', 'target', 'n'}
    assert (row['score'], row['floor'], row['ceiling'], row['n']) == (0.5, 0.0, 1.0, 2)


def test_the_page_loads_nothing_from_elsewhere(written):
  page, _ = written
  sources = re.findall(r'(?:src|href)="([^"]{1,40})', page)
  assert sources and all(s.startswith('data:image/png;base64,') for s in sources)
  assert 'http' not in page and '@import' not in page and '<script' not in page


def test_text_is_shown_as_text_and_never_as_markup(written):
  page, _ = written
  assert '<b>red</b>' not in page and '&lt;b&gt;red&lt;/b&gt;' in page
  assert 'A <title>' not in page and 'a blue &amp; small one' in page


def test_right_and_wrong_are_told_apart(written):
  page, _ = written
  assert page.count('<figure class="right">') == page.count('<figure class="wrong">') == len(TITLES)
  assert page.count('type="radio"') == 3 and 'held out only' not in page  # nothing was trained on


def test_a_failed_drawing_says_what_the_judge_saw_and_a_right_one_does_not(evaluation, tmp_path):
  results = {'one': a_result(answer='nothing')}
  only = dataclasses.replace(evaluation, results=results, rows={})
  page = open(report.write(str(tmp_path), only, str(tmp_path), title='x', facts={})).read()
  assert page.count('the judge saw: nothing') == 1
  assert re.search(r'tuna_jax \d+\.\d+\.\d+.*, jax \d', page)


def test_a_step_that_ran_twice_is_counted_once_with_all_its_seconds(written):
  _, numbers = written
  assert [(s['step'], s['seconds']) for s in numbers['steps']] == [
    ('vae', 120),
    ('evaluation', 7.0),
  ]


def test_a_clip_is_an_animated_picture_of_all_its_frames():
  with Image.open(io.BytesIO(page.png(CLIP))) as file:
    assert file.n_frames == 9 and file.is_animated
    file.seek(8)
    assert np.array_equal(np.asarray(file.convert('RGB')), CLIP[8])


def test_a_curve_has_a_line_for_each_task_and_one_for_all_of_them(written):
  page, numbers = written
  assert page.count('<polyline') == 3 and 'legend' in page
  assert numbers['losses']['stage1']['step'] == 49


def test_a_single_measurement_is_a_dash():
  (line,) = curves.panel('held out', {'edit': (1, [(50, 2.0)])}, 'log', 100).lines
  (left, y), (right, same) = (map(float, point.split(',')) for point in line.points.split())
  assert right - left == 6 and y == same


def test_a_step_logged_twice_is_read_once(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "psnr": 3.0}\n{"step": 1, "psnr": 2.0}\n')
  assert curves.read(tmp_path / 'metrics.jsonl') == [{'step': 1, 'psnr': 2.0}]


@pytest.mark.parametrize(
  ('low', 'high', 'scale'), [(0.0, 0.05, 'log'), (-3, 1, 'log'), (12, 33, 'linear')]
)
def test_an_axis_has_a_few_round_ticks_within_its_ends(low, high, scale):
  ticks = curves.ticks(low, high, scale)
  ends = (10.0**low, 10.0**high) if scale == 'log' else (low, high)
  assert 2 <= len(ticks) <= 7 and ends[0] <= ticks[0] and ticks[-1] <= ends[1]


def test_the_table_says_which_targets_are_reached(evaluation):
  lines = table(
    {
      'one': Row(0.95, 0.1, 1.0, 0.9, 200),
      'two': Row(0.5, 0.1, 1.0, 0.75, 200),
      'count': Row(0.5, 0.1, 1.0, None, 200),
    },
    TITLES,
  ).splitlines()
  assert [line.split()[-1] for line in lines[1:]] == ['reached', 'missed', '200']
