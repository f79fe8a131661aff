"""Initial values of the tiny decoder."""

import jax.numpy as jnp
import numpy as np

from tests.models import small
from tuna_jax import tree
from tuna_jax.models import rope
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.toy.initial import previous_token_heads
from tuna_jax.weights.fresh import fresh

LENGTH = 10
D = small.CONFIG.decoder
FRESH = {
  leaf: fresh(leaf, aval, 0) for leaf, aval in tree.flatten(tuna_shapes(small.CONFIG)).items()
}
CHANGED = previous_token_heads(FRESH, small.CONFIG)


def test_heads_of_the_first_layer_look_one_and_two_tokens_back():
  q, k = (
    rope.rotate(
      jnp.tile(
        CHANGED[f'decoder/layers/attn/{name}_proj/bias'][:1].reshape(1, 1, -1, D.head_dim),
        (1, LENGTH, 1, 1),
      ),
      rope.decoder_rotary(np.arange(LENGTH)[None], D.head_dim, D.rope_theta),
    )[0]
    for name in 'qk'
  )
  scores = np.einsum('qhd,kd->hqk', q, k[:, 0])
  for head in range(D.num_heads // D.num_kv_heads):
    for i in range(3, LENGTH):
      assert scores[head, i, : i + 1].argmax() == i - 1 - head


def test_nothing_but_these_heads_changes():
  changed = {leaf for leaf in FRESH if not np.array_equal(FRESH[leaf][()], CHANGED[leaf][()])}
  assert changed == {
    f'decoder/layers/attn/{name}_proj/{leaf}' for name in 'qk' for leaf in ('kernel', 'bias')
  }
  for leaf in changed:
    np.testing.assert_array_equal(CHANGED[leaf][1:], FRESH[leaf][1:])
