"""Collectives read off compiled programs of eight simulated devices, against hand counts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tuna_jax import sharding
from tuna_jax.tools import hlo

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
"""  # noqa: E501
  mesh = sharding.make_mesh(**MESH)
  assert hlo.collectives(text, mesh) == [
    hlo.Collective('all-gather', ('fsdp',), 1, 16 * 16 * 4 // 2)
  ]


def test_a_fusion_that_a_gather_runs_beside_does_not_count_it_again():
  gather = (
    'f32[16,16]{1,0} all-gather(%p), channel_id=7, '
    "replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}"
  )
  text = f"""HloModule m

%first (p: f32[8,16]) -> f32[16,16] {{
  %p = f32[8,16]{{1,0}} parameter(0)
  ROOT %g.1 = {gather}
}}

%beside (p: f32[8,16]) -> f32[16,16] {{
  %p = f32[8,16]{{1,0}} parameter(0)
  ROOT %g.2 = {gather}
}}

ENTRY %main (p: f32[8,16]) -> f32[16,16] {{
  %p = f32[8,16]{{1,0}} parameter(0)
  %async-collective-start = f32[16,16]{{1,0}} fusion(%p), kind=kCustom, calls=%first
  %fusion.1 = f32[16,16]{{1,0}} fusion(%p), kind=kOutput, calls=%beside
  ROOT %async-collective-done = f32[16,16]{{1,0}} fusion(%p), kind=kCustom, calls=%beside
}}
"""
  mesh = sharding.make_mesh(**MESH)
  assert hlo.collectives(text, mesh) == [
    hlo.Collective('all-gather', ('tensor',), 1, 16 * 16 * 4 // 2)
  ]


def test_a_sum_of_which_a_slice_is_kept_is_a_scatter():
  text = """HloModule m

%all-reduce-scatter.1 (p: f32[16,16]) -> f32[8,16] {
  %p = f32[16,16]{1,0} parameter(0)
  %sum = f32[16,16]{1,0} all-reduce(%p), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), to_apply=%add
  ROOT %slice = f32[8,16]{1,0} slice(%sum), slice={[0:8], [0:16]}
}

ENTRY %main (p: f32[16,16]) -> f32[8,16] {
  %p = f32[16,16]{1,0} parameter(0)
  ROOT %f = f32[8,16]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501
  mesh = sharding.make_mesh(**MESH)
  assert hlo.collectives(text, mesh) == [
    hlo.Collective('reduce-scatter', ('fsdp',), 1, 16 * 16 * 4 // 2)
  ]


def test_what_hosts_exchange_between_slices_lies_along_data():
  attributes = (
    'channel_id=1, is_host_transfer=true, '
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
  )
  text = f"""HloModule m

ENTRY %main (p: bf16[64,8,128]) -> bf16[64,8,128] {{
  %p = bf16[64,8,128]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %t = token[] after-all()
  %r = (bf16[64,8,128]{{2,1,0}}, u32[], token[]) recv(%t), {attributes}
  %s = (bf16[64,8,128]{{2,1,0:T(8,128)(2,1)}}, u32[], token[]) send(%p, %t), {attributes}
  %done = token[] send-done(%s), {attributes}
  ROOT %x = bf16[64,8,128]{{2,1,0}} recv-done(%r), {attributes}
}}
"""
  mesh = sharding.make_mesh(**MESH)
  assert hlo.collectives(text, mesh, slices=2) == [
    hlo.Collective('dcn-all-reduce', ('data',), 1, 64 * 8 * 128 * 2)
  ]


RING = """HloModule m

%condition (s: (u32[], f32[8,16])) -> pred[] {
  %bound = u32[]{:T(128)} constant(7)
  %s = (u32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (s: (u32[], f32[8,16])) -> (u32[], f32[8,16]) {
  %one = u32[]{:T(128)} constant(1)
  %s = (u32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%s), index=1
  %y = f32[8,16]{1,0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %j = u32[]{:T(128)} add(%i, %one)
  %k = u32[]{:T(128)} STEP
  ROOT %t = (u32[]{:T(128)}, f32[8,16]{1,0}) tuple(%k, %y)
}

ENTRY %main (p: (u32[], f32[8,16])) -> (u32[], f32[8,16]) {
  %p = (u32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  ROOT %w = (u32[]{:T(128)}, f32[8,16]{1,0}) while(%p), condition=%condition, body=%body
}
"""  # noqa: E501


@pytest.mark.parametrize('step,times', [('copy(%j)', 7), ('add(%j, %one)', 4)])
def test_a_loop_of_the_compilers_own_is_counted_by_its_condition(step, times):
  (found,) = hlo.collectives(RING.replace('STEP', step), sharding.make_mesh(**MESH))
  assert found == hlo.Collective('collective-permute', ('tensor',), times, times * 8 * 16 * 4)


def test_a_loop_of_unknown_length_is_refused():
  with pytest.raises(ValueError, match='no known trip count: ROOT %w'):
    hlo.collectives(RING.replace('STEP', 'multiply(%j, %j)'), sharding.make_mesh(**MESH))
