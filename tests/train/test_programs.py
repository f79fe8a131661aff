"""A program of a host's own devices is compiled once and then read, unless the file is damaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tuna_jax.train import programs


def lowered(devices):
  split = NamedSharding(Mesh(np.array(devices), ('media',)), P('media'))
  argument = jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=split)
  return jax.jit(lambda x: x * 2).lower(argument), split


@pytest.mark.parametrize('damaged', [False, True])
def test_a_kept_program_gives_the_same(tmp_path, damaged):
  devices = jax.devices()[2:4]
  program, split = lowered(devices)
  x = jax.device_put(np.arange(12.0, dtype=np.float32).reshape(4, 3), split)
  first = programs.kept(program, devices, str(tmp_path / 'cache'))(x)
  (file,) = (tmp_path / 'cache').iterdir()
  if damaged:
    file.write_bytes(file.read_bytes()[:-1])
  before = file.stat().st_mtime_ns
  again = programs.kept(program, devices, str(tmp_path / 'cache'))(x)
  np.testing.assert_array_equal(first, again)
  assert again.sharding == split
  assert (file.stat().st_mtime_ns != before) == damaged


def test_other_devices_have_a_file_of_their_own(tmp_path):
  for devices in (jax.devices()[:2], jax.devices()[2:4]):
    programs.kept(lowered(devices)[0], devices, str(tmp_path))
  assert len(list(tmp_path.iterdir())) == 2
