"""What the page of `tuna-jax demo` does, without the page."""

import concurrent.futures
import json

import numpy as np
import PIL.Image
import pytest

from tests.serve import served
from tests.serve.served import FEW, LIMITS, PICTURE
from tuna_jax.data.mixture import DataConfig
from tuna_jax.mappings import to_dict
from tuna_jax.sample.output import read_info
from tuna_jax.serve import examples
from tuna_jax.serve.studio import How, Studio

HOW = How(seed=5, count=2, **FEW)


@pytest.fixture
def studio(tmp_path):
  return Studio(served.generator(), LIMITS, tmp_path)


def test_each_step_is_told_and_each_file_holds_its_settings(studio):
  said = list(studio.draw('a red ball', HOW))
  assert [s.text for s in said] == [
    'starting', 'step 1 of 4', 'step 2 of 4', 'step 3 of 4', 'step 4 of 4', '',
  ]  # fmt: skip
  files = said[-1].result
  assert [caption for _, caption in files] == ['seed 5', 'seed 6']
  infos = [read_info(path) for path, _ in files]
  assert [(i['prompt'], i['seed'], i['points']) for i in infos] == [
    ('a red ball', 5, 3), ('a red ball', 6, 3),
  ]  # fmt: skip
  edited = list(studio.edit([files[0][0]], 'make it blue', How(**FEW)))[-1].result
  assert read_info(edited[0][0])['prompt'] == 'make it blue'


def test_words_come_as_they_are_decoded(studio):
  turns = [('user', ['what is this'])]
  said = list(studio.ask(turns, 4, 0.0, 1))
  results = [s.result for s in said if s.result is not None]
  assert results[-1] == served.generator().text(turns, max_new_tokens=4)
  assert all(results[-1].startswith(words) for words in results)


def test_many_at_once_get_their_own(studio):
  draw = lambda seed: list(studio.draw('a red ball', How(seed=seed, **FEW)))[-1].result[0][0]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    files = list(pool.map(draw, range(4)))
  assert [read_info(path)['seed'] for path in files] == [0, 1, 2, 3]
  again = draw(2)
  assert np.array_equal(PIL.Image.open(again), PIL.Image.open(files[2]))


@pytest.mark.parametrize(
  ('how', 'says'),
  [
    ({'size': '128'}, '128 pixels on the longer side; at most 64'),
    ({'size': 'big'}, "size 'big'"),
    ({'points': 9}, '9 points of the time grid; at most 4'),
    ({'count': 3}, '3 pictures of one request; at most 2'),
    ({'seed': None}, 'give a seed'),
    ({'seed': -1}, 'seed -1: expected 0 to'),
    ({'guidance': 0.0}, 'expected a number above 0'),
    ({'negative': 'x' * 201}, 'characters of a prompt; at most 200'),
  ],
)
def test_a_mistake_is_a_sentence_before_the_device_is_asked(studio, how, says):
  said = list(studio.draw('a red ball', How(**{**FEW, **how})))
  assert said[-1].failed and says in said[-1].text and said[-1].result is None


def test_a_picture_that_is_none_or_too_large_is_a_sentence(studio, tmp_path):
  text, large = tmp_path / 'a.png', tmp_path / 'b.png'
  text.write_text('no picture')
  large.write_bytes(PICTURE.png() + bytes(100_001))
  for given, says in (
    ([], 'no picture to edit'),
    ([text], 'not a readable picture'),
    ([large], 'MB of one request; at most 0.1'),
    ([tmp_path / 'gone.png'], 'gone.png'),  # and not where it was
  ):
    said = list(studio.edit(given, 'make it blue', How(**FEW)))[-1]
    assert said.failed and says in said.text and str(tmp_path) not in said.text
  said = list(studio.ask([('user', [text, 'what is this'])], 4, 0.0, 1))[-1]
  assert said.failed and 'not a readable picture' in said.text
  said = list(studio.ask([('user', [''])], 4, 0.0, 1))[-1]
  assert said.failed and 'an empty question' in said.text
  assert list(studio.draw(' ', How(**FEW)))[-1].text == 'say what to draw'
  said = list(studio.film('a ball', 7, None, How(**FEW)))[-1]
  assert said.failed and 'expected 4k + 1' in said.text


def test_examples_are_records_of_the_run(tmp_path):
  config = {'data': to_dict(DataConfig(mixture='shapes', size=50))}
  (tmp_path / 'config.json').write_text(json.dumps({'kind': 'run', 'config': config}))
  found = examples.of_run(tmp_path)
  assert len(found['t2i']) == examples.EACH and all(e.text for e in found['t2i'])
  for task in ('edit', 'vqa'):
    assert all(e.text and e.picture.ndim == 3 for e in found[task])


def test_a_run_whose_data_are_gone_has_no_examples(tmp_path, caplog):
  config = {'data': to_dict(DataConfig(mixture=str(tmp_path / 'gone.json')))}
  (tmp_path / 'config.json').write_text(json.dumps({'kind': 'run', 'config': config}))
  assert examples.of_run(tmp_path) == {} and 'gone.json' in caplog.text
