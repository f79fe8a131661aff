"""Collectives read off compiled programs of eight simulated devices, against hand counts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tuna_jax import sharding
from tuna_jax.train import hlo

MESH = {'data': 2, 'fsdp': 2, 'context': 1, 'tensor': 2}


def compiled(fn, in_specs, out_specs, *shapes):
  """(HLO text of fn under shard_map, the mesh)."""
  mesh = sharding.make_mesh(**MESH)
  mapped = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(mapped).lower(*args).compile().as_text(), mesh


@pytest.mark.parametrize('axes', [('fsdp',), ('tensor',), ('data',), ('data', 'fsdp')])
def test_a_gather_sends_all_but_its_own_part_and_names_its_axes(axes):
  text, mesh = compiled(lambda x: jax.lax.all_gather(x, axes, tiled=True), P(axes), P(), (64, 16))
  ways = 2 ** len(axes)
  whole = 64 * 16 * 4
  assert hlo.collectives(text, mesh) == [
    hlo.Collective('all-gather', axes, 1, whole * (ways - 1) // ways)
  ]


def test_an_all_reduce_sends_everything_nearly_twice():
  text, mesh = compiled(
    lambda x: jax.lax.psum(x, ('data', 'fsdp')), P(('data', 'fsdp')), P(), (64, 16)
  )
  part = 16 * 16 * 4
  assert hlo.collectives(text, mesh) == [
    hlo.Collective('all-reduce', ('data', 'fsdp'), 1, 2 * part * 3 // 4)
  ]


def test_a_loop_counts_as_often_as_it_runs():
  def fn(x):
    return jax.lax.fori_loop(0, 5, lambda i, y: jnp.sin(jax.lax.psum(y, 'tensor') + i), x)

  text, mesh = compiled(fn, P(), P(), (8, 8))
  (found,) = hlo.collectives(text, mesh)
  assert (found.axes, found.count, found.bytes) == (('tensor',), 5, 5 * 8 * 8 * 4)


def test_a_program_on_its_own_has_none():
  text, mesh = compiled(jnp.sin, P('data'), P('data'), (8, 8))
  assert hlo.collectives(text, mesh) == []


def test_asynchronous_pairs_on_a_tpu_count_once():
  text = """HloModule m

ENTRY %main (p: f32[8,16]) -> f32[16,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %s = (f32[8,16]{1,0}, f32[16,16]{1,0:T(8,128)}) all-gather-start(%p), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}, use_global_device_ids=true
  ROOT %d = f32[16,16]{1,0} all-gather-done(%s)
}
"""
  mesh = sharding.make_mesh(**MESH)
  assert hlo.collectives(text, mesh) == [
    hlo.Collective('all-gather', ('fsdp',), 1, 16 * 16 * 4 // 2)
  ]
