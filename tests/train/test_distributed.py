"""Processes that meet over loopback: they join and compute together; an absent one is named."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import shrink
from tuna_jax.train import distributed, peers
from tuna_jax.weights.digest import of_lazy
from tuna_jax.weights.tensors import lazy

ROOT = pathlib.Path(__file__).parents[2]

# gloo's threads write to file descriptor 1, in the middle of our lines: what is printed here goes
# its own way.
JOIN = """\
import os, sys
sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)
from tuna_jax.train import distributed
address, count, number, timeout, expect = sys.argv[1:]
try:
  expect = None if expect == '-' else int(expect)
  distributed.initialize(address, int(count), int(number), float(timeout), expect)
except (distributed.MissingProcesses, ValueError) as error:
  print(type(error).__name__, error)
  sys.exit(3)
"""

TOGETHER = (
  JOIN
  + """\
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
assert jax.process_count() == 2 and jax.device_count() == 4, jax.devices()
print(multihost_utils.process_allgather(np.float32(10 + jax.process_index())).tolist())
mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
rows = jax.make_array_from_process_local_data(
    NamedSharding(mesh, PartitionSpec('data')), np.arange(2.0) + 2 * jax.process_index())
print(float(jax.jit(jnp.sum)(rows)))
from tuna_jax.weights import digest
print(digest.of_arrays({'by numpy': rows})['by numpy'])
digest.COMPILED = 0
print(digest.of_arrays({'by a compiled loop': rows})['by a compiled loop'])
"""
)


def free_port() -> int:
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


def start(script, address, count, number, timeout=60, expect='-', **environment):
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': shrink.flags(2),
    'PYTHONPATH': str(ROOT),
  } | environment
  return subprocess.Popen(
    [sys.executable, '-c', script, address, str(count), str(number), str(timeout), str(expect)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | environment,
  )


def finish(*processes):
  results = []
  for process in processes:
    out, err = process.communicate(timeout=120)
    results.append((process.returncode, out.splitlines(), err))
  return results


def test_two_processes_join_and_add_up_over_both():
  address = f'127.0.0.1:{free_port()}'
  second = start(TOGETHER, address, 2, 1)
  time.sleep(0.5)  # the order in which hosts come up must not matter
  for code, out, err in finish(start(TOGETHER, address, 2, 0, expect=2), second):
    assert code == 0, err
    assert out == ['[10.0, 11.0]', '6.0', *2 * [of_lazy(lazy(np.arange(4, dtype=np.float32)))]]


GOING = (
  JOIN
  + """\
from jax.experimental import multihost_utils
import numpy as np, time
print('going')
try:
  while True:
    multihost_utils.process_allgather(np.float32(1))
    time.sleep(0.05)
except Exception:
  distributed.blame()
"""
)


def bound(port) -> set[str]:
  """The addresses at which somebody listens on a port, as Linux writes them."""
  rows = [row.split() for kind in ('tcp', 'tcp6') for row in open(f'/proc/net/{kind}')]
  return {
    row[1].partition(':')[0] for row in rows if row[1].endswith(f':{port:04X}') and row[3] == '0A'
  }


@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_that_is_killed_is_named_by_the_others_which_end_to_be_run_again(victim):
  port = free_port()
  processes = [start(GOING, f'127.0.0.1:{port}', 2, number) for number in (0, 1)]
  for process in processes:
    assert process.stdout.readline() == 'going\n'
  assert bound(port) <= {'0100007F', '0000000000000000FFFF00000100007F'}  # 127.0.0.1 alone
  began = time.monotonic()
  processes[victim].kill()
  (code, _, err), _ = finish(processes[1 - victim], processes[victim])
  assert code == 75 and f'tuna-jax: process {victim} on ' in err and ' is lost, so process ' in err
  assert time.monotonic() - began < 30


def test_strangers_at_the_port_of_the_coordinator_are_passed_over():
  port = free_port()
  first = start(TOGETHER, f'127.0.0.1:{port}', 2, 0)
  for words in (
    b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', os.urandom(5000) + b'\n', b'tuna_jax roll 1 x y\n',
    b'tuna_jax roll 99999999999 2 h\n', b'',
  ):  # fmt: skip
    while True:
      try:
        with socket.create_connection(('127.0.0.1', port), timeout=10) as line:
          line.sendall(words)
          break
      except ConnectionRefusedError:
        time.sleep(0.1)
  for code, out, err in finish(first, start(TOGETHER, f'127.0.0.1:{port}', 2, 1)):
    assert code == 0, err
    assert out == ['[10.0, 11.0]', '6.0', *2 * [of_lazy(lazy(np.arange(4, dtype=np.float32)))]]


def test_strangers_at_the_watch_are_passed_over_and_silence_within_it_is_noticed():
  watch, door = peers.Peers(0), socket.create_server(('127.0.0.1', 0))
  ended = []
  watch._end = lambda *how: ended.append(how)
  watch.listen(door, 'secret', {1: 'a', 2: 'b'})
  address = door.getsockname()
  for words in (b'GET / HTTP/1.1\n', b'tuna_jax peer 1 wrong h\n', b'tuna_jax peer 7 secret h\n'):
    with socket.create_connection(address) as line:
      line.sendall(words)
      assert line.recv(10) == b''
  lines = [socket.create_connection(address) for _ in (1, 2)]
  for number, line in enumerate(lines, 1):
    line.sendall(f'tuna_jax peer {number} secret h\n'.encode())
  lines[0].sendall(b'bye\n')
  lines[0].close()
  lines[1].sendall(b'ends 2 b\n')
  until = time.monotonic() + 20
  while not ended and time.monotonic() < until:
    time.sleep(0.01)
  assert ended[0] == ('ends', 2, 'b')
  watch.leave(well=True)


def test_an_address_that_is_not_of_this_host_is_listened_for_at_all(caplog):
  server, address = distributed._listen(f'192.0.2.1:{free_port()}', time.monotonic() + 5)
  server.close()
  assert address == '' and '192.0.2.1 is no address of ' in caplog.text


def test_an_absent_process_is_named_by_all_others():
  address = f'127.0.0.1:{free_port()}'
  results = finish(start(JOIN, address, 4, 0, timeout=6), start(JOIN, address, 4, 2, timeout=30))
  for code, out, err in results:
    assert code == 3, err
    assert out[0].startswith(
      'MissingProcesses 2 of 4 processes came within 6 s; missing: 1, 3; here: 0 on '
    )


def test_an_absent_first_process_is_named():
  (result,) = finish(start(JOIN, f'127.0.0.1:{free_port()}', 2, 1, timeout=1))
  assert (
    result[0] == 3 and 'process 0 did not answer' in result[1][0] and 'missing: 0' in result[1][0]
  )


def test_two_processes_with_one_id_are_told_so():
  address = f'127.0.0.1:{free_port()}'
  for code, out, err in finish(
    *(start(JOIN, address, 3, number, timeout=30) for number in (0, 1, 1))
  ):
    assert code == 3, err
    assert out[0].startswith('UserError process id 1 is claimed twice: on ')


def test_processes_started_with_different_counts_are_refused():
  address = f'127.0.0.1:{free_port()}'
  for code, out, err in finish(
    start(JOIN, address, 3, 0, timeout=30), start(JOIN, address, 4, 1, timeout=30)
  ):
    assert code == 3, err
    assert 'was started with num_processes=4, process 0 with num_processes=3' in out[0]


def test_slurms_own_variables_are_enough():
  port = free_port()
  slurm = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NUM_NODES': '1',
    'JAX_COORDINATOR_PORT': str(port),
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
  }
  script = TOGETHER.replace(
    'initialize(address, int(count), int(number), float(timeout)',
    'initialize(None, None, None, float(timeout)',
  )
  processes = [
    start(script, '', 2, i, expect=2, SLURM_PROCID=str(i), SLURM_LOCALID=str(i), **slurm)
    for i in (0, 1)
  ]
  for code, out, err in finish(*processes):
    assert code == 0, err
    assert out == ['[10.0, 11.0]', '6.0', *2 * [of_lazy(lazy(np.arange(4, dtype=np.float32)))]]


def test_more_expected_than_the_run_has_names_the_rest():
  with pytest.raises(
    distributed.MissingProcesses, match='expected 4 processes, the run has 2 .*missing: 2-3'
  ):
    distributed.initialize('127.0.0.1:1', 2, 0, timeout_s=1, expect=4)


def test_fewer_expected_than_the_run_has_is_refused():
  with pytest.raises(ValueError, match='expected 1 processes, the run has 2 .*unexpected: 1'):
    distributed.initialize('127.0.0.1:1', 2, 0, timeout_s=1, expect=1)


@pytest.mark.parametrize('arguments', [('127.0.0.1:1',), ('127.0.0.1:1', 2), (None, 2, 1)])
def test_half_an_address_is_refused(arguments):
  with pytest.raises(ValueError, match='give all three'):
    distributed.initialize(*arguments)


def test_an_id_out_of_range_is_refused():
  with pytest.raises(ValueError, match='process_id=2: expected a number from 0 to 1'):
    distributed.initialize('127.0.0.1:1', 2, 2)


def test_an_address_without_a_port_is_refused():
  with pytest.raises(ValueError, match='expected host:port'):
    distributed.initialize('localhost', 2, 0)


def test_a_single_process_initialises_nothing():
  distributed.initialize()
  distributed.initialize(expect=1)


def test_rising_numbers_are_written_as_spans():
  assert distributed.spans([0, 3, 4, 5, 9]) == '0, 3-5, 9'
