"""Each notebook opens alone, uses what a reader could, and was kept as it ran, with its outputs."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests import shrink

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted(p for p in (ROOT / 'notebooks').glob('*.ipynb') if not p.name.startswith('01'))
MOST = 1_500_000  # bytes: larger ones are not shown on the web

pytestmark = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
  return nbformat.read(path, as_version=4)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_it_has_one_cell_that_installs_and_its_version_is_pinned(path):
  version = re.search(r"version='([\d.]+)'", (ROOT / 'setup.py').read_text())[1]
  first, *others = (cell.source for cell in code(read(path)))
  assert re.search(rf"'tuna_jax(\[\w+\])?=={re.escape(version)}'", first)
  assert "find_spec('tuna_jax')" in first and not any('pip install' in cell for cell in others)


def test_it_uses_public_names_and_no_pytorch(path):
  source = '\n'.join(cell.source for cell in code(read(path)))
  assert not re.search(r'\._(?!asdict|replace)[a-z]|import _|import torch\b', source)


def test_it_is_kept_with_the_outputs_of_one_run(path):
  cells = code(read(path))
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  outputs = [out for cell in cells for out in cell.outputs]
  assert not [out for out in outputs if out.output_type == 'error']
  assert len(outputs) > 4 and path.stat().st_size < MOST
  assert '/work/' not in path.read_text() and '/home/' not in path.read_text()


@pytest.mark.slow
def test_it_runs_top_to_bottom_where_nothing_is_beside_it(path, tmp_path, monkeypatch):
  if path.stem.startswith('05'):
    pytest.importorskip('libtpu')
  monkeypatch.setenv('TUNA_NOTEBOOK_MINUTES', '0.2')  # what is trained is not good then
  monkeypatch.setenv('XLA_FLAGS', shrink.flags(1))  # the simulated eight only cost time here
  monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
  notebook = read(path)
  NotebookClient(notebook, timeout=900, resources={'metadata': {'path': str(tmp_path)}}).execute()
  assert {p.name for p in tmp_path.iterdir()} <= {'runs'}
