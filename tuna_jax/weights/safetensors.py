"""Safetensors files and sharded folders: read lazily, written as a stream.

Layout of a file: 8 bytes of little-endian header length, a JSON header {name: {dtype, shape,
data_offsets}}, the data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.weights import digest
from tuna_jax.weights.tensors import Bytes, CheckpointError, Lazy, row_blocks

HEADER_LIMIT = 100_000_000  # the format's own limit
SHARD_BYTES = 5_000_000_000
_KINDS = 'F64:f8 F32:f4 F16:f2 I64:i8 I32:i4 I16:i2 I8:i1 U64:u8 U32:u4 U16:u2 U8:u1 BOOL:? C64:c8'
DTYPES = {
  **{name: np.dtype(d) for name, d in (kind.split(':') for kind in _KINDS.split())},
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
}
MAKER = (('format', 'pt'),)  # what transformers and diffusers write as metadata
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_file(path) -> dict[str, Lazy]:
  """{name: Lazy} of one .safetensors file, which the header must describe exactly, or
  CheckpointError says where it does not."""
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
    digests = json.loads((header.pop('__metadata__', None) or {}).get(digest.FIELD, '{}'))
    entries = [
      (name, e['dtype'], tuple(e['shape']), tuple(e['data_offsets'])) for name, e in header.items()
    ]
    for name, _, shape, offsets in entries:
      if len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise UserError(f'{name}: shape {shape}, offsets {offsets}')
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise CheckpointError(f'{path}: damaged header: {type(error).__name__} {error}') from None
  position, tensors = 0, {}
  for name, kind, shape, (start, stop) in sorted(entries, key=lambda e: e[3]):
    if kind not in DTYPES:
      raise CheckpointError(
        f'{path}: {name} is of type {kind}, which is not supported; supported: {", ".join(DTYPES)}'
      )
    dtype = DTYPES[kind]
    size = math.prod(shape) * dtype.itemsize
    if start != position or stop - start != size:
      raise CheckpointError(
        f'{path}: damaged header: {name} is {dtype}{list(shape)}, {size} bytes, but lies at '
        f'{start}..{stop} where {position} should come next'
      )
    position = stop
    tensors[name] = data.tensor(8 + length + start, shape, dtype)
  if 8 + length + position != data.size:
    raise CheckpointError(
      f'{path}: truncated or overlong: {data.size} bytes, the header describes '
      f'{8 + length + position}'
    )
  return digest.attached(tensors, digests, path) if digests else tensors


def read_index(path, read: Callable | None = None, end: str = '.safetensors') -> dict[str, Lazy]:
  """{name: Lazy} of the shards that a `*.index.json` names; they lie beside it and agree with it.

  read, end: the reader of one shard and what its name ends in, where that is not safetensors.
  Raises CheckpointError with every disagreement.
  """
  path, read = files.path(path), read or read_file
  try:
    items = [(str(n), str(file)) for n, file in files.read_json(path)['weight_map'].items()]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise CheckpointError(
      f'{path}: not an index of shards: {type(error).__name__} {error}'
    ) from None
  shards, faults = {}, []
  for file in sorted({file for _, file in items}):
    if not re.fullmatch(r'[\w][\w.\-]*' + re.escape(end), file):
      raise CheckpointError(
        f'{path}: refused shard path {file!r}: shards are {end} files beside their index'
      )
    if not (path.parent / file).exists():
      faults.append(f'{file}: the index names this shard; it is not there')
    else:
      shards[file] = read(path.parent / file)
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
  folder,
  tensors: Mapping[str, Lazy],
  *,
  stem: str = 'model',
  shard_bytes: int = SHARD_BYTES,
  write: Callable | None = None,
  end: str = '.safetensors',
) -> dict[str, str]:
  """Writes {stem}.safetensors, or shards of at most `shard_bytes` with an index; returns the digest
  of every tensor.

  write, end: the writer of one file and what its name ends in, where that is not safetensors.
  At most 64 MB are in memory at a time. Files are byte-equal to those of the safetensors library
  with metadata {'format': 'pt'}, which transformers and diffusers write.
  """
  folder, write = files.path(folder), write or write_file
  shards, size = [[]], 0
  for name in sorted(tensors):
    if shards[-1] and size + tensors[name].nbytes > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += tensors[name].nbytes
  if len(shards) == 1:
    return write(folder / f'{stem}{end}', tensors)
  weight_map, digests = {}, {}
  for number, names in enumerate(shards, start=1):
    file = f'{stem}-{number:05d}-of-{len(shards):05d}{end}'
    digests |= write(folder / file, {name: tensors[name] for name in names})
    weight_map.update(dict.fromkeys(names, file))
  total = {'total_size': sum(t.nbytes for t in tensors.values())}
  index = {'metadata': total, 'weight_map': dict(sorted(weight_map.items()))}
  files.write_json(folder / f'{stem}{end}.index.json', index)
  return digests


def write_file(path, tensors: Mapping[str, Lazy], metadata=MAKER) -> dict[str, str]:
  """Writes one .safetensors file as a stream; returns the digest of every tensor."""
  order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
  header, position = {'__metadata__': dict(metadata)}, 0
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
  digests = {}
  with files.writing(path) as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in order:
      running = digest.Running(tensors[name].shape)
      for index in row_blocks(tensors[name]):
        block = np.ascontiguousarray(tensors[name].read(index))
        running.add([s.start for s in index], block)
        file.write(block.reshape(-1).view(np.uint8))
      digests[name] = running.hex()
  return digests


def _no_duplicates(pairs):
  entries = dict(pairs)
  if len(entries) != len(pairs):
    raise UserError('a name occurs twice')
  return entries
