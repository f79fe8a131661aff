"""Digests of arrays, which show a changed bit and do not depend on how an array is sharded.

Every element contributes a hash of its bits and of its row-major index in the whole array; a digest
is the sum of the contributions, modulo 2**32, for two hashes. So each device or block is summed on
its own and the sums are added, on any mesh. For a given index the first hash maps different bits to
different values, so a change of one element always changes the digest; other damage passes with a
chance of 2**-64. It guards against accidents, not against somebody who means to deceive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tuna_jax.weights.tensors import Damaged, Lazy, row_blocks

FIELD = 'tuna_jax_digests'  # of what we add to other formats: {tensor: digest}
BLOCK = 1 << 16  # elements hashed at a time by numpy, so that they stay in its cache
COMPILED = 1 << 22  # bytes of an array from which on a CPU compiles a loop over it as well
_STRIDE = np.uint32(0x9E3779B1)  # of xxHash, as the other constants
_RAMP = np.arange(BLOCK, dtype=np.uint32) * _STRIDE


class Running:
  """The digest of one array of `shape`, of which blocks come in any order."""

  def __init__(self, shape):
    self._shape, self._sums = tuple(shape), np.zeros(2, np.uint64)

  def add(self, start, block: np.ndarray) -> Running:
    """Adds the block whose first element stands at the indices `start`."""
    bits, shape, start = (
      _bits(block),
      list(self._shape or (1,)),
      list(start) or [0] * max(1, block.ndim),
    )
    if bits.shape[-1] != (block.shape or (1,))[-1]:  # elements of 8 bytes are two of 4
      shape[-1], start[-1] = 2 * shape[-1], 2 * start[-1]
    offsets, run = np.zeros(1, np.uint64), bits.ndim
    while run > 1 and bits.shape[run - 1] == shape[run - 1]:
      run -= 1  # the trailing axes that are whole, and one before them, are contiguous
    for axis, (first, size) in enumerate(zip(start, bits.shape)):
      stride = math.prod(shape[axis + 1 :])
      steps = np.arange(size if axis < run - 1 else 1, dtype=np.uint64)
      offsets = np.add.outer(offsets, (steps + np.uint64(first)) * np.uint64(stride)).reshape(-1)
    lines = bits.reshape(len(offsets), math.prod(bits.shape[run - 1 :]))
    rows = max(1, BLOCK // max(1, lines.shape[1]))
    for top in range(0, len(lines), rows):
      for left in range(0, lines.shape[1], BLOCK):
        part = lines[top : top + rows, left : left + BLOCK]
        first = (offsets[top : top + rows, None] + np.uint64(left)).astype(np.uint32) * _STRIDE
        at = first + _RAMP[: part.shape[1]]
        self._sums += [x.sum(dtype=np.uint32) for x in _hashes(part, at)]
    return self

  @property
  def sums(self) -> np.ndarray:
    """uint32[2]."""
    return self._sums.astype(np.uint32)

  def hex(self) -> str:
    """The digest as 16 letters."""
    return _hex(self.sums)


def of_lazy(value: Lazy) -> str:
  """The digest of a tensor, read block by block."""
  running = Running(value.shape)
  for index in row_blocks(value):
    running.add([s.start for s in index], value.read(index))
  return running.hex()


def of_arrays(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
  """{name: digest}. Devices hash what they hold, and nothing but the sums leaves them; numpy hashes
  what is small on a CPU, where compiling would take longer.

  In a run of several processes all of them call this with the same names.
  """
  arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
  small = [name for name, value in arrays.items() if _small(value)]
  sums = {name: _held(arrays[name]) for name in small}
  large = [name for name in arrays if name not in sums]
  sums.update(zip(large, map(np.asarray, on_devices([arrays[name] for name in large]))))
  shared = [name for name in small if not arrays[name].is_fully_addressable]
  if shared:  # each process has summed its own shards
    parts = multihost_utils.process_allgather(np.stack([sums[name] for name in shared]))
    sums.update(zip(shared, parts.sum(0, dtype=np.uint32)))
  return {name: _hex(sums[name]) for name in arrays}


@jax.jit
def on_devices(arrays: list[jax.Array]) -> list[jax.Array]:
  """uint32[2] of each array, computed where its shards are, in one pass over each."""
  found, zero = [], np.uint32(0)
  for x in arrays:
    if x.dtype == bool:
      x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * min(x.dtype.itemsize, 4)}').astype(jnp.uint32)
    at = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
      stride = np.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
      at += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
    hashes = tuple(_hashes(bits, at * _STRIDE))
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])  # both in one loop, which a CPU vectorises
    found.append(jnp.stack(jax.lax.reduce(hashes, (zero, zero), add, range(bits.ndim))))
  return found


def attached(leaves: Mapping[str, Lazy], digests: Mapping[str, str], folder) -> dict[str, Lazy]:
  """The same leaves of `folder`, with the digests that are known."""
  return {
    name: dataclasses.replace(leaf, digest=digests.get(name, ''), folder=str(folder))
    for name, leaf in leaves.items()
  }


def check(leaves: Mapping[str, Lazy], arrays: Mapping[str, jax.Array]) -> None:
  """Raises Damaged unless the arrays read from `leaves` have the digests they were saved with."""
  known = {name: leaf for name, leaf in leaves.items() if leaf.digest and name in arrays}
  found = of_arrays({name: arrays[name] for name in known})
  _compare(known, found)


def loaded(leaves: Mapping[str, Lazy]) -> dict[str, np.ndarray]:
  """The leaves in host memory. Raises Damaged where one is not what was saved."""
  arrays = {name: leaf[()] for name, leaf in leaves.items()}
  known = {name: leaf for name, leaf in leaves.items() if leaf.digest}
  _compare(
    known, {name: Running(leaf.shape).add((), arrays[name]).hex() for name, leaf in known.items()}
  )
  return arrays


def check_stored(leaves: Mapping[str, Lazy]) -> None:
  """The same, reading everything in blocks on the host."""
  known = {name: leaf for name, leaf in leaves.items() if leaf.digest}
  _compare(known, {name: of_lazy(leaf) for name, leaf in known.items()})


def _compare(known: Mapping[str, Lazy], found: Mapping[str, str]) -> None:
  wrong = [name for name, leaf in known.items() if found[name] != leaf.digest]
  if wrong:
    first = known[wrong[0]]
    more = f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''
    raise Damaged(
      f'{first.folder} is damaged: {wrong[0]} has the digest {found[wrong[0]]}, and was saved with '
      f'{first.digest}{more}'
    )


def of_json(value) -> str:
  """The digest of a value as JSON, whatever the order of its keys."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _small(array: jax.Array) -> bool:
  """Whether numpy hashes it."""
  return array.nbytes < COMPILED and any(d.platform == 'cpu' for d in array.devices())


def _held(array: jax.Array) -> np.ndarray:
  """The sums over this process's shards, each counted once."""
  running = Running(array.shape)
  for shard in array.addressable_shards:
    if shard.replica_id == 0:
      running.add([s.start or 0 for s in shard.index], np.asarray(shard.data))
  return running.sums


def _bits(block: np.ndarray) -> np.ndarray:
  """The elements as unsigned integers of at most 32 bits."""
  block = np.ascontiguousarray(block)
  return block.view(f'u{min(block.dtype.itemsize, 4)}')


def _hashes(bits, x):
  """Yields the two hashes of `bits` at the indices `x`, which are uint32 times _STRIDE. Those of
  numpy are in the memory of `x`, so the first is gone when the second comes."""
  x ^= bits
  x *= np.uint32(0x85EBCA77)
  x ^= x >> np.uint32(15)
  x *= np.uint32(0xC2B2AE3D)
  x ^= x >> np.uint32(13)
  yield x
  x *= np.uint32(0x27D4EB2F)
  x ^= x >> np.uint32(16)
  yield x


def _hex(sums) -> str:
  return ''.join(f'{int(n):08x}' for n in sums)
