"""A digest shows every changed element, and is the same however the array is sharded or read."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tuna_jax.weights import digest
from tuna_jax.weights.tensors import lazy

DTYPES = ('float32', 'int32', 'uint8', 'float16', ml_dtypes.bfloat16, 'bool')


def array(shape=(8, 6, 16), dtype='float32', seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def of(value):
  return digest.of_lazy(lazy(value))


@pytest.mark.parametrize(
  'spec', [('a', None, 'b'), (None, None, 'a'), ('b',), (None, 'b', 'a'), ()]
)
@pytest.mark.parametrize('dtype', ['float32', ml_dtypes.bfloat16])
def test_every_sharding_has_the_digest_of_the_whole(spec, dtype):
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  value = array(dtype=dtype)
  placed = jax.device_put(value, jax.NamedSharding(mesh, jax.P(*spec)))
  assert digest.of_arrays({'x': placed}) == {'x': of(value)}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(), (1,), (5, 7), (3, 70_001), (0, 4), (4, 0)])
def test_accelerators_and_the_host_agree(shape, dtype):
  value = np.asarray(array(shape, dtype))
  (sums,) = digest.on_devices([jnp.asarray(value)])
  assert ''.join(f'{int(n):08x}' for n in np.asarray(sums)) == of(value)


@pytest.mark.parametrize('spec', [('a', None, 'b'), (None, 'b', 'a')])
def test_accelerators_sum_a_sharded_array_as_a_whole(spec):
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  placed = jax.device_put(array(), jax.NamedSharding(mesh, jax.P(*spec)))
  (sums,), (whole,) = digest.on_devices([placed]), digest.on_devices([jnp.asarray(array())])
  np.testing.assert_array_equal(sums, whole)


def test_blocks_may_come_in_any_order_and_cut_anywhere():
  value = array((4, 6, 16))
  running = digest.Running(value.shape)
  for i, j, k in [
    (2, 3, 0),
    (0, 0, 8),
    (2, 0, 0),
    (0, 3, 0),
    (0, 0, 0),
    (2, 3, 8),
    (0, 3, 8),
    (2, 0, 8),
  ]:
    running.add((i, j, k), value[i : i + 2, j : j + 3, k : k + 8])
  assert running.hex() == of(value)


@pytest.mark.parametrize('dtype', ['float64', 'int64', 'complex64'])
def test_wide_elements_are_hashed_whole(dtype):
  value = array((5, 6), dtype)
  running = digest.Running(value.shape).add((0, 3), value[:, 3:]).add((0, 0), value[:, :3])
  assert running.hex() == of(value)
  changed = value.copy()
  changed.view(np.uint8)[2, 13] ^= 1
  assert of(changed) != of(value)


def test_each_flipped_bit_and_each_swap_is_seen():
  value, seen = array((9, 11)), set()
  for bit in range(value.nbytes * 8):
    changed = value.copy()
    changed.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
    seen.add(of(changed))
  for i in range(1, value.size):
    changed = value.copy().reshape(-1)
    changed[[0, i]] = changed[[i, 0]]
    seen.add(of(changed.reshape(9, 11)))
  assert len(seen | {of(value)}) == value.nbytes * 8 + value.size


def test_large_arrays_of_a_cpu_are_summed_by_a_compiled_loop(monkeypatch):
  arrays = {'a': jnp.asarray(array()), 'b': jnp.zeros((3,)), 'c': jnp.asarray(array(seed=1))}
  monkeypatch.setattr(digest, 'COMPILED', arrays['a'].nbytes)
  assert not digest._small(arrays['a']) and digest._small(arrays['b'])
  assert digest.of_arrays(arrays) == {name: of(np.asarray(x)) for name, x in arrays.items()}


def test_json_is_digested_whatever_the_order_of_its_keys():
  assert digest.of_json({'a': 1, 'b': [2]}) == digest.of_json({'b': [2], 'a': 1})
  assert digest.of_json({'a': 1}) != digest.of_json({'a': 2})


COST = """
import sys, time
import jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
from tuna_jax.weights import digest

random = np.random.default_rng(0).standard_normal
arrays = {f'layer{n}': jnp.asarray(random((1024, 8192)), jnp.float32) for n in range(12)}
digest.of_arrays(arrays)
began = time.process_time()
digest.of_arrays(arrays)
hashed, began = time.process_time() - began, time.process_time()
with ocp.StandardCheckpointer() as saver:
  saver.save(sys.argv[1], arrays)
print(sum(a.nbytes for a in arrays.values()) / 1e9, hashed, time.process_time() - began)
"""


@pytest.mark.slow
def test_digests_of_a_checkpoint_cost_less_than_a_twentieth_of_saving_it(tmp_path):
  """In CPU seconds, once the loop is compiled as it is outside of tests."""
  said = subprocess.run(
    [sys.executable, '-c', COST, tmp_path / 'saved'], env=os.environ | {'XLA_FLAGS': ''},
    capture_output=True, check=True, text=True,
  ).stdout  # fmt: skip
  size, hashed, saved = map(float, said.split())
  print(f'{size / hashed:.2f} GB hashed and {size / saved:.2f} GB saved per CPU second')
  assert hashed < saved / 20
