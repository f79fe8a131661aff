"""`tuna-jax convert` and `tuna-jax parity` in real processes."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

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
