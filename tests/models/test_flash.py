"""The GPU kernel, emulated, in the forms that models need, and its program for CUDA."""

import functools
import re

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tests.models.test_attention import make, oracle, value_and_gradients
from tuna_jax.models.flash import SAVED, Blocks, flash_attention, key_blocks, query_blocks
from tuna_jax.models.layers import _POLICIES as POLICIES

FLOAT32 = 2e-5  # sums in another order
BFLOAT16 = 0.03  # weights are rounded to 8 bits of mantissa before they meet the values
SMALL = Blocks(16, 16)

emulated = functools.partial(flash_attention, blocks=SMALL, interpret=True)


def spans(length, *documents):
  """(kv_limit, segment) of one row of documents (segment, first, stop, span from, span to)."""
  limit, segment = np.arange(length, dtype=np.int32)[None].copy(), np.zeros((1, length), np.int32)
  for number, first, stop, low, high in documents:
    segment[0, first:stop], limit[0, low:high] = number, high - 1
  return limit, segment


def same(fn, qkv, masks, tolerance=FLOAT32):
  got, want = value_and_gradients(fn, qkv, masks), value_and_gradients(oracle, qkv, masks)
  for name, a, b in zip(('output', 'dq', 'dk', 'dv'), got, want):
    a = np.asarray(a, np.float32)
    np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()), rtol=0, err_msg=name)


@pytest.mark.parametrize('size', [64, 72, 128])
def test_head_sizes_of_the_models_give_the_oracle_and_its_gradients(size):
  same(emulated, *make(rows=1, queries=72, keys=72, size=size))


def test_blocks_of_queries_and_of_keys_may_differ():
  same(functools.partial(emulated, blocks=Blocks(32, 16)), *make(rows=1, queries=90, keys=90))
  same(functools.partial(emulated, blocks=Blocks(16, 32)), *make(rows=1, queries=50, keys=90))


def test_several_spans_in_several_documents():
  limit, segment = spans(96, (1, 0, 40, 5, 30), (2, 40, 70, 41, 55), (3, 70, 88, 71, 88))
  qkv, _ = make(rows=1, queries=96, keys=96)
  same(emulated, qkv, {'kv_limit': limit, 'q_segment': segment, 'kv_segment': segment})


def test_segments_in_any_order_are_still_exact():
  segment = np.random.default_rng(3).integers(0, 4, (2, 64)).astype(np.int32)
  qkv, masks = make(queries=64, keys=64)
  same(emulated, qkv, {**masks, 'q_segment': segment, 'kv_segment': segment})


def test_a_document_receives_neither_values_nor_gradients_of_another():
  (q, k, v), masks = make(rows=1, queries=96, keys=96)
  mine = masks['kv_segment'][0] == 2
  loss = lambda q, k, v: jnp.sum(emulated(q, k, v, **masks)[0][mine] ** 2)
  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  changed = (np.where(mine[None, :, None, None], x, x * 5 + 1) for x in (q, k, v))
  (before, gradients), (after, others) = run(q, k, v), run(*changed)
  assert before == after
  for a, b in zip(gradients, others):
    np.testing.assert_array_equal(a, b)
    assert not a[0][~mine].any() and a[0][mine].any()


def test_bfloat16_is_the_oracle_up_to_its_rounding():
  qkv, masks = make(rows=1, queries=64, keys=64, size=64)
  rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in qkv]
  half = lambda *x, **m: emulated(*(a.astype(jnp.bfloat16) for a in x), **m).astype(jnp.float32)
  same(half, rounded, masks, BFLOAT16)


def test_blocks_that_nobody_sees_are_not_visited():
  limit, segment = spans(64, (1, 0, 24, 0, 0), (2, 24, 48, 28, 48))
  keys = key_blocks(limit, segment, segment, SMALL)[0]
  np.testing.assert_array_equal(keys, [[0, 1], [0, 3], [1, 3], [3, 4]])  # the last is padding
  queries = query_blocks(limit, segment, segment, SMALL)[0]
  np.testing.assert_array_equal(queries, [[0, 2], [1, 3], [1, 3], [3, 4]])


@pytest.mark.parametrize('length', [2048, 21504])
def test_the_program_for_cuda_holds_nothing_larger_than_its_arguments(length):
  q = jax.ShapeDtypeStruct((1, length, 2, 72), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((1, length, 1, 72), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def gradients(q, k, v, limit, segment):
    loss = lambda *x: flash_attention(*x, limit, segment, segment).astype(jnp.float32).sum()
    return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

  with jax.sharding.use_abstract_mesh(shrink.gpus()):
    program = jax.jit(gradients).trace(q, k, k, ids, ids).lower(lowering_platforms=('cuda',))
  shapes = re.findall(r'tensor<((?:\d+x)+)', program.as_text())
  sizes = {shape: np.prod([int(n) for n in shape.split('x')[:-1]]) for shape in shapes}
  assert program.as_text().count('triton') >= 3
  assert max(sizes.values()) <= length * 2 * 72
  blocks = length // 64
  assert not [shape for shape in sizes if f'{blocks}x{blocks}x' in shape]


@pytest.mark.parametrize(('remat', 'kept'), [('dots', 2), ('block', 0)])
def test_remat_dots_keeps_the_output_and_its_log_sum_exps(remat, kept, capsys):
  qkv, masks = make(rows=1, queries=64, keys=64)
  run = jax.checkpoint(lambda *qkv: emulated(*qkv, **masks), policy=POLICIES[remat])
  jax.ad_checkpoint.print_saved_residuals(lambda *qkv: run(*qkv).sum(), *qkv)
  assert capsys.readouterr().out.count(f"named '{SAVED}'") == kept
