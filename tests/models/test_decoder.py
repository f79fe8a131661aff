"""The decoder alone: what a position may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tests.models import small
from tuna_jax import tree
from tuna_jax.models import rope
from tuna_jax.models.decoder import Decoder, looking_back
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


def test_fresh_heads_of_the_first_layer_look_one_and_two_tokens_back():
  flat = {
    f'layers/attn/{name}_proj/{leaf}': np.zeros(
      (D.num_layers, *rows, heads * D.head_dim), np.float32
    )
    for name, heads in (('q', D.num_heads), ('k', D.num_kv_heads))
    for leaf, rows in (('kernel', (D.dim,)), ('bias', ()))
  }
  attn = looking_back(tree.unflatten(jax.tree.map(jnp.asarray, flat)), D)['layers']['attn']
  position = np.arange(LENGTH)[None]
  q, k = (
    rope.rotate(
      jnp.tile(attn[f'{name}_proj']['bias'][0].reshape(1, 1, -1, D.head_dim), (1, LENGTH, 1, 1)),
      rope.decoder_rotary(position, D.head_dim, D.rope_theta),
    )[0]
    for name in 'qk'
  )
  scores = np.einsum('qhd,kd->hqk', q, k[:, 0])
  for head in range(D.num_heads // D.num_kv_heads):
    for i in range(3, LENGTH):
      assert scores[head, i, : i + 1].argmax() == i - 1 - head
  assert not np.any(attn['q_proj']['bias'][1:]) and not np.any(attn['k_proj']['bias'][1:])
