"""Every verb that writes, struck by every signal at seeded moments: started again, it ends as if
nothing had been. A fast sample runs always, all of it with --slow.
"""

import itertools
import os
import random
import shutil
import signal
import socket
import sys
import time
from typing import NamedTuple

import pytest

from tests.chaos import processes, verbs
from tuna_jax.stopping import AGAIN, SIGNALS

SEED = 15
# How many points each verb has; of two verbs that do not compile one is in the plain suite.
POINTS = {
  'train': 6, 'decoder': 10, 'vae': 6, 'evaluate': 3, 'generate': 4, 'import': 5, 'export': 4,
  'assemble': 4, 'merge': 4, 'pack': 8, 'encode': 6, 'shapes': 2, 'preview': 2, 'verify': 1,
  'fit': 3, 'index': 3, 'get': 4, 'align': 2,
}  # fmt: skip
PLAIN = ('import', 'pack')
WORKER = f'{sys.executable} -m tuna_jax.cli'
FINISHED = 'exists already; choose another --output or remove it'


class Point(NamedTuple):
  """Where a verb is struck: after this share of its moments."""

  verb: str
  number: signal.Signals
  share: float


def points():
  """Half of them are kills; the other signals take turns."""
  rng, others, found = random.Random(SEED), itertools.cycle(SIGNALS), []
  for verb, count in POINTS.items():
    for n in range(count):
      number = next(others) if n % 2 else signal.SIGKILL
      point = Point(verb, number, round(rng.random(), 3))
      marks = () if verb in PLAIN and n == (verb == 'pack') else (pytest.mark.slow,)
      found.append(pytest.param(point, marks=marks, id=f'{verb}-{number.name}-{point.share}'))
  return found


def finish(run, command, out):
  """Runs a command again until it is done, and says in how many starts."""
  ended = run(command, out)
  done = ended.code == 0 or (ended.code == 2 and FINISHED in ended.said)
  assert done, f'exit {ended.code}: {ended.said[-2000:]}'


@pytest.mark.parametrize('point', points())
def test_a_verb_that_was_struck_ends_as_one_that_was_not(point, run, whole):
  inputs, out, moments, wanted = whole(point.verb)
  command = verbs.command(point.verb, inputs, out)
  at = 1 + int(point.share * moments)
  ended = run(command, out, at=at, number=point.number)
  if ended.moments < at:  # a run that is slow saves more often, since some saves go by the clock
    at = 1 + int(point.share * 0.8 * ended.moments)
    verbs.begin(point.verb, inputs, out)
    ended = run(command, out, at=at, number=point.number)
  if point.number == signal.SIGKILL:
    assert ended.code == -signal.SIGKILL, ended.said
  else:
    last = ended.said.strip().splitlines()[-1]
    late = ended.code == 0 and processes.left(out) == wanted  # everything was done
    assert late or (ended.code == AGAIN and 'the same command' in last), ended.said
  finish(run, command, out)
  assert processes.left(out) == wanted


@pytest.mark.slow
@pytest.mark.parametrize('verb, line', [('serve', 1), ('demo', 1), ('compare', 3)])
def test_a_verb_that_would_go_on_ends_at_once_when_it_is_asked_to(verb, line, run, place):
  if verb == 'demo':
    pytest.importorskip('gradio')
  inputs, out = place
  verbs.begin(verb, inputs, out)
  command = verbs.command(verb, inputs, out)
  ended = run(command, inputs, at=line, number=signal.SIGTERM)  # a moment is a line it prints
  last = ended.said.strip().splitlines()[-1]
  assert ended.code == AGAIN and 'the same command' in last, ended.said


@pytest.mark.slow
@pytest.mark.parametrize(
  'script, number',
  [('supervise', n) for n in (*SIGNALS, signal.SIGKILL)]
  + [('local', n) for n in (signal.SIGTERM, signal.SIGKILL)],
)
def test_a_script_passes_signals_on_and_runs_again_what_was_killed(script, number, driver, whole):
  _, verb, begun = verbs.SCRIPTS[script]
  inputs, out, _, wanted = whole(verb)
  command = verbs.command(script, inputs, out)
  started = leader, said = driver.start(command, out, count=False)
  while not any(out.glob(begun)):
    assert processes.session(leader), said.read_text()
    time.sleep(0.01)
  if number == signal.SIGKILL:
    (leader,) = (k for k, line in processes.session(leader).items() if line.startswith(WORKER))
  os.kill(leader, number)
  ended = driver.end(started)
  assert ended.code == (0 if number == signal.SIGKILL else AGAIN), ended.said
  finish(driver.run, command, out)
  shutil.rmtree(out / 'compile-cache', ignore_errors=True)
  assert processes.left(out) == wanted


@pytest.mark.slow
@pytest.mark.parametrize('verb, number', [
  ('pack', signal.SIGTERM), ('encode', signal.SIGHUP), ('vae', None),
  ('evaluate', signal.SIGUSR1)])  # fmt: skip
def test_data_that_never_answer_keep_nobody_from_ending(verb, number, driver, place):
  inputs, out = place
  verbs.begin(verb, inputs, out)
  mixture = f'{inputs}/album/remote.json'
  command = verbs.command(verb, inputs, out)
  command = [part.replace(f'{inputs}/album/mixture.json', mixture) for part in command]
  if verb == 'vae':
    command += [f'--config.data.mixture={mixture}', '--config.wait=5']
  if verb == 'evaluate':  # a run that was trained on records, and is judged on others
    album = [f'--config.data.mixture={inputs}/album/mixture.json']
    album.append('--config.data.max_skip_share=0.5')
    trained = driver.run([*verbs.command('train', inputs, inputs / 'own'), *album], inputs)
    assert trained.code == 0, trained.said
    command = [part.replace(f'{inputs}/run', f'{inputs}/own/run') for part in command]
    command.append(f'--test_mixture={mixture}')
  with socket.create_server(('127.0.0.1', 0)) as silent:
    host = f'http://127.0.0.1:{silent.getsockname()[1]}'
    environment = {'STORAGE_EMULATOR_HOST': host}
    started = driver.start(command, out, count=False, environment=environment)
    silent.settimeout(300)
    with silent.accept()[0]:
      if number:
        os.kill(started[0], number)
      ended = driver.end(started)
  assert ended.code == AGAIN and 'the same command' in ended.said.splitlines()[-1], ended.said
  assert number or f'data takes longer; reading {inputs}/album/t2i.jsonl:' in ended.said


def test_the_matrix_has_sixty_points_of_all_signals():
  every = [param.values[0] for param in points()]
  assert len(every) >= 60 and {p.number for p in every} == {signal.SIGKILL, *SIGNALS}
  assert {p.verb for p in every} == set(verbs.VERBS)
