"""The decoder alone: what a position may see."""

import jax
import numpy as np
import pytest

from tests import shrink
from tests.models import small
from tuna_jax.models import rope
from tuna_jax.models.decoder import Decoder
from tuna_jax.models.layers import Span

D = small.CONFIG.decoder
LENGTH = 10


@pytest.fixture(scope='module')
def run():
  def span(kv_limit, segment, position):
    return Span(rope.decoder_rotary(position, D.head_dim, D.rope_theta), kv_limit, segment, segment)

  index = np.arange(LENGTH, dtype=np.int32)[None]
  ones = np.ones_like(index)
  module = Decoder(small.CONFIG)
  tokens = np.array([small.ids(LENGTH, 0)])
  shapes = jax.eval_shape(
    lambda key: module.init(
      key, tokens, span(index, index, index), method=lambda m, t, s: m(m.embed(t), s)
    ),
    jax.random.key(0),
  )
  params = shrink.randomise(shapes['params'], 1)

  @jax.jit
  def apply(tokens, kv_limit, segment, position):
    return module.apply(
      {'params': params},
      tokens,
      span(kv_limit, segment, position),
      method=lambda m, t, s: m(m.embed(t), s)[0],
    )

  def call(tokens=tokens, kv_limit=index, segment=ones, position=index):
    return np.asarray(apply(tokens, kv_limit, segment, position))

  call.tokens = tokens
  return call


def touched(run, at, **masks):
  """Which positions change when the token at `at` does."""
  tokens = run.tokens.copy()
  tokens[0, at] = 5
  return np.flatnonzero((run(tokens, **masks) != run(**masks))[0].any(-1)).tolist()


def test_text_is_causal(run):
  assert touched(run, 4) == [4, 5, 6, 7, 8, 9]


def test_a_span_sees_all_of_itself_and_nothing_later(run):
  limit = np.arange(LENGTH, dtype=np.int32)[None].copy()
  limit[0, 3:7] = 6
  assert touched(run, 5, kv_limit=limit) == [3, 4, 5, 6, 7, 8, 9]
  assert touched(run, 7, kv_limit=limit) == [7, 8, 9]


def test_segments_do_not_see_each_other(run):
  segment = np.repeat([[1, 2]], 5, axis=1).astype(np.int32)
  assert touched(run, 1, segment=segment) == [1, 2, 3, 4]
  assert touched(run, 6, segment=segment) == [6, 7, 8, 9]


def test_only_the_distance_between_positions_matters(run):
  later = np.arange(LENGTH, dtype=np.int32)[None] + 100
  np.testing.assert_allclose(run(position=later), run(), atol=1e-4)
