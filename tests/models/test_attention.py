"""Every attention kernel against one dense oracle written here: mask, softmax and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.models import attention as kernels
from tuna_jax.models.attention import attention

TOLERANCE = 2e-5  # float32 sums in another order
IMPLS = ('dense', 'cpu', 'chunked', 'flash_interpret', 'splash_interpret')


def make(rows=2, queries=300, keys=300, heads=4, kv_heads=2, size=16, seed=0):
  """Packed segments with spans that cross block edges (128) and lengths that are no multiple."""
  rng = np.random.default_rng(seed)
  q, k, v = (
    rng.normal(size=(rows, n, h, size)).astype(np.float32)
    for n, h in ((queries, heads), (keys, kv_heads), (keys, kv_heads))
  )
  segment, limit = (
    np.zeros((rows, keys), np.int32),
    np.tile(np.arange(keys, dtype=np.int32), (rows, 1)),
  )
  segment[:, : keys * 2 // 5], segment[:, keys * 2 // 5 : keys - 7] = 1, 2  # 7 positions of padding
  for low, high in ((keys // 10, keys // 4), (keys * 3 // 7, keys * 5 // 6)):
    limit[:, low:high] = high - 1
  last = slice(keys - queries, keys)  # cached sampling: the queries are the last positions
  masks = {'kv_limit': limit[:, last], 'q_segment': segment[:, last], 'kv_segment': segment}
  return (q, k, v), masks


def oracle(q, k, v, kv_limit, q_segment, kv_segment):
  group = q.shape[2] // k.shape[2]
  k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
  scores = jnp.einsum('bqhd,bshd->bhqs', q, k) / np.sqrt(q.shape[-1])
  allowed = (np.arange(k.shape[1]) <= kv_limit[..., None]) & (
    q_segment[..., None] == kv_segment[:, None]
  )
  allowed = allowed[:, None]
  exp = jnp.where(allowed, jnp.exp(scores), 0)
  total = exp.sum(-1, keepdims=True)
  weights = exp / jnp.where(total == 0, 1, total)
  return jnp.einsum('bhqs,bshd->bqhd', weights, v)


def value_and_gradients(fn, qkv, masks):
  cotangent = np.random.default_rng(9).normal(size=qkv[0].shape).astype(np.float32)

  @jax.jit
  def run(q, k, v):
    out, back = jax.vjp(lambda *x: fn(*x, **masks), q, k, v)
    return out, *back(cotangent)

  return run(*qkv)


def same(impl, qkv, masks):
  got = value_and_gradients(lambda *x, **m: attention(*x, **m, impl=impl), qkv, masks)
  want = value_and_gradients(oracle, qkv, masks)
  for name, a, b in zip(('output', 'dq', 'dk', 'dv'), got, want):
    np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE, err_msg=f'{impl}: {name}')


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(kernels, 'CHUNK', 64)


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('heads,kv_heads', [(4, 2), (3, 3), (6, 1)])
def test_equals_the_oracle_forward_and_backward(impl, heads, kv_heads):
  same(impl, *make(heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize('impl', IMPLS)
def test_queries_may_be_the_last_positions_of_more_keys(impl):
  same(impl, *make(queries=130, keys=300))


@pytest.mark.parametrize('impl', IMPLS)
def test_frames_attend_only_within_themselves(impl):
  qkv, _masks = make(rows=1, queries=600, keys=600, heads=2, kv_heads=2)
  frame = np.arange(600, dtype=np.int32)[None] // 150  # a frame ends inside a block
  same(impl, qkv, {'kv_limit': np.full_like(frame, 599), 'q_segment': frame, 'kv_segment': frame})


def test_unfused_backward_of_the_tpu_kernel_equals_the_oracle(monkeypatch):
  monkeypatch.setattr(kernels, 'SPLASH_FUSED_KEYS', 0)
  same('splash_interpret', *make())


@pytest.mark.parametrize('size', [72, 64])
def test_tpu_kernel_takes_the_head_sizes_of_the_models(size):
  same('splash_interpret', *make(rows=1, queries=200, keys=200, size=size))


def test_cpu_kernel_takes_long_queries_in_chunks(monkeypatch):
  monkeypatch.setattr(kernels, 'CPU_WHOLE', 100)
  same('cpu', *make())


@pytest.mark.parametrize('impl', IMPLS)
def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(impl):
  qkv, masks = make()
  masks['q_segment'] = np.array(masks['q_segment'])
  masks['q_segment'][0, 10:20] = 99  # nobody's segment, inside a block of others
  masks['q_segment'][1, :] = 99
  out, dq, dk, dv = value_and_gradients(lambda *x, **m: attention(*x, **m, impl=impl), qkv, masks)
  assert not out[0, 10:20].any() and not out[1].any()
  assert not any(gradient[1].any() for gradient in (dq, dk, dv))
  same(impl, qkv, masks)


@pytest.mark.parametrize('impl', IMPLS)
def test_one_packed_example_never_changes_another(impl):
  (q, k, v), masks = make()
  fn = jax.jit(lambda *x: attention(*x, **masks, impl=impl))
  other = masks['kv_segment'] != 1
  before = fn(q, k, v)
  after = fn(*(np.where(other[..., None, None], x, x + 3) for x in (q, k, v)))
  np.testing.assert_array_equal(before[other], after[other])
  assert np.abs(before[~other] - after[~other]).max() > 0.1


@pytest.mark.parametrize('impl', IMPLS)
def test_scores_are_large_without_overflow(impl):
  (q, k, v), masks = make()
  out = attention(q * 100, k * 100, v, **masks, impl=impl)
  assert np.isfinite(out).all()


def test_blocks_that_nobody_sees_are_skipped():
  limit, ids = np.arange(512, dtype=np.int32), np.repeat([1, 2], 256).astype(np.int32)
  limit, ids = jnp.asarray(limit), jnp.asarray(ids)
  forward, _ = kernels.block_tables(limit, ids, ids, 128, 128)
  np.testing.assert_array_equal(
    forward.block_mask[0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
  )


def test_bfloat16_comes_back_as_bfloat16():
  qkv, masks = make()
  for impl in IMPLS:
    half = (jnp.asarray(x, jnp.bfloat16) for x in qkv)
    assert attention(*half, **masks, impl=impl).dtype == jnp.bfloat16


def test_a_misspelt_kernel_is_named_with_the_nearest():
  qkv, masks = make()
  with pytest.raises(ValueError, match="no kernel 'splsh'; nearest is 'splash'"):
    attention(*qkv, **masks, impl='splsh')


def test_key_heads_must_divide_query_heads():
  qkv, masks = make(heads=4, kv_heads=3)
  with pytest.raises(ValueError, match='3 key/value heads do not divide 4'):
    attention(*qkv, **masks)
