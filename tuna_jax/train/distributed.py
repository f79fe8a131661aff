"""Joins the processes of one run, and names the ones that are missing.

jax ends a process with a stack trace from C++ if another is missing, without naming it. So process
0 first calls the roll, over a plain socket at the address where jax's own coordinator listens next:

    process i  --'tuna_jax roll i n host'-->  process 0
    process i  <--'all here PORT TOKEN' | 'missing: ...'--  process 0

All get the same verdict; only after 'all here' does jax.distributed.initialize run. From then on
the processes watch each other through PORT (peers.py).
"""

import errno
import glob
import itertools
import logging
import os
import re
import secrets
import socket
import time

import jax

from tuna_jax.config import UserError
from tuna_jax.train import peers

logger = logging.getLogger(__name__)

HELLO = 'tuna_jax roll'
ALL_HERE = 'all here'
POLL_S = 0.2
REPORT_S = 60.0  # how often process 0 logs which processes it waits for
GRACE_S = 10.0  # how long after the deadline a process waits for the verdict

_peers: peers.Peers | None = None  # of this process, once it has joined others


class MissingProcesses(RuntimeError):
  """Some processes of the run are missing; starting it again may help. ids: those known absent."""

  def __init__(self, message: str, ids: tuple[int, ...] = ()):
    super().__init__(message)
    self.ids = ids


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout_s: float = 1800.0,
  expect: int | None = None,
) -> None:
  """Afterwards jax sees the devices of every process of the run. Call it before anything else
  touches a device.

  coordinator ('host:port' of process 0, the same in every process), num_processes and process_id go
  together. Without them the cluster is asked: Cloud TPU (one slice or several), GKE and Slurm know
  their own processes; on a single machine outside a cluster nothing happens. timeout_s: how long to
  wait for the others; the hosts of a pod come back minutes apart. expect: how many processes the
  launcher started, None to trust the cluster.

  Raises UserError if the arguments contradict each other, and MissingProcesses, which names them,
  if fewer processes than expected came in time.
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    if None in given:
      raise UserError(
        f'coordinator={coordinator!r}, num_processes={num_processes!r}, process_id={process_id!r}: '
        'give all three, or none inside a cluster'
      )
    local_device_ids = None
  elif _in_a_cluster(expect):
    coordinator, num_processes, process_id, local_device_ids = _ask_the_cluster(timeout_s)
  else:
    num_processes, process_id = 1, 0
  _check_count(num_processes, process_id, expect)
  if num_processes == 1:
    return
  global _peers
  deadline, bind = time.monotonic() + timeout_s, None
  if process_id == 0:
    _peers, address = _call_roll(coordinator, num_processes, deadline, timeout_s)
    if address:  # otherwise jax binds to all addresses of the host
      bind = (
        f'[{address}]:{_port(coordinator)}' if ':' in address else f'{address}:{_port(coordinator)}'
      )
  else:
    _peers = _answer_roll(coordinator, num_processes, process_id, deadline, timeout_s)
  peers.outlast_abort()
  jax.distributed.initialize(
    coordinator,
    num_processes,
    process_id,
    local_device_ids=local_device_ids,
    initialization_timeout=max(int(timeout_s), 1),
    coordinator_bind_address=bind,
  )


def leave(well: bool) -> None:
  """Tells the other processes of the run, if there are any, that this one ends: well, or with an
  error."""
  if _peers is not None:
    _peers.leave(well)


def blame() -> None:
  """After an error that another process may have caused: waits until it is known to be lost, which
  ends this one as well."""
  if _peers is not None:
    time.sleep(peers.SILENT_S)


def _in_a_cluster(expect) -> bool:
  """Whether to ask jax's cluster detection, which is slow where no metadata server answers."""
  if expect is not None and expect > 1:
    return True
  if 'SLURM_STEP_NODELIST' in os.environ and int(os.environ.get('SLURM_NTASKS', '1')) > 1:
    return True
  wanted = os.environ.get('JAX_PLATFORMS', '')
  tpu_chips = glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*')
  return bool(tpu_chips) and (not wanted or 'tpu' in wanted)


def _ask_the_cluster(timeout_s):
  # What a bare jax.distributed.initialize() runs; no public name answers before it connects.
  from jax._src import clusters

  unset = (None,) * 5
  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*unset, int(timeout_s))
  return (None, 1, 0, None) if found[0] is None else found


def _check_count(num_processes, process_id, expect):
  if not 0 <= process_id < num_processes:
    raise UserError(f'process_id={process_id}: expected a number from 0 to {num_processes - 1}')
  if expect is None or expect == num_processes:
    return
  here = f'this is process {process_id}, on {socket.gethostname()}'
  if num_processes > expect:
    raise UserError(
      f'expected {expect} processes, the run has {num_processes} ({here}); '
      f'unexpected: {spans(range(expect, num_processes))}'
    )
  absent = tuple(range(num_processes, expect))
  raise MissingProcesses(
    f'expected {expect} processes, the run has {num_processes} ({here}); missing: {spans(absent)}',
    absent,
  )


def _call_roll(coordinator, num_processes, deadline, timeout_s):
  """Process 0: gathers a line from each of the others, then tells them all the same verdict.
  Returns the watch over them, and the address that it listens at; '' for all of the host."""
  hosts = {0: socket.gethostname()}
  lines = {}  # process id -> its open connection, the latest one
  callers = []  # every connection that is owed the verdict
  fault, reported = '', time.monotonic()
  server, address = _listen(coordinator, deadline)
  with server:
    server.settimeout(POLL_S)
    while len(hosts) < num_processes and not fault and time.monotonic() < deadline:
      if time.monotonic() - reported > REPORT_S:
        reported, here = time.monotonic(), len(hosts)
        waiting = spans(n for n in range(num_processes) if n not in hosts)
        logger.warning('%d of %d processes are here; waiting for %s', here, num_processes, waiting)
      try:
        line, _ = server.accept()
      except TimeoutError:
        continue
      hello = re.fullmatch(rf'{HELLO} (\d{{1,9}}) (\d{{1,9}}) (\S+)', _read_line(line, 5.0))
      if not hello:
        line.close()  # a stranger: a port scan, a web browser, a process of an earlier run
        continue
      number, count, host = int(hello[1]), int(hello[2]), hello[3]
      if count != num_processes:
        fault = (
          f'process {number} on {host} was started with num_processes={count}, process 0 with '
          f'num_processes={num_processes}'
        )
      elif number == 0 or (number in lines and _is_open(lines[number])):
        fault = f'process id {number} is claimed twice: on {hosts[number]} and on {host}'
      hosts[number], lines[number] = host, line  # a process that fell and came again: its latest
      callers.append(line)
    absent = tuple(n for n in range(num_processes) if n not in hosts)
    here = ', '.join(f'{number} on {hosts[number]}' for number in sorted(hosts)[:8])
    more = f' and {len(hosts) - 8} more' if len(hosts) > 8 else ''
    missing = (
      f'{len(hosts)} of {num_processes} processes came within {timeout_s:g} s; '
      f'missing: {spans(absent)}; here: {here}{more}'
    )
    verdict = fault or (missing if absent else '')
    if not verdict:
      door, token = _open(address, 0), secrets.token_hex(16)
      verdict = f'{ALL_HERE} {door.getsockname()[1]} {token}'
      watch = peers.Peers(0)
      watch.listen(door, token, {n: host for n, host in hosts.items() if n})
    for line in callers:
      _say(line, verdict)
  if fault:
    raise UserError(fault)
  if absent:
    raise MissingProcesses(missing, absent)
  return watch, address


def _answer_roll(coordinator, num_processes, process_id, deadline, timeout_s):
  """Any other process: says that it is here, and waits for the verdict. Returns the watch over
  process 0."""
  host = coordinator.rpartition(':')[0].strip('[]')
  hello = f'{HELLO} {process_id} {num_processes} {socket.gethostname()}\n'.encode()
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, _port(coordinator)), timeout=5.0) as line:
        line.sendall(hello)
        verdict = _read_line(line, deadline - time.monotonic() + GRACE_S)
    except OSError:
      verdict = ''
    if verdict.startswith(ALL_HERE):
      port, token = verdict.removeprefix(ALL_HERE).split()
      watch = peers.Peers(process_id)
      watch.connect((host, int(port)), token)
      return watch
    if 'missing: ' in verdict:
      raise MissingProcesses(f'{verdict} (this is process {process_id})')
    if 'process' in verdict:
      raise UserError(verdict)
    time.sleep(POLL_S)  # process 0 is not up yet, or an earlier run's server still holds the port
  raise MissingProcesses(
    f'process 0 did not answer at {coordinator} within {timeout_s:g} s; missing: 0 '
    f'(this is process {process_id}, on {socket.gethostname()})',
    (0,),
  )


def _listen(coordinator, deadline):
  """(server at the address given, that address), as soon as an earlier run has let go of the port.

  The address is '' where it is none of this host, as that of a service before it: then the server
  is at all addresses.
  """
  host, port = coordinator.rpartition(':')[0].strip('[]'), _port(coordinator)
  while True:
    try:
      return _open(host, port), host and socket.getaddrinfo(host, port)[0][4][0]
    except OSError as error:
      if error.errno == errno.EADDRNOTAVAIL and host:
        logger.warning('%s is no address of %s: all of them are used', host, socket.gethostname())
        host = ''
      elif time.monotonic() > deadline:
        where = f'port {port} of the coordinator on {socket.gethostname()}'
        raise OSError(error.errno, f'{where}: {error.strerror}') from None
    time.sleep(POLL_S)


def _open(host: str, port: int) -> socket.socket:
  """A server at one address of this host, or at all of them."""
  if host:
    family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(where, family=family, backlog=1024)
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=1024)


def _is_open(line) -> bool:
  """Whether the peer is still there, waiting."""
  line.setblocking(False)
  try:
    return line.recv(1, socket.MSG_PEEK) != b''
  except BlockingIOError:
    return True
  except OSError:
    return False


def _port(coordinator) -> int:
  port = coordinator.rpartition(':')[2]
  if ':' not in coordinator or not port.isdigit():
    raise UserError(f'coordinator={coordinator!r}: expected host:port')
  return int(port)


def _read_line(line, timeout_s) -> str:
  """One line of at most 4 KiB; '' if the peer hung up or the time ran out before its end."""
  line.settimeout(max(timeout_s, 0.01))
  try:
    with line.makefile('rb') as text:
      return text.readline(4096).decode('utf-8', 'replace').strip()
  except OSError:
    return ''


def _say(line, verdict):
  try:
    line.settimeout(5.0)
    line.sendall(verdict.encode() + b'\n')
    line.shutdown(socket.SHUT_WR)
    line.recv(1)  # the peer hangs up first, so that no TIME_WAIT holds the port that jax binds next
  except OSError:
    logger.warning('a process left before it heard: %s', verdict)
  line.close()


def spans(numbers) -> str:
  """Rising numbers as '0, 3-5, 9', so that half a pod makes one line."""
  rising = itertools.count()
  groups = itertools.groupby(numbers, lambda number: number - next(rising))
  runs = [list(run) for _, run in groups]
  return ', '.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)
