"""Two runs never work in one folder; a run that died blocks nobody."""

import contextvars
import functools
import json
import os
import pathlib
import threading
import time

import pytest

from tests import shrink
from tuna_jax import files
from tuna_jax.train import lock, loop

storage = pytest.importorskip('tests.storage', reason='needs the emulator of the extra `test`')


@pytest.fixture(scope='module')
def bucket():
  with storage.bucket('locks') as url:
    yield url


@pytest.fixture
def fast(monkeypatch):
  monkeypatch.setattr(lock, 'BEAT_S', 0.05)
  monkeypatch.setattr(lock, 'STALE_S', 2.0)


@pytest.fixture(params=['disk', 'bucket'])
def run(request, tmp_path):
  """A folder on either kind of storage that does not exist yet."""
  if request.param == 'disk':
    return tmp_path / 'a' / 'run'
  url = request.getfixturevalue('bucket')
  return files.path(f'{url}/{tmp_path.name}/run')


def another(run):
  """Holds the folder as another thread or process would."""
  contextvars.Context().run(lambda: lock.hold(run).__enter__())


def leave(run, **changes):
  """A lock as a process of another machine leaves it when it is killed."""
  with lock.hold(run):
    about = files.read_json(run / 'lock') | changes
  if not files.is_remote(run):
    run.mkdir(parents=True, exist_ok=True)
  files.write_text(run / 'lock', json.dumps(about))


def test_the_second_of_two_runs_is_told_who_works_in_the_folder(run, fast):
  with lock.hold(run):
    who = f'{os.uname().nodename}, process {os.getpid()}, since 2'
    with pytest.raises(lock.Held, match=f'another run works there: {who}'):
      another(run)
  assert not (run / 'lock').exists() and not run.exists()
  with lock.hold(run):
    pass


def test_a_block_within_a_block_of_one_folder_shares_its_lock(run):
  with lock.hold(run) as outer:
    with lock.hold(run) as inner:
      assert inner is outer
    assert (run / 'lock').exists()
  assert not (run / 'lock').exists()


def test_what_a_dead_process_of_this_machine_left_blocks_nobody(run):
  leave(run, born=lock._born(os.getpid()) + '0')  # our own number, of another life
  began = time.monotonic()
  with lock.hold(run):
    assert time.monotonic() - began < 5


def test_a_silent_holder_on_another_machine_is_waited_for_and_then_taken_over(run, fast, caplog):
  leave(run, host='far', machine='another')
  began = time.monotonic()
  with lock.hold(run):
    assert time.monotonic() - began > lock.STALE_S
  assert 'taken over from far, process' in caplog.text


def test_a_holder_on_another_machine_that_gives_a_sign_of_life_is_not_taken_over(run, fast):
  leave(run, host='far', machine='another')
  remote, text = files.is_remote(run), (run / 'lock').read_text()
  beat = functools.partial(files.write_text, run / 'lock', text)
  renew = threading.Timer(0.2, beat if remote else functools.partial(os.utime, run / 'lock'))
  renew.start()
  with pytest.raises(lock.Held, match='another run works there: far, process'):
    another(run)
  renew.join()


def test_a_run_that_slept_while_another_took_over_is_told_so(run, fast):
  with lock.hold(run) as held:
    held.check()
    about = files.read_json(run / 'lock') | {'host': 'far', 'id': 'another'}
    if not files.is_remote(run):
      os.unlink(run / 'lock')
    files.write_text(run / 'lock', json.dumps(about))
    until = time.monotonic() + 10
    with pytest.raises(lock.Held, match='taken over by another run: far'):
      while time.monotonic() < until:
        held.check()
        time.sleep(0.01)
  assert files.read_json(run / 'lock')['host'] == 'far'  # the lock of the other one stays


def test_of_many_that_start_at_once_one_runs(run, fast):
  began, inside, refused = threading.Barrier(4), [], []

  def start():
    began.wait()
    try:
      with lock.hold(run):
        inside.append(1)
        while len(refused) < 3:
          time.sleep(0.01)
    except lock.Held:
      refused.append(1)

  threads = [threading.Thread(target=start) for _ in range(4)]
  [thread.start() for thread in threads]
  [thread.join(60) for thread in threads]
  assert (len(inside), len(refused)) == (1, 3)


def test_training_in_a_folder_that_is_held_is_refused_and_changes_nothing(tmp_path):
  with lock.hold(tmp_path / 'run'):
    with pytest.raises(lock.Held, match='another run works there'):
      contextvars.Context().run(loop.train, shrink.stage('stage1'), str(tmp_path / 'run'))
    assert [p.name for p in pathlib.Path(tmp_path / 'run').iterdir()] == ['lock']
