"""Mutated records, pictures and clips are used or named: none ends a run, none takes 1 GB."""

import json
import pathlib
import subprocess
import sys

import pytest

MUTANTS = pathlib.Path(__file__).with_name('mutants.py')


@pytest.mark.parametrize(
  'first, count',
  [
    pytest.param(0, 2_000, id='2,000'),
    pytest.param(2_000, 20_000, id='20,000', marks=pytest.mark.slow),
  ],
)
def test_no_mutant_ends_the_process_or_takes_a_gigabyte(first, count):
  ran = subprocess.run(
    [sys.executable, MUTANTS, str(first), str(count)], capture_output=True, text=True, timeout=600
  )
  last = ran.stderr.rstrip().splitlines()[-1]
  assert ran.returncode == 0, f'exit {ran.returncode} at mutant {last}'
  found = json.loads(ran.stdout)
  assert found['named'] + found['used'] == count and min(found['named'], found['used']) > count / 10
  assert found['memory'][0] < 1 << 30, f'mutant {found["memory"][1]}'
  assert found['slowest'][0] < 20, f'mutant {found["slowest"][1]}'  # seconds, on a busy machine
