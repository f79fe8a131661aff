"""A tiny model in every axis that a table can see, and official-looking weights for it."""

import dataclasses

import numpy as np

from tuna_jax import tree
from tuna_jax.config import DecoderConfig, FlowHeadConfig, TunaConfig, VaeConfig, VisionConfig
from tuna_jax.weights.tensors import Lazy


def small_config(**decoder):
  """Layers, heads and widths all differ from each other, so that no two shapes agree by chance."""
  return TunaConfig(
    vision=VisionConfig(
      num_layers=2, dim=32, num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=48, grid=4
    ),
    decoder=dataclasses.replace(
      DecoderConfig(
        num_layers=3,
        dim=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_dim=96,
        vocab_size=50,
        vocab_multiple=16,
      ),
      **decoder,
    ),
    flow_head=FlowHeadConfig(
      num_layers=2, dim=64, num_heads=2, num_kv_heads=1, head_dim=32, mlp_dim=80
    ),
    vae=VaeConfig(encoder_dim=3, decoder_dim=3, encoder_blocks=2, decoder_blocks=3),
    dtype='float32',
  )


def random_leaves(shapes, seed=0):
  """{our leaf: float32} for a tree of ShapeDtypeStruct."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.standard_normal(aval.shape).astype(np.float32)
    for name, aval in tree.flatten(shapes).items()
  }


def shapes_only(shapes):
  """{our leaf: Lazy} that can be asked for anything but values."""
  return {
    name: Lazy(tuple(aval.shape), np.dtype(aval.dtype), None)
    for name, aval in tree.flatten(shapes).items()
  }
