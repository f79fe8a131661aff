"""What comes in from strangers is used or refused by name, whatever it is, in bounded memory."""

import json
import subprocess
import sys

import pytest

from tests import shrink


@pytest.mark.parametrize(
  'count', [600, pytest.param(20_000, marks=pytest.mark.slow)], ids=['600', '20,000']
)
def test_every_input_is_used_or_refused_by_name_in_bounded_memory(count):
  ran = subprocess.run(
    [sys.executable, '-m', 'tests.chaos.fuzz', str(count)], cwd=shrink.ROOT, text=True,
    capture_output=True, check=False, timeout=1800,
  )  # fmt: skip
  assert ran.returncode == 0, ran.stderr[-4000:]
  found = json.loads(ran.stdout)
  assert found['inputs'] >= count and found['memory'] < 1_500_000_000, found
  assert all(used + refused for used, refused in found['doors'].values())
  assert all(found['doors'][door][0] for door in ('a command line', 'settings of a stage')), found
