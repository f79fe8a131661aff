"""Watches, while a run of several processes goes on, that none of them is lost.

jax notices after minutes, and ends a process with a stack trace from C++ then. So each process
holds a connection to process 0, which is open as long as both live. When one breaks, or a host
falls silent, process 0 tells the others who is gone, and all end with code 75 within seconds.

    process i  --'tuna_jax peer i TOKEN host'-->  process 0
    process i  <--'lost j host' | 'ends j host' | 'bye'-->  process 0

'bye': the work is done or saved. 'ends': an error of its own, which the others may meet too.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time

from tuna_jax import stopping

HELLO = 'tuna_jax peer'
COME_S = 60.0  # within which the others connect
SILENT_S = 20  # after which a host that answers nothing is lost
OWN_S = 15.0  # for the others to meet the error that ended one of them

logger = logging.getLogger(__name__)


class Peers:
  """The connections of this process. process_id: its number; hosts: the others by number."""

  def __init__(self, process_id: int):
    self._me, self._left, self._lines = process_id, False, {}
    self._selector, self._lock = selectors.DefaultSelector(), threading.Lock()

  def listen(self, server: socket.socket, token: str, hosts: dict[int, str]) -> None:
    """Process 0: waits for the others, `hosts` by number, at `server`."""
    self._token, self._hosts, self._until = token, hosts, time.monotonic() + COME_S
    self._selector.register(server, selectors.EVENT_READ, self._accept)
    self._start()

  def connect(self, address: tuple[str, int], token: str) -> None:
    """Any other process: holds on to process 0 at `address`."""
    line = socket.create_connection(address, timeout=COME_S)
    line.sendall(f'{HELLO} {self._me} {token} {socket.gethostname()}\n'.encode())
    self._hosts, self._until = {0: address[0]}, float('inf')
    self._watch(0, line)
    self._start()

  def leave(self, well: bool) -> None:
    """Tells the others that this process ends, and stops watching them."""
    with self._lock:
      self._left = True
      for line in self._lines.values():
        _say(line, 'bye' if well else f'ends {self._me} {socket.gethostname()}')

  def _start(self):
    threading.Thread(target=self._run, name='tuna-peers', daemon=True).start()

  def _run(self):
    while not self._left:
      for key, _ in self._selector.select(timeout=1.0):
        key.data(key.fileobj)
      if time.monotonic() > self._until and (absent := self._hosts.keys() - self._lines.keys()):
        self._end('lost', min(absent))

  def _accept(self, server):
    line, _ = server.accept()
    line.settimeout(2.0)
    said = _read(line).removeprefix(HELLO).split()
    known = [str(number) for number in self._hosts.keys() - self._lines.keys()]
    if len(said) != 3 or said[0] not in known or said[1] != self._token:
      line.close()  # a stranger
      return
    self._watch(int(said[0]), line)

  def _watch(self, number: int, line: socket.socket):
    line.settimeout(5.0)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 5), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', SILENT_S // 5)):
      if hasattr(socket, name):  # macOS has other names
        line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self._lines[number] = line
    self._selector.register(line, selectors.EVENT_READ, lambda line: self._hear(number, line))

  def _hear(self, number: int, line: socket.socket):
    """Something came from a process, or its connection broke."""
    try:
      said = line.recv(1024).decode(errors='replace').split()
    except OSError:
      said = []
    if said[:1] == ['bye']:
      self._selector.unregister(line)
      with self._lock:
        del self._lines[number]
        self._hosts.pop(number, None)
    elif len(said) >= 3 and said[0] in ('lost', 'ends'):
      self._end(said[0], int(said[1]), said[2])
    else:
      self._end('lost', number)

  def _end(self, how: str, number: int, host: str = ''):
    """Tells all that one is lost, or ends with an error, and ends this process."""
    host = host or self._hosts[number]
    with self._lock:
      if self._left:
        return
      for line in self._lines.values():
        _say(line, f'{how} {number} {host}')
    if how == 'ends':
      time.sleep(OWN_S)
    what = 'is lost' if how == 'lost' else 'ended with an error of its own'
    print(
      f'tuna-jax: process {number} on {host} {what}, so process {self._me} on '
      f'{socket.gethostname()} stops; the same command continues from the newest checkpoint',
      file=sys.stderr,
      flush=True,
    )
    os._exit(stopping.AGAIN)


def outlast_abort() -> None:
  """Where the coordinator is lost, C++ aborts. From now on the thread that does so first sleeps,
  for the number of the signal, which is 6 seconds; this process ends as it should meanwhile."""
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _read(line: socket.socket) -> str:
  """The first line that comes, and nothing of what follows; '' if there is none."""
  said = b''
  try:
    while len(said) < 1024 and (byte := line.recv(1)) not in (b'', b'\n'):
      said += byte
  except OSError:
    return ''
  return said.decode(errors='replace')


def _say(line: socket.socket, text: str):
  try:
    line.sendall(f'{text}\n'.encode())
  except OSError:
    logger.debug('a process was gone before it heard: %s', text)
