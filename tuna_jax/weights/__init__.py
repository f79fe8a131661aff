"""The weight bridge: public parts and official checkpoints in and out, one two-way table of names a source."""

from tuna_jax.weights.convert import convert, export, place, plan
from tuna_jax.weights.tensors import CheckpointError, Lazy, lazies

__all__ = ['CheckpointError', 'Lazy', 'convert', 'export', 'lazies', 'place', 'plan']
