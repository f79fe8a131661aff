"""What a checkpoint holds, and what differs between two, as lines."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from tuna_jax.weights.tensors import Lazy, blocks, row_blocks


def listing(tensors: Mapping[str, Lazy], checksums: bool) -> Iterator[str]:
  """Names, types, shapes and bytes, and the sum of all; with a CRC-32 of each if `checksums`."""
  whole = hashlib.sha256()
  for name, value in sorted(tensors.items()):
    line = f'{name}  {value.dtype}{list(value.shape)}  {value.nbytes}'
    if checksums:
      crc = 0
      for block in blocks(value):
        crc = zlib.crc32(block, crc)
      whole.update(f'{name} {value.dtype} {value.shape} {crc:08x}\n'.encode())
      line += f'  {crc:08x}'
    yield line
  count = sum(math.prod(t.shape) for t in tensors.values())
  yield f'{len(tensors)} tensors, {count:,} parameters, {size(tensors)}'
  if checksums:
    yield f'sha256 of names, types, shapes and CRCs: {whole.hexdigest()}'


def differences(a: tuple[str, Mapping], b: tuple[str, Mapping]) -> Iterator[str]:
  """What differs between two checkpoints, each (what to call it, {name: Lazy})."""
  (_, first), (_, second) = a, b
  for (what, held), other in ((a, second), (b, first)):
    yield from (f'only in {what}: {name}' for name in sorted(held.keys() - other.keys()))
  for name in sorted(first.keys() & second.keys()):
    x, y = first[name], second[name]
    if x.shape != y.shape:
      yield f'{name}: shape {list(x.shape)} and {list(y.shape)}'
      continue
    worst, square, norm, same = 0.0, 0.0, 0.0, True
    for index in row_blocks(x):
      left, right = (np.asarray(v.read(index), np.float64) for v in (x, y))
      same &= np.array_equal(left, right)
      delta = np.abs(left - right)
      worst = max(worst, float(delta.max(initial=0.0)))
      square, norm = square + float((delta**2).sum()), norm + float((left**2).sum())
    if x.dtype != y.dtype:
      yield f'{name}: type {x.dtype} and {y.dtype}'
    if not same:
      relative = (square / max(norm, 1e-300)) ** 0.5
      yield f'{name}: values differ, max abs {worst:.3g}, relative L2 {relative:.3g}'


def size(tensors: Mapping[str, Lazy]) -> str:
  """The bytes of all, to read."""
  total = sum(t.nbytes for t in tensors.values())
  return f'{total / 1e9:.2f} GB' if total >= 1e8 else f'{total / 1e6:.2f} MB'
