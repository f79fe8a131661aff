"""Every golden case of Show-o2, Tuna-R and Tuna-2 passes at the bar of all sets."""

import json
import pathlib

import pytest

from tuna_jax.parity import cases

TESTS = pathlib.Path(__file__).parents[1]
CASES = [
  (folder, case['name'])
  for folder in ('golden_showo2', 'golden_pixel')
  for case in json.loads((TESTS / folder / 'index.json').read_text())['cases']
]


@pytest.mark.parametrize('folder, name', CASES)
def test_the_golden_case_passes(folder, name):
  rows = [row for row in cases.run(TESTS / folder, name) if row.case == name]
  assert rows
  assert not [f'{row.output}: {row.note}' for row in rows if not row.passed]
