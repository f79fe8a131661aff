"""A machine that runs out of something: one line says of what, nothing is half written, and the
same command ends as it would have once there is enough. Two at once: one works.
"""

import os
import resource
import subprocess

import pytest

from tests.chaos import processes, verbs
from tests.chaos.test_kills import FINISHED

PLENTY = 'size=1g'
# (verb, what is short, how much of it, what the line says if there is one)
SHORT = (
  ('decoder', 'disk', '700k', 'No space left on device; make room'),
  ('vae', 'disk', '40k', 'No space left on device; make room'),
  ('import', 'disk', '300k', 'No space left on device; make room'),
  ('export', 'disk', '300k', 'No space left on device; make room'),
  ('pack', 'disk', '8k', 'No space left on device; make room'),
  ('encode', 'disk', '16k', 'No space left on device; make room'),
  ('decoder', 'writing', 'ro', 'Read-only file system; choose a folder'),
  ('export', 'writing', 'ro', 'Read-only file system; choose a folder'),
  ('pack', 'writing', 'ro', 'Read-only file system; choose a folder'),
  ('preview', 'writing', 'ro', 'Read-only file system; choose a folder'),
  ('decoder', 'FSIZE', 20_000, 'File too large; raise the limit'),
  ('import', 'FSIZE', 20_000, 'File too large; raise the limit'),
  ('decoder', 'NOFILE', 20, 'Too many open files; raise the limit'),
  ('import', 'NOFILE', 12, 'Too many open files; raise the limit'),
  ('pack', 'NOFILE', 14, 'Too many open files; raise the limit'),
  ('import', 'AS', 24 << 20, ''),  # a library ends the process itself
)
PLAIN = (('export', 'disk'), ('pack', 'writing'))


@pytest.fixture
def mount(place):
  """Mounts a file system of its own, with these options, where verbs write."""
  out = str(place[1])

  def mount(options):
    done = subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', out], capture_output=True, check=False
    )
    if done.returncode:
      pytest.skip('only who may mount a file system can fill a small one')

  yield mount
  if os.path.ismount(out):
    subprocess.run(['umount', '-l', out], check=True)


def rows():
  for row in SHORT:
    marks = () if row[:2] in PLAIN else (pytest.mark.slow,)
    yield pytest.param(*row, marks=marks, id=f'{row[0]}-{row[1]}')


@pytest.mark.parametrize('verb, what, much, says', rows())
def test_what_runs_out_is_named_and_the_same_command_ends_it(
  run, whole, mount, verb, what, much, says
):
  inputs, out, _, wanted = whole(verb)
  command, limits = verbs.command(verb, inputs, out), {}
  if what == 'disk':
    mount(f'size={much}')
  elif what == 'writing':
    mount(much)
  else:
    limits = {what: much}
  ended = run(command, out, limits=limits)
  if says:
    ours = [line for line in ended.said.splitlines() if line.startswith('tuna-jax ')]
    assert ended.code == 2 and says in ours[-1], ended.said[-3000:]
  assert ended.code, 'there was enough of it'
  if os.path.ismount(out):
    subprocess.run(['mount', '-o', f'remount,rw,{PLENTY}', str(out)], check=True)
  ended = run(command, out)
  assert ended.code == 0, ended.said[-3000:]
  assert processes.left(out) == wanted


@pytest.mark.slow
@pytest.mark.parametrize('verb', ['decoder', 'vae', 'import', 'pack', 'encode'])
def test_of_two_at_once_one_works_and_the_other_says_so_or_agrees(driver, whole, tmp_path, verb):
  inputs, out, _, wanted = whole(verb)
  command = verbs.command(verb, inputs, out)
  with processes.driver(tmp_path) as second:
    started = driver.start(command, out), second.start(command, out)
    ended = driver.end(started[0]), second.end(started[1])
  codes = sorted(one.code for one in ended)
  assert codes in ([0, 0], [0, 2]), [one.said[-2000:] for one in ended]
  refused = ''.join(one.said for one in ended if one.code)
  assert codes == [0, 0] or FINISHED in refused or 'works there' in refused, refused
  assert processes.left(out) == wanted


def test_limits_are_those_of_the_system():
  assert all(hasattr(resource, f'RLIMIT_{row[1]}') for row in SHORT if row[1].isupper())
