"""What the doctor finds, and that each problem has its advice."""

import pathlib
import re

import jax
import pytest

from tuna_jax.tools import doctor

ROOT = pathlib.Path(__file__).parents[2]


def test_everything_is_looked_at_and_said_in_a_line(tmp_path):
  found = list(doctor.examine(str(tmp_path / 'nothing')))
  assert [f.what for f in found] == [
    'versions', 'devices', 'memory', 'compile cache', 'disk', 'models', 'loader', 'checkpoint'
  ]  # fmt: skip
  assert jax.__version__ in found[0].found and re.match(r'8 x \w+', found[1].found)
  assert re.match(r'\d+ pictures of 512 per second on \d+ cores', found[6].found)
  assert 'no config.json there' in found[7].advice


@pytest.mark.parametrize(
  'changed,advice',
  [
    ({'jax': '0.9.0'}, 'pip install jax==0.10.2'),
    ({'libtpu': '0.0.30'}, 'pip install "jax[tpu]==0.10.2"'),
    ({'jaxlib': '0.9.0'}, 'jaxlib is of another release'),
    ({}, ''),
  ],
)
def test_versions_that_do_not_fit_are_named(changed, advice, monkeypatch):
  fits = {'jax': '0.10.2', 'jaxlib': '0.10.2', 'libtpu': '0.0.42.1'}
  monkeypatch.setattr(doctor, '_version', lambda name: {**fits, **changed}.get(name, '1'))
  monkeypatch.setattr(doctor.platform, 'python_version_tuple', lambda: ('3', '11', '4'))
  found = doctor.versions().advice
  assert advice in found and bool(found) == bool(advice)


def test_a_python_that_was_not_tested_is_named(monkeypatch):
  monkeypatch.setattr(doctor.platform, 'python_version_tuple', lambda: ('3', '19', '0'))
  assert doctor.versions().advice.startswith('Python 3.19 is not tested: use one of 3.11, 3.12')


def test_the_table_is_that_of_the_docs_and_of_the_workflow():
  text = (ROOT / 'docs' / 'tpu.md').read_text()
  for row in doctor.TESTED:
    assert f'| {" | ".join(row)} |' in text
  workflow = (ROOT / '.github' / 'workflows' / 'ci.yml').read_text()
  assert str([row[0] for row in doctor.TESTED]) in workflow
