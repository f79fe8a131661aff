"""Every golden case of Show-o2 passes at the bar of all sets."""

import json
import pathlib

import pytest

from tuna_jax.parity import cases

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden_showo2'
CASES = [case['name'] for case in json.loads((GOLDEN / 'index.json').read_text())['cases']]


@pytest.mark.parametrize('name', CASES)
def test_the_golden_case_passes(name):
  rows = [row for row in cases.run(GOLDEN, name) if row.case == name]
  assert rows
  assert not [f'{row.output}: {row.note}' for row in rows if not row.passed]
