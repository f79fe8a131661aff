"""Real processes that are struck by a signal, or run short of something, at a chosen moment.

A parent imports once and forks for every command line. A moment is a change of the files below a
folder or a line that is printed; a process counts its own, and one that is to be struck sends
itself the signal at the moment it is told, before the change is made.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from tests import shrink
from tuna_jax.evals import curves
from tuna_jax.weights import steps

DRIVER = """
import json, os, resource, runpy, signal, sys
import tuna_jax.weights.parts, tuna_jax.tools.recover, tuna_jax.cli.app
import tuna_jax.train.loop, tuna_jax.toy.train_vae, tuna_jax.toy.train_tokenizer
import tuna_jax.sample.open, tuna_jax.tools.preview, tuna_jax.evals.own_data

CHANGES = ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir')

def child(ask):
  os.setsid()
  print(os.getpid(), flush=True)  # now its session is known by it
  os.dup2(os.open(ask['said'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
  os.dup2(1, 2)
  counter = os.open(ask['said'] + '.moments', os.O_WRONLY | os.O_CREAT, 0o644)
  folder = ask['folder']
  seen = [0]

  def moment():
    seen[0] += 1
    if seen[0] == ask['at']:
      os.kill(os.getpid(), ask['signal'])
    os.pwrite(counter, b'%d' % seen[0], 0)

  def hook(event, arguments):
    if event not in CHANGES and event != 'open':
      return
    path = arguments[0]
    path = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ''
    if path.startswith(folder) and 'lock' not in os.path.basename(path):  # which beats by the clock
      if event != 'open' or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        moment()

  class Said:
    def write(self, text):
      if '\\n' in text:
        moment()
      return sys.__stdout__.write(text)

    def __getattr__(self, name):
      return getattr(sys.__stdout__, name)

  if ask['count']:
    sys.addaudithook(hook)
    sys.stdout = Said()
  for name, most in ask['limits'].items():
    if name == 'AS':  # on top of what the process has
      most += int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (most, most))
  os.environ.update(ask['environment'])
  verb, *arguments = ask['command']
  if verb.endswith('.sh'):  # which cannot trap what is ignored when it starts
    for number in (signal.SIGINT, signal.SIGHUP):
      signal.signal(number, signal.SIG_DFL)
    os.execvp('bash', ['bash', verb, *arguments])
  sys.argv = [verb, *arguments]
  runpy.run_module(f'tuna_jax.cli.{verb}', run_name='__main__', alter_sys=True)

for line in sys.stdin:
  ask = json.loads(line)
  pid = os.fork()
  if not pid:
    child(ask)
    sys.exit(0)
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
  """How a process ended: its exit code, all it said, and how many moments it counted."""

  code: int
  said: str
  moments: int
  pid: int


class Processes:
  """Runs verbs in forked processes, one after the other."""

  def __init__(self, folder, environment=None):
    self._folder, self._number = pathlib.Path(folder), 0
    cache = {
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'XLA_FLAGS': shrink.flags(1),
      'PYTHONPATH': str(shrink.ROOT),
    }
    self._driver = subprocess.Popen(
      [sys.executable, '-c', DRIVER], cwd=shrink.ROOT, env=os.environ | cache | (environment or {}),
      text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

  def start(self, command, folder, at=0, number=0, limits=None, environment=None, count=True):
    """Starts a verb; `end` waits for it. number: the signal it gets at its moment `at`."""
    self._number += 1
    said = self._folder / str(self._number)
    ask = {
      'command': [str(c) for c in command], 'folder': str(folder), 'said': str(said), 'at': at,
      'signal': int(number), 'limits': limits or {}, 'environment': environment or {},
      'count': count,
    }  # fmt: skip
    self._driver.stdin.write(json.dumps(ask) + '\n')
    self._driver.stdin.flush()
    return int(self._driver.stdout.readline()), said

  def end(self, started) -> Ended:
    """Waits for what was started, and asserts that nothing it started outlives it."""
    pid, said = started
    code = int(self._driver.stdout.readline())
    deadline = time.monotonic() + 10
    while alive := session(pid):
      assert time.monotonic() < deadline, f'{alive} outlive the process'
      time.sleep(0.05)
    counted = pathlib.Path(f'{said}.moments')
    moments = int(counted.read_text() or 0) if counted.exists() else 0
    return Ended(code, said.read_text(), moments, pid)

  def run(self, command, folder, **how) -> Ended:
    """Starts a verb and waits for it."""
    return self.end(self.start(command, folder, **how))

  def close(self):
    self._driver.stdin.close()
    self._driver.stdout.close()
    self._driver.wait()


@contextlib.contextmanager
def driver(folder, environment=None):
  """A `Processes` whose parent ends with the block."""
  made = Processes(folder, environment)
  try:
    yield made
  finally:
    made.close()


def session(leader: int) -> dict[int, str]:
  """{number: command line} of the living processes of the session of `leader`."""
  found = {}
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      state, _, _, session = stat.read_text().rpartition(')')[2].split()[:4]
      if int(session) == leader and state != 'Z':
        line = (stat.parent / 'cmdline').read_text().replace('\0', ' ')
        found[int(stat.parent.name)] = line
  return found


# ---- what is left

# Of files whose bytes tell times, names of folders or a storage layout: not compared, or in part.
PASSING = (
  'log.txt', 'lock', 'goodput.json', 'index.html', 'stacks-0.txt', 'certificate.json', 'fit.json',
  'steps.jsonl',
)  # fmt: skip
TIMED = 'seconds data_wait tokens_per_second_per_device tflops_per_second_per_device mfu'.split()


def left(root) -> dict[str, str]:
  """{file: digest} of what a folder holds. Checkpoints and arrays count by the digests that were
  stored with them, which are compared with the arrays first."""
  found, root = {}, pathlib.Path(root)
  for folder, inside, names in os.walk(root):
    here = pathlib.Path(folder)
    if here.name == 'checkpoints':
      inside.clear()
      for step in steps.committed(here.parent):
        steps.check(here.parent, step)
      record = steps.record(here.parent, step)  # of the newest: one that is stopped saves more
      found[f'{here}/{step}'] = json.dumps(record, sort_keys=True)
    if here.joinpath('checkpoints').exists():  # the page of a run tells times
      names = [n for n in names if n != 'report.json']
    inside[:] = [n for n in inside if not n.startswith('.')]
    if 'params' in inside and (here / 'config.json').exists():
      inside.remove('params')
    for name in names:
      if not (name in PASSING or name.startswith(('.', 'events.out'))):
        found[str(here / name)] = _content(here / name)
  return {os.path.relpath(name, root): value for name, value in found.items()}


def _content(file: pathlib.Path) -> str:
  if file.name == 'metrics.jsonl':
    lines = curves.read(file)  # of a step that ran twice the last
    return json.dumps([{k: v for k, v in one.items() if k not in TIMED} for one in lines])
  if file.name == 'report.json':
    return json.dumps(json.loads(file.read_text())['scores'], sort_keys=True)
  return hashlib.sha256(file.read_bytes()).hexdigest()
