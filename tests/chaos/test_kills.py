"""Every verb that writes, struck by every signal at seeded moments: started again, it ends as if
nothing had been. A fast sample runs always, all of it with --slow.
"""

import itertools
import os
import random
import shutil
import signal
from typing import NamedTuple

import pytest

from tests.chaos import processes, verbs
from tuna_jax.stopping import AGAIN, SIGNALS

SEED = 15
# How many points each verb has; of two verbs that do not compile one is in the plain suite.
POINTS = {
  'train': 6, 'decoder': 14, 'vae': 8, 'evaluate': 3, 'generate': 4, 'import': 5, 'export': 4,
  'assemble': 4, 'merge': 4, 'pack': 8, 'encode': 6, 'shapes': 2, 'preview': 2, 'verify': 1,
}  # fmt: skip
PLAIN = ('import', 'pack')
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


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  with processes.driver(tmp_path_factory.mktemp('said')) as made:
    yield made.run


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  """Runs a verb undisturbed, once: (its inputs, where it writes, its moments, what it leaves)."""
  root, known = tmp_path_factory.mktemp('kills'), {}
  inputs, out = root / 'in', root / 'out'
  inputs.mkdir()
  verbs.album(inputs / 'album')
  verbs.weights(inputs / 'weights')

  def find(verb):
    if verb in ('evaluate', 'generate') and not (inputs / 'run').exists():
      find('train')
    if verb not in known:
      shutil.rmtree(out, ignore_errors=True)
      out.mkdir()
      ended = run(verbs.command(verb, inputs, out), out)
      assert ended.code == 0, ended.said
      if verb == 'train':
        shutil.copytree(out / 'run', inputs / 'run')
      known[verb] = ended.moments, processes.left(out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return inputs, out, *known[verb]

  return find


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
    shutil.rmtree(out)
    out.mkdir()
    ended = run(command, out, at=at, number=point.number)
  if point.number == signal.SIGKILL:
    assert ended.code == -signal.SIGKILL, ended.said
  else:
    last = ended.said.strip().splitlines()[-1]
    late = ended.code == 0 and processes.left(out) == wanted  # everything was done
    assert late or (ended.code == AGAIN and 'the same command' in last), ended.said
  finish(run, command, out)
  assert processes.left(out) == wanted


def test_the_matrix_has_sixty_points_of_all_signals():
  every = [param.values[0] for param in points()]
  assert len(every) >= 60 and {p.number for p in every} == {signal.SIGKILL, *SIGNALS}
  assert len({p.verb for p in every}) == len(verbs.VERBS) and os.name == 'posix'
