"""One run per folder: a lock that names its holder and is taken over once the holder is gone.

    RUN/lock    who holds it: host, process, since when; renewed every BEAT_S

On local disks the kernel drops the lock (flock) with the process, so a holder of this machine is
known to be alive or dead, whatever its number was; containers of one machine see each other's.
Elsewhere, on object storage and where another machine holds it, a holder lives if it renews the
file within STALE_S.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import json
import logging
import os
import pathlib
import platform
import threading
import time
import types
import uuid
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from tuna_jax import files
from tuna_jax.config import UserError

BEAT_S = 10.0
STALE_S = 60.0
LONG_DEAD = 10.0  # times STALE_S by the clocks of two machines, after which nobody waits
NAME = 'lock'

_log = logging.getLogger(__name__)
_held = contextvars.ContextVar('held', default=types.MappingProxyType({}))  # by folder, per thread


class Held(UserError):
  """Another run works in the folder, or has taken it over; the message names it."""


class _Found(NamedTuple):
  """What lies there: who holds it, what changes when it is renewed, and when that was."""

  holder: dict
  sign: object
  renewed: float


@contextlib.contextmanager
def hold(folder: str | os.PathLike):
  """Holds `folder` within the block, which process 0 does for all processes of the run; yields the
  Lock, the same one within a block of this thread that holds the folder already. A folder that was
  made for it and stayed empty is removed again.

  Raises Held, in every process, naming who holds it. If that one gives no sign of life, waits until
  it does or STALE_S have passed, and then takes over.
  """
  name, fault = str(files.absolute(folder)), ''
  if name in _held.get():
    yield _held.get()[name]
    return
  where = files.path(folder)
  if where.exists() and not where.is_dir():
    raise UserError(f'{folder}: is a file; expected a folder')
  lock = Lock(folder)
  with contextlib.ExitStack() as closing:
    if jax.process_index() == 0:
      try:
        closing.enter_context(lock.held())
      except Held as error:
        fault = str(error)
    if jax.process_count() > 1:
      told = np.frombuffer(fault.encode()[:1000].ljust(1000), np.uint8)
      fault = bytes(multihost_utils.broadcast_one_to_all(told)).decode(errors='replace').strip()
    if fault:
      raise Held(fault)
    closing.callback(_held.reset, _held.set({**_held.get(), name: lock}))
    yield lock


class Lock:
  """The lock of one folder."""

  def __init__(self, folder: str | os.PathLike):
    self._folder = files.absolute(folder)
    self._file = (_Object if files.is_remote(self._folder) else _Local)(self._folder / NAME)
    self._mine = {
      'host': platform.node(),
      'process': os.getpid(),
      'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
      'machine': _machine(),
      'born': _born(os.getpid()),
      'id': uuid.uuid4().hex,
    }
    self._lost = ''

  def check(self) -> None:
    """Raises Held if another run has taken the folder over, as after a long sleep of this one."""
    if self._lost:
      raise Held(self._lost)

  @contextlib.contextmanager
  def held(self):
    """Holds the folder within the block."""
    new = [] if files.is_remote(self._folder) else [
      p for p in (self._folder, *self._folder.parents) if not p.exists()
    ]  # fmt: skip
    self._folder.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    try:
      self._take()
      beats = threading.Thread(target=self._beat, args=(ended,), name='tuna-lock', daemon=True)
      beats.start()
      try:
        yield self
      finally:
        ended.set()
        beats.join()
        self._file.release(self._mine['id'])
    finally:
      with contextlib.suppress(OSError):
        for made in new:
          os.rmdir(made)

  def _take(self):
    """Returns when the folder is ours."""
    seen, since = None, time.monotonic()
    while True:
      found = self._file.take(self._mine)
      if found is None:
        return
      who = '{host}, process {process}, since {since}'.format(**found.holder)
      if found.sign is None or (seen is not None and found.sign != seen):
        raise Held(
          f'{self._folder}: another run works there: {who}; stop it, or take another folder'
        )
      silent = time.monotonic() - since
      if silent > STALE_S or time.time() - found.renewed > LONG_DEAD * STALE_S:
        _log.warning('%s: taken over from %s, which gives no sign of life', self._folder, who)
        self._file.remove(found)
        seen, since = None, time.monotonic()
        continue
      if seen is None:
        seen = found.sign
        _log.warning(
          '%s: held by %s; waiting up to %g s for a sign of life', self._folder, who, STALE_S
        )
      time.sleep(BEAT_S / 10)

  def _beat(self, ended: threading.Event):
    while not ended.wait(BEAT_S):
      try:
        other = self._file.renew(self._mine)
      except Exception as error:  # a network that comes back; until then others may take over
        _log.warning('%s: the lock is not renewed: %s', self._folder, error)
        continue
      if other is not None:
        who = '{host}, process {process}, since {since}'.format(**other) if other else 'nobody'
        self._lost = f'{self._folder}: taken over by another run: {who}'
        return


class _Local:
  """The lock as a file of a disk."""

  def __init__(self, path):
    self._path, self._fd = str(path), None

  def take(self, mine: dict) -> _Found | None:
    """None if the file is ours now; its sign is None if the holder is known to be alive."""
    while True:
      fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        found = self._found(fd, alive=True)
        os.close(fd)
        if found.holder['id']:
          return found
        time.sleep(0.01)  # its holder has not written its name yet
        continue
      if not _same(fd, self._path):  # its holder removed it meanwhile
        os.close(fd)
        continue
      found = self._found(fd)
      if found.holder['id'] and found.holder['machine'] != mine['machine']:
        os.close(fd)
        return found
      os.truncate(fd, 0)
      os.pwrite(fd, json.dumps(mine).encode(), 0)
      self._fd = fd
      return None

  def _found(self, fd, alive=False) -> _Found:
    stat = os.fstat(fd)
    return _Found(_read(os.pread(fd, 4096, 0)), None if alive else stat.st_mtime_ns, stat.st_mtime)

  def remove(self, found: _Found):
    """Removes what was found, if it has not changed."""
    with contextlib.suppress(FileNotFoundError):
      if os.stat(self._path).st_mtime_ns == found.sign:
        os.unlink(self._path)

  def renew(self, mine: dict) -> dict | None:
    """A sign of life; what is there instead of `mine`, if anything."""
    if _same(self._fd, self._path):
      os.utime(self._fd)
      return None
    with contextlib.suppress(FileNotFoundError):
      return _read(pathlib.Path(self._path).read_bytes())
    return {}

  def release(self, own: str):
    """Removes the file if it is still ours."""
    if _same(self._fd, self._path):
      os.unlink(self._path)
    os.close(self._fd)


class _Object:
  """The lock as an object of object storage, which is created only where none is."""

  def __init__(self, path):
    self._path, self._storage = str(path), files.storage(path)

  def take(self, mine: dict) -> _Found | None:
    """None if the object is ours now."""
    while True:
      try:
        self._storage.pipe_file(self._path, json.dumps(mine).encode(), mode='create')
        return None
      except FileExistsError:
        found = self._found()
      if found is not None and found.holder['id'] == mine['id']:
        return None  # the answer to the first request was lost, and it was sent again
      if found is not None and _dead(found.holder, mine):
        self.remove(found)
      elif found is not None:
        return found

  def _found(self) -> _Found | None:
    try:
      about = self._storage.info(self._path)
      holder = _read(self._storage.cat_file(self._path))
    except FileNotFoundError:
      return None
    return _Found(holder, *self._sign(about))

  def _sign(self, about) -> tuple[tuple[str, str], float]:
    renewed = about.get('metadata', {}).get('renewed', '0')
    return (about['generation'], renewed), max(float(renewed), about['mtime'].timestamp())

  def remove(self, found: _Found):
    """Removes what was found, if it has not changed."""
    bucket, _, name = self._path.partition('://')[2].partition('/')
    with contextlib.suppress(FileNotFoundError, FileExistsError):  # gone, or another one
      if self._sign(self._storage.info(self._path))[0] == found.sign:
        known = {'ifGenerationMatch': found.sign[0]}
        self._storage.call('DELETE', 'b/{}/o/{}', bucket, name, **known)

  def renew(self, mine: dict) -> dict | None:
    """A sign of life; what is there instead of `mine`, if anything."""
    found = self._found()
    if found is None or found.holder['id'] != mine['id']:
      return {} if found is None else found.holder
    self._storage.setxattrs(self._path, renewed=str(time.time()))  # its content stays
    return None

  def release(self, own: str):
    """Removes the object if it is still ours."""
    found = self._found()
    if found is not None and found.holder['id'] == own:
      self.remove(found)


def _read(data: bytes) -> dict:
  """Who holds it; unknown where that is not written."""
  nobody = dict.fromkeys(('host', 'process', 'since', 'machine', 'born', 'id'), '')
  try:
    found = json.loads(data)
    return nobody | found
  except (ValueError, TypeError):
    return nobody


def _same(fd: int, path: str) -> bool:
  """Whether the open file is still the one of that name."""
  try:
    return os.path.samestat(os.fstat(fd), os.stat(path))
  except FileNotFoundError:
    return False


def _dead(holder: dict, mine: dict) -> bool:
  """Whether the holder is a process that is known to have ended: of this machine, and gone."""
  if holder['machine'] != mine['machine'] or not holder['born'] or not mine['born']:
    return False
  space = lambda born: born.partition(' ')[0]
  return space(holder['born']) == space(mine['born']) and _born(holder['process']) != holder['born']


def _born(process: int) -> str:
  """The space of numbers a process has its own from, and when it started; '' if there is none."""
  try:
    stat = pathlib.Path(f'/proc/{process}/stat').read_text()
    return f'{os.readlink("/proc/self/ns/pid")} {stat.rpartition(")")[2].split()[19]}'
  except OSError:
    return ''


def _machine() -> str:
  """What containers of one machine share and two machines do not."""
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    return platform.node()
