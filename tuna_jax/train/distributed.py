"""Joins the processes of one run, and says by name who did not come.

jax ends a process with a stack trace from C++ when another one is missing, and does not say which.
So a roll is called first, over a plain socket at the address where jax's own coordinator will
listen a moment later:

    process i  --'tuna_jax roll i n host'-->  process 0
    process i  <--'all here' | 'missing: ...'--  process 0

Everybody gets the same verdict; only after 'all here' does jax.distributed.initialize run.
"""

import glob
import logging
import os
import socket
import time

import jax

from tuna_jax.config import UserError

logger = logging.getLogger(__name__)

HELLO = 'tuna_jax roll'
ALL_HERE = 'all here'
POLL_S = 0.2
REPORT_S = 60.0  # process 0 logs this often who it is waiting for
GRACE_S = 10.0  # what a process grants process 0, beyond the deadline, to send the verdict


class MissingProcesses(RuntimeError):
  """Some processes of the run did not come; a relaunch may cure it. `ids`: those known absent."""

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
  """Afterwards jax sees the devices of every process of the run.

  With no address the cluster is asked: Cloud TPU (one slice or several), GKE and Slurm know their
  own processes. On a single machine outside a cluster nothing happens. Call it before anything else
  touches a device.

  Args:
    coordinator: 'host:port' of process 0, the same in every process. With it come the next two.
    num_processes: how many processes there are.
    process_id: this one's number, in [0, num_processes).
    timeout_s: seconds to wait for the others. Half an hour by default: the hosts of a pod come
      back minutes apart.
    expect: how many processes the launcher started; None to trust the cluster.

  Raises:
    ValueError: the arguments contradict each other.
    MissingProcesses: fewer processes than expected came in time; the text names them.
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
  deadline = time.monotonic() + timeout_s
  if process_id == 0:
    _call_roll(coordinator, num_processes, deadline, timeout_s)
  else:
    _answer_roll(coordinator, num_processes, process_id, deadline, timeout_s)
  jax.distributed.initialize(
    coordinator,
    num_processes,
    process_id,
    local_device_ids=local_device_ids,
    initialization_timeout=max(int(timeout_s), 1),
  )


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
  # The detection that a bare jax.distributed.initialize() runs; no public name gives its answer
  # before it connects.
  from jax._src import clusters

  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, int(timeout_s)
  )
  coordinator, num_processes, process_id, local_device_ids = found
  if coordinator is None:
    return None, 1, 0, None
  return coordinator, num_processes, process_id, local_device_ids


def _check_count(num_processes, process_id, expect):
  if not 0 <= process_id < num_processes:
    raise UserError(f'process_id={process_id}: expected a number from 0 to {num_processes - 1}')
  if expect is None or expect == num_processes:
    return
  here = f'this is process {process_id}, on {socket.gethostname()}'
  if num_processes > expect:
    raise UserError(
      f'expected {expect} processes, the run has {num_processes} ({here}); '
      f'unexpected: {_spans(range(expect, num_processes))}'
    )
  absent = tuple(range(num_processes, expect))
  raise MissingProcesses(
    f'expected {expect} processes, the run has {num_processes} ({here}); missing: {_spans(absent)}',
    absent,
  )


def _call_roll(coordinator, num_processes, deadline, timeout_s):
  """Process 0: gathers a line from each of the others, then tells them all the same verdict."""
  hosts = {0: socket.gethostname()}
  lines = {}  # process id -> its open connection, the latest one
  callers = []  # every connection that is owed the verdict
  fault = ''
  reported = time.monotonic()
  with _listen(_port(coordinator), deadline) as server:
    server.settimeout(POLL_S)
    while len(hosts) < num_processes and not fault and time.monotonic() < deadline:
      if time.monotonic() - reported > REPORT_S:
        reported = time.monotonic()
        logger.warning(
          '%d of %d processes are here; waiting for %s',
          len(hosts),
          num_processes,
          _spans(_absent(hosts, num_processes)),
        )
      try:
        line, _ = server.accept()
      except TimeoutError:
        continue
      hello = _read_line(line, 5.0).removeprefix(HELLO).split(maxsplit=2)
      if len(hello) != 3:
        line.close()  # a stranger: a port scan, or a process of an earlier run
        continue
      number, count, host = int(hello[0]), int(hello[1]), hello[2]
      if count != num_processes:
        fault = (
          f'process {number} on {host} was told of {count} processes, process 0 of {num_processes}'
        )
      elif number == 0 or (number in lines and _is_open(lines[number])):
        fault = f'process id {number} is claimed twice: on {hosts[number]} and on {host}'
      # A second call from a fallen process replaces its first.
      hosts[number], lines[number] = host, line
      callers.append(line)
    absent = _absent(hosts, num_processes)
    if fault:
      verdict = fault
    elif absent:
      present = ', '.join(f'{number} on {hosts[number]}' for number in sorted(hosts)[:8])
      more = f' and {len(hosts) - 8} more' if len(hosts) > 8 else ''
      verdict = (
        f'{len(hosts)} of {num_processes} processes came within {timeout_s:g} s; '
        f'missing: {_spans(absent)}; here: {present}{more}'
      )
    else:
      verdict = ALL_HERE
    for line in callers:
      _say(line, verdict)
  if fault:
    raise UserError(verdict)
  if absent:
    raise MissingProcesses(verdict, absent)


def _answer_roll(coordinator, num_processes, process_id, deadline, timeout_s):
  """Any other process: says that it is here, and waits for the verdict."""
  host = coordinator.rpartition(':')[0].strip('[]')
  hello = f'{HELLO} {process_id} {num_processes} {socket.gethostname()}\n'.encode()
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, _port(coordinator)), timeout=5.0) as line:
        line.sendall(hello)
        verdict = _read_line(line, deadline - time.monotonic() + GRACE_S)
    except OSError:
      verdict = ''
    if verdict == ALL_HERE:
      return
    if 'missing: ' in verdict:
      raise MissingProcesses(f'{verdict} (this is process {process_id})')
    if 'process' in verdict:
      raise UserError(verdict)
    time.sleep(
      POLL_S
    )  # process 0 is not up yet, or a server of an earlier run still holds the port
  raise MissingProcesses(
    f'process 0 did not answer at {coordinator} within {timeout_s:g} s; missing: 0 '
    f'(this is process {process_id}, on {socket.gethostname()})',
    (0,),
  )


def _listen(port, deadline):
  """A server on every address of this host, as soon as an earlier run has let go of the port."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  while True:
    try:
      return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
      if time.monotonic() > deadline:
        raise OSError(
          error.errno, f'port {port} of the coordinator on {socket.gethostname()}: {error.strerror}'
        ) from None
    time.sleep(POLL_S)


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
  """One line of at most 4 KiB; what there was of it when the peer hung up or the time ran out."""
  deadline = time.monotonic() + timeout_s
  text = b''
  while not text.endswith(b'\n') and len(text) < 4096:
    line.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
      piece = line.recv(4096)
    except OSError:
      break
    if not piece:
      break
    text += piece
  return text.decode('utf-8', 'replace').strip()


def _say(line, verdict):
  try:
    line.settimeout(5.0)
    line.sendall(verdict.encode() + b'\n')
    line.shutdown(socket.SHUT_WR)
    line.recv(1)  # the peer hangs up first, so that no TIME_WAIT holds the port that jax binds next
  except OSError:
    logger.warning('a process left before it heard: %s', verdict)
  line.close()


def _absent(hosts, num_processes) -> tuple[int, ...]:
  return tuple(number for number in range(num_processes) if number not in hosts)


def _spans(numbers) -> str:
  """'0, 3-5, 9': so that half a pod missing still makes one line."""
  spans = []
  for number in numbers:
    if spans and number == spans[-1][1] + 1:
      spans[-1][1] = number
    else:
      spans.append([number, number])
  return ', '.join(str(a) if a == b else f'{a}-{b}' for a, b in spans)
