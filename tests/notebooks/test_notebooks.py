"""Each notebook opens alone, uses what a reader could, and was kept as it ran, with its outputs."""

import importlib.util
import os
import pathlib
import re
import resource
import time
from unittest import mock

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from tests import shrink

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
MEMORY = 12e9  # bytes of the host that a notebook may take
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


@pytest.mark.parametrize('beside', ['checkout', 'wheel', 'nothing'])
def test_it_installs_from_the_checkout_around_it_or_a_wheel_beside_it_or_the_release(
  path, beside, tmp_path, monkeypatch
):
  here = tmp_path / 'notebooks'
  here.mkdir()
  monkeypatch.chdir(here)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  wheel = 'tuna_jax-0.1.0-py3-none-any.whl'
  if beside == 'checkout':
    (tmp_path / 'tuna_jax').mkdir()
    (tmp_path / 'tuna_jax' / '__init__.py').touch()
  elif beside == 'wheel':
    (here / wheel).touch()
  shell = mock.Mock()  # of IPython, whose pip is not called
  names = {'get_ipython': lambda: shell}
  with pytest.raises(ModuleNotFoundError, match='the second line of this cell'):
    exec(TransformerManager().transform_cell(code(read(path))[0].source), names)
  called = shell.run_line_magic.call_args.args
  assert called[0] == 'pip' and "'{source}'" in called[1]
  extra = '[tpu]' if path.stem.startswith('05') else ''
  wanted = {'checkout': f'..{extra}', 'wheel': f'{wheel}{extra}'}
  assert str(names['source']) == wanted.get(beside, f'tuna_jax{extra}==0.1.0')


def test_it_uses_public_names_and_no_pytorch(path):
  source = '\n'.join(cell.source for cell in code(read(path)))
  assert not re.search(r'\._(?!asdict|replace)[a-z]|import _|import torch\b', source)


def test_it_is_kept_with_the_outputs_of_one_run(path):
  cells = code(read(path))
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  outputs = [out for cell in cells for out in cell.outputs]
  assert not [out for out in outputs if out.output_type == 'error']
  assert len(outputs) > 4 and path.stat().st_size < MOST
  assert not re.search(r'/(work|home|root|tmp)/', path.read_text())


@pytest.mark.slow
def test_it_runs_top_to_bottom_where_nothing_is_beside_it(path, tmp_path, monkeypatch):
  if path.stem.startswith('05'):
    pytest.importorskip('libtpu')
  monkeypatch.setenv('TUNA_NOTEBOOK_MINUTES', '0.2')  # what is trained is not good then
  monkeypatch.setenv('XLA_FLAGS', shrink.flags(1))  # the simulated eight only cost time here
  monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
  notebook = read(path)
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  began = time.perf_counter()
  NotebookClient(notebook, timeout=1800, resources={'metadata': {'path': str(tmp_path)}}).execute()
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
  seconds, largest = time.perf_counter() - began, used.ru_maxrss * 1024
  print(f'{path.stem}: {seconds:.0f} s, {processor:.0f} of the processors, {largest / 1e9:.2f} GB')
  assert largest < MEMORY  # of the largest process so far
  assert {p.name for p in tmp_path.iterdir()} <= {'runs'}


def kept(notebook, folder):
  """The notebook without what only this machine and this moment had: times, paths, warnings, and of
  many lines of steps all but some."""
  notebook.metadata = {'kernelspec': notebook.metadata.kernelspec}
  for cell in notebook.cells:
    cell.metadata, outputs = {}, []
    for out in cell.get('outputs', ()):
      if out.get('name') == 'stderr':
        continue
      if out.output_type == 'stream' and outputs and outputs[-1].output_type == 'stream':
        outputs[-1].text += out.text
      else:
        outputs.append(out)
    for out in outputs:
      if out.output_type == 'stream':
        lines = out.text.replace(f'{folder}/', '').splitlines()
        steps = [n for n, line in enumerate(lines) if re.match('(completed|VAE) step', line)]
        left_out = set(steps) - set(steps[:: -(-len(steps) // 10) or 1])
        out.text = '\n'.join(line for n, line in enumerate(lines) if n not in left_out) + '\n'
    if cell.cell_type == 'code':
      cell.outputs = outputs
  return notebook


if __name__ == '__main__':
  import sys
  import tempfile

  os.environ['PYTHONPATH'] = str(ROOT)
  for name in sys.argv[1:]:
    path = ROOT / 'notebooks' / f'{name}.ipynb'
    with tempfile.TemporaryDirectory() as folder:
      notebook = read(path)
      NotebookClient(notebook, timeout=7200, resources={'metadata': {'path': folder}}).execute()
      nbformat.write(kept(notebook, folder), path)
