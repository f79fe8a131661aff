"""Initial values that help the tiny decoder, which learns from scratch in minutes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.models import rope
from tuna_jax.weights.tensors import Lazy, lazy


def previous_token_heads(
  leaves: Mapping[str, Lazy], config: TunaConfig, sharpness: float = 5.0, pairs: int = 6
) -> dict[str, Lazy]:
  """Fresh parameters {leaf name: Lazy} with previous-token heads in the decoder's first layer.

  The query heads of the first key/value head attend 1, 2, ... tokens back, by position alone: keys
  are constant, and queries are the same constant turned back by the rotary angle of 1, 2, ...
  tokens in the `pairs` fastest frequencies of RoPE. Recall in context begins with what stood before
  a word; found by gradient, such heads take several times more tokens.
  """
  d = config.decoder
  pairs = min(pairs, d.head_dim // 2)
  back = 1.0 + np.arange(d.num_heads // d.num_kv_heads)[:, None]
  angle = back * rope.frequencies(d.head_dim, d.rope_theta)[:pairs]
  query, key = np.zeros((len(back), d.head_dim)), np.zeros((1, d.head_dim))
  query[:, :pairs] = np.cos(angle)
  query[:, d.head_dim // 2 : d.head_dim // 2 + pairs] = -np.sin(angle)
  key[:, :pairs] = 1
  changed = {}
  for name, heads in (('q_proj', query), ('k_proj', key)):
    kernel, bias = (f'decoder/layers/attn/{name}/{leaf}' for leaf in ('kernel', 'bias'))
    values = {leaf: leaves[leaf][()] for leaf in (kernel, bias)}
    values[kernel][0, :, : heads.size] *= 0.1
    values[bias][0, : heads.size] = sharpness * heads.reshape(-1)
    changed |= {leaf: lazy(value) for leaf, value in values.items()}
  return {**leaves, **changed}
