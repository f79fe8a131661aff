"""Safetensors files and sharded folders: read lazily, written as a stream.

Layout of a file: 8 bytes of little-endian header length, a JSON header {name: {dtype, shape,
data_offsets}}, the data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from etils import epath

from tuna_jax.config import UserError
from tuna_jax.weights.tensors import Bytes, CheckpointError, Lazy, row_blocks

HEADER_LIMIT = 100_000_000  # the format's own limit
SHARD_BYTES = 5_000_000_000

DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U64': np.dtype(np.uint64),
  'U32': np.dtype(np.uint32),
  'U16': np.dtype(np.uint16),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_file(path) -> dict[str, Lazy]:
  """{name: Lazy} of one .safetensors file. Raises CheckpointError if the header does not describe
  the file exactly.
  """
  data = Bytes(path)
  if data.size < 8:
    raise CheckpointError(f'{path}: not a safetensors file: {data.size} bytes')
  length = int.from_bytes(data.read(0, 8).tobytes(), 'little')
  if length > min(HEADER_LIMIT, data.size - 8):
    raise CheckpointError(
      f'{path}: truncated or not a safetensors file: header of {length} bytes in {data.size}'
    )
  try:
    header = json.loads(
      data.read(8, length).tobytes().decode('utf-8'), object_pairs_hook=_no_duplicates
    )
    header.pop('__metadata__', None)
    entries = [
      (name, DTYPES[e['dtype']], tuple(e['shape']), tuple(e['data_offsets']))
      for name, e in header.items()
    ]
    for name, _, shape, offsets in entries:
      if len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise UserError(f'{name}: shape {shape}, offsets {offsets}')
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise CheckpointError(f'{path}: damaged header: {type(error).__name__} {error}') from None
  position, tensors = 0, {}
  for name, dtype, shape, (start, stop) in sorted(entries, key=lambda e: e[3]):
    size = math.prod(shape) * dtype.itemsize
    if start != position or stop - start != size:
      raise CheckpointError(
        f'{path}: damaged header: {name} is {dtype}{list(shape)}, {size} bytes, but lies at {start}..{stop} '
        f'where {position} should come next'
      )
    position = stop
    tensors[name] = data.tensor(8 + length + start, shape, dtype)
  if 8 + length + position != data.size:
    raise CheckpointError(
      f'{path}: truncated or overlong: {data.size} bytes, the header describes {8 + length + position}'
    )
  return tensors


def read_index(path) -> dict[str, Lazy]:
  """{name: Lazy} over the shards that a `*.index.json` names. All files must lie beside it and
  agree with it.
  """
  path = epath.Path(path)
  try:
    weight_map = json.loads(path.read_text())['weight_map']
    items = [(str(name), str(file)) for name, file in weight_map.items()]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise CheckpointError(
      f'{path}: not an index of shards: {type(error).__name__} {error}'
    ) from None
  shards, faults = {}, []
  for file in sorted({file for _, file in items}):
    if not re.fullmatch(r'[\w][\w.\-]*\.safetensors', file):
      raise CheckpointError(
        f'{path}: refused shard path {file!r}: shards are .safetensors files beside their index'
      )
    if not (path.parent / file).exists():
      faults.append(f'{file}: the index names this shard; it is not there')
    else:
      shards[file] = read_file(path.parent / file)
  listed = {}
  for name, file in items:
    listed.setdefault(file, set()).add(name)
    if file in shards and name not in shards[file]:
      faults.append(f'{name}: not in {file}, where the index puts it')
  for file, tensors in shards.items():
    faults += [
      f'{name}: in {file}, absent from the index' for name in tensors if name not in listed[file]
    ]
  if faults:
    raise CheckpointError('\n'.join([f'{path}: {len(faults)} faults', *faults]))
  return {name: shards[file][name] for name, file in items}


def write_folder(
  folder, tensors: Mapping[str, Lazy], *, stem: str = 'model', shard_bytes: int = SHARD_BYTES
):
  """Writes `tensors` under `folder` as {stem}.safetensors, or as shards of at most `shard_bytes`
  with an index.

  One block of at most 64 MB is in memory at a time. Files are byte-equal to those of the
  safetensors library with metadata {'format': 'pt'}, which is what transformers and diffusers
  write.
  """
  folder = epath.Path(folder)
  shards, size = [[]], 0
  for name in sorted(tensors):
    if shards[-1] and size + tensors[name].nbytes > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += tensors[name].nbytes
  if len(shards) == 1:
    write_file(folder / f'{stem}.safetensors', tensors)
    return
  weight_map = {}
  for number, names in enumerate(shards, start=1):
    file = f'{stem}-{number:05d}-of-{len(shards):05d}.safetensors'
    write_file(folder / file, {name: tensors[name] for name in names})
    weight_map.update(dict.fromkeys(names, file))
  index = {
    'metadata': {'total_size': sum(t.nbytes for t in tensors.values())},
    'weight_map': weight_map,
  }
  (folder / f'{stem}.safetensors.index.json').write_text(
    json.dumps(index, indent=2, sort_keys=True) + '\n'
  )


def write_file(path, tensors: Mapping[str, Lazy]):
  """Writes one .safetensors file as a stream."""
  order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
  header, position = {'__metadata__': {'format': 'pt'}}, 0
  for name in order:
    value = tensors[name]
    header[name] = {
      'dtype': NAMES[value.dtype],
      'shape': list(value.shape),
      'data_offsets': [position, position + value.nbytes],
    }
    position += value.nbytes
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  with epath.Path(path).open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in order:
      for index in row_blocks(tensors[name]):
        block = np.ascontiguousarray(tensors[name].read(index))
        file.write(memoryview(block.reshape(-1).view(np.uint8)))


def _no_duplicates(pairs):
  entries = dict(pairs)
  if len(entries) != len(pairs):
    raise UserError('a name occurs twice')
  return entries
