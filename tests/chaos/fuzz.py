"""Every door that a stranger's file or words come in by, fuzzed in a process of its own.

  python -m tests.chaos.fuzz COUNT      prints one JSON line: how many inputs of each door were used
                                        and how many were refused, and the largest memory in bytes

What is changed is a good file: one value of its JSON, or its bytes. An input either works or is
refused with a UserError, or as a file that is not there; anything else ends the process with the
smallest input that shows it.
"""

import collections
import json
import pathlib
import resource
import sys
import tempfile
import warnings

from hypothesis import HealthCheck, given, settings

from tests.chaos import doors, strange
from tuna_jax.cli import app

MEMORY = 1_500_000_000  # bytes that the process may hold


def verdict(call, *arguments) -> str:
  """'used' or 'refused'; whatever else is raised passes."""
  try:
    call(*arguments)
  except app.USERS:
    return 'refused'
  return 'used'


def fuzz(name, inputs, call, count, verdicts):
  """Gives `count` inputs to a door."""

  @settings(
    max_examples=count, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
  )  # fmt: skip
  @given(inputs)
  def one(value):
    verdicts[name, verdict(call, value)] += 1

  try:
    one()
  except Exception as error:
    error.add_note(f'at the door {name!r}')
    return error


def file_door(file: pathlib.Path, call):
  """A door that is a file: it has the bytes while `call()` reads it, and its own afterwards."""
  good = file.read_bytes()
  call()  # the good file is

  def enter(data):
    file.write_bytes(data)
    try:
      call()
    finally:
      file.write_bytes(good)

  strategy = (
    strange.documents if file.suffix in ('.json', '') and good[:1] in b'{[' else strange.blobs
  )
  return strategy(good), enter


def main(count: int):
  warnings.simplefilter('ignore')
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  verdicts, faults = collections.Counter(), []
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    every = dict(doors.words(strange.VALUES))
    every |= {name: file_door(*door) for name, door in doors.files(root).items()}
    each = -(-count // len(every))
    for name, (inputs, call) in every.items():
      if error := fuzz(name, inputs, call, each, verdicts):
        faults.append(error)
      print(name, end='\r', file=sys.stderr, flush=True)
  if faults:
    raise ExceptionGroup(f'{len(faults)} doors let something through', faults)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  table = {name: [verdicts[name, 'used'], verdicts[name, 'refused']] for name in every}
  assert memory < MEMORY, f'{memory} bytes of memory'
  print(json.dumps({'inputs': sum(verdicts.values()), 'memory': memory, 'doors': table}))


if __name__ == '__main__':
  main(int(sys.argv[1]))
