"""Every test runs on 8 simulated CPU devices; slow ones if asked, live parity if possible.

Markers: `slow` (deselected without --slow), `parity` (against PyTorch; needs the `parity` extra),
`browser` (in Chromium; needs it and the `browser` extra).
"""

import functools
import gc
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARITY = ('torch', 'transformers', 'diffusers')
BROWSER = ('gradio', 'playwright')
CACHE = 'TUNA_TEST_CACHE'  # set by the run's first process; workers and subprocesses share it

# Before anything imports jax.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # libtpu may be here for ahead-of-time compiles
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a runner under nohup ignores it, and so would tests
sys.path.insert(0, str(ROOT))  # `configs` and `tuna_jax` of this checkout
from tuna_jax.tools.xla_cpu import CPU_OPTIONS  # noqa: E402

# Eight devices, and a compiler that hurries: most of the suite's time is compilation, and numbers
# here are few.
_given = os.environ.get('XLA_FLAGS', '')
_flags = {'xla_force_host_platform_device_count': 8, **CPU_OPTIONS}
os.environ['XLA_FLAGS'] = ' '.join(
  [_given, *(f'--{k}={v}' for k, v in _flags.items() if k not in _given)]
).strip()


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='run the tests marked slow as well')
  parser.addoption('--browser', action='store_true', help='fail, not skip, without Chromium')
  parser.addoption('--live', action='store_true', help='fail, not skip, without the parity extra')


def pytest_configure(config):
  config.addinivalue_line('markers', 'slow: takes over 20 s; deselected without --slow')
  config.addinivalue_line('markers', 'parity: compares with PyTorch; needs the parity extra')
  config.addinivalue_line('markers', 'browser: in Chromium; needs it and the browser extra')
  config.option.importmode = 'importlib'  # tests mirror the package, so file names repeat
  if CACHE not in os.environ:
    # A program compiled by one test is not compiled again by another; nothing outlives the run.
    folder = tempfile.mkdtemp(prefix='tuna_jax_tests_')
    os.environ[CACHE] = os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
    config.add_cleanup(lambda: (os.environ.pop(CACHE), shutil.rmtree(folder, ignore_errors=True)))


def absent(names=PARITY) -> list[str]:
  """The packages that are not installed, by default of the parity extra."""
  return [name for name in names if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(config, items):
  if absent() and not config.getoption('live'):
    skip = pytest.mark.skip(reason=f'the parity extra is not installed: no {", ".join(absent())}')
    for item in items:
      if item.get_closest_marker('parity'):
        item.add_marker(skip)
  missing = absent(BROWSER) + [name for name in ('chromium',) if shutil.which(name) is None]
  if missing and not config.getoption('browser'):
    skip = pytest.mark.skip(reason=f'no {", ".join(missing)}; launch/test.sh --browser installs it')
    for item in items:
      if item.get_closest_marker('browser'):
        item.add_marker(skip)
  if not config.getoption('slow'):
    slow = [item for item in items if item.get_closest_marker('slow')]
    if slow:
      config.hook.pytest_deselected(items=slow)
      items[:] = [item for item in items if item not in slow]


def pytest_collection_finish():
  """Traces make millions of objects, and each collection walks all of them: a sixth of the time."""
  gc.freeze()
  gc.set_threshold(20_000, 10, 20)


def pytest_terminal_summary(terminalreporter, config):
  if absent():
    terminalreporter.write_line(
      f'LIVE PARITY NOT RUN: {", ".join(absent())} not installed; launch/test.sh --live runs it',
      yellow=True,
      bold=True,
    )
  if not config.getoption('slow'):
    terminalreporter.write_line('Slow tests deselected: launch/test.sh --slow runs them.')


# Imports once, then forks for every command line: a process each, without a start each.
DRIVER = """
import json, os, runpy, sys
import tuna_jax.weights.parts, tuna_jax.tools.recover, tuna_jax.cli.app
for line in sys.stdin:
  path, verb, *arguments = json.loads(line)
  child = os.fork()
  if not child:
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    sys.argv = [verb, *arguments]
    runpy.run_module(f'tuna_jax.cli.{verb}', run_name='__main__', alter_sys=True)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def tuna_jax(tmp_path_factory):
  """Runs `tuna-jax VERB ARGUMENTS`, asserts its exit code, returns what it printed, errors
  included.
  """
  folder = tmp_path_factory.mktemp('said')
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  with subprocess.Popen(
    [sys.executable, '-c', DRIVER],
    env=environment,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as driver:

    def run(verb, *arguments, code=0):
      said = folder / str(len(list(folder.iterdir())))
      driver.stdin.write(json.dumps([str(said), verb, *map(str, arguments)]) + '\n')
      driver.stdin.flush()
      found = int(driver.stdout.readline())
      assert found == code, said.read_text()
      return said.read_text()

    yield run
    driver.stdin.close()


@pytest.fixture(scope='module')
def convert(tuna_jax):
  """Runs `tuna-jax convert ARGUMENTS`."""
  return functools.partial(tuna_jax, 'convert')
