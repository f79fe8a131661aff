"""The notebook runs top to bottom, and uses nothing that a reader could not."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests import shrink

ROOT = pathlib.Path(__file__).parents[2]
PATH = ROOT / 'notebooks' / '01_quickstart.ipynb'


@pytest.fixture
def notebook():
  return nbformat.read(PATH, as_version=4)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_it_is_kept_without_outputs(notebook):
  assert not any(cell.outputs or cell.execution_count for cell in code(notebook))


def test_it_uses_public_names_only(notebook):
  source = '\n'.join(cell.source for cell in code(notebook))
  assert not re.search(r'\._[a-z]|import _', source)


@pytest.mark.slow
def test_it_runs_top_to_bottom(notebook, monkeypatch):
  monkeypatch.setenv('TUNA_NOTEBOOK_STEPS', '2')
  monkeypatch.setenv('XLA_FLAGS', shrink.flags(1))  # the simulated eight only cost time here
  monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
  client = NotebookClient(notebook, timeout=900, resources={'metadata': {'path': str(PATH.parent)}})
  client.execute()
  shown = [
    out for cell in code(notebook) for out in cell.outputs if 'image/png' in out.get('data', {})
  ]
  assert len(shown) == 3 + 1 + 1 + 1 + 2 + 1  # world, mask, losses, drawn, edits, answers
