"""PyTorch's .pt, .pth and .bin files, read without executing anything in them (see pickles.py).

Zip files (torch >= 1.6): NAME/data.pkl, and one stored entry NAME/data/KEY a storage. Files before
that: five pickles in a row, then each storage as int64 count and its bytes.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib

import numpy as np

from tuna_jax.weights.pickles import STORAGES, Storage, Tensor, interpret
from tuna_jax.weights.tensors import (
  CHUNK_BYTES,
  Bytes,
  CheckpointError,
  Lazy,
  full_index,
  index_shape,
  row_blocks,
)

PICKLE_LIMIT = 256 << 20  # bytes of pickle; names and shapes of a 7B checkpoint are under 1 MB
ENTRY_LIMIT = 1_000_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_file(path) -> dict[str, Lazy]:
  """{name: Lazy} of the state dict in a torch file: flat, or nested under `model` or `state_dict`.

  Raises CheckpointError for anything but tensors: a pickle that would import or call something is
  refused by name.
  """
  data = Bytes(path)
  if data.size >= 4 and data.read(0, 4).tobytes() == b'PK\x03\x04':
    payload, locate = _read_zip(path, data)
  else:
    payload, locate = _read_legacy(path, data)
  where = {}
  return {
    name: _tensor(path, name, tensor, data, locate, where)
    for name, tensor in _state_dict(path, payload).items()
  }


def verify(path):
  """Checks every entry of a zip file against its CRC-32. Raises CheckpointError naming the damaged
  entry.
  """
  data = Bytes(path)
  if data.size < 4 or data.read(0, 4).tobytes() != b'PK\x03\x04':
    return
  for name, (start, size, crc) in _zip_entries(path, data).items():
    found = 0
    for at in range(0, size, CHUNK_BYTES):
      found = zlib.crc32(data.read(start + at, min(CHUNK_BYTES, size - at)), found)
    if crc and found != crc:
      raise CheckpointError(f'{path}: entry {name} is damaged: CRC {found:08x}, recorded {crc:08x}')


# ---- the two containers


def _zip_entries(path, data: Bytes) -> dict[str, tuple[int, int, int]]:
  """{entry: (first byte, size, crc)}. Only stored entries that lie apart inside the file are
  accepted.
  """

  class File(io.RawIOBase):
    position = 0

    def seekable(self):
      return True

    def readable(self):
      return True

    def tell(self):
      return self.position

    def seek(self, offset, whence=0):
      self.position = offset + (0, self.position, data.size)[whence]
      return self.position

    def read(self, size=-1):
      stop = data.size if size is None or size < 0 else min(data.size, self.position + size)
      block = data.read(self.position, max(0, stop - self.position)).tobytes()
      self.position += len(block)
      return block

  try:
    infos = zipfile.ZipFile(File()).infolist()
  except (
    zipfile.BadZipFile,
    ValueError,
    OSError,
    NotImplementedError,
    UnicodeDecodeError,
  ) as error:
    if isinstance(error, CheckpointError):
      raise
    raise CheckpointError(f'{path}: truncated or damaged zip file: {error}') from None
  if len(infos) > ENTRY_LIMIT:
    raise CheckpointError(f'{path}: refused: {len(infos)} entries')
  entries, end = {}, 0
  for info in sorted(infos, key=lambda info: info.header_offset):
    name = info.filename
    if name.startswith(('/', '\\')) or '..' in re.split(r'[/\\]', name) or name in entries:
      raise CheckpointError(f'{path}: refused entry name {name!r}')
    if (
      info.compress_type != zipfile.ZIP_STORED
      or info.file_size != info.compress_size
      or info.flag_bits & 1
    ):
      raise CheckpointError(
        f'{path}: refused entry {name!r}: {info.compress_size} bytes that unpack to {info.file_size}; torch.save '
        'never compresses'
      )
    header = data.read(info.header_offset, 30).tobytes()
    start = (
      info.header_offset
      + 30
      + int.from_bytes(header[26:28], 'little')
      + int.from_bytes(header[28:30], 'little')
    )
    if (
      header[:4] != b'PK\x03\x04' or info.header_offset < end or start + info.file_size > data.size
    ):
      raise CheckpointError(
        f'{path}: damaged: entry {name!r} overlaps another or lies outside the file'
      )
    end = start + info.file_size
    entries[name] = (start, info.file_size, info.CRC)
  return entries


def _read_zip(path, data):
  entries = _zip_entries(path, data)
  pickles = [name for name in entries if re.fullmatch(r'(.+/)?data\.pkl', name)]
  if len(pickles) != 1:
    raise CheckpointError(f'{path}: not a torch checkpoint: {len(pickles)} entries called data.pkl')
  root = pickles[0].removesuffix('data.pkl')
  order = entries.get(f'{root}byteorder')
  if order and data.read(*order[:2]).tobytes() != b'little':
    raise CheckpointError(f'{path}: written on a big-endian machine')
  start, size, crc = entries[pickles[0]]
  if size > PICKLE_LIMIT:
    raise CheckpointError(f'{path}: refused: data.pkl has {size} bytes')
  text = data.read(start, size).tobytes()
  if crc and zlib.crc32(text) != crc:
    raise CheckpointError(f'{path}: damaged: data.pkl does not match its CRC')

  def locate(storage):
    found = entries.get(f'{root}data/{storage.key}')
    return found and found[:2]

  return interpret(path, io.BytesIO(text)), locate


def _read_legacy(path, data):
  stream = io.BytesIO(data.read(0, min(data.size, PICKLE_LIMIT)).tobytes())
  if interpret(path, stream, what='a torch checkpoint') != LEGACY_MAGIC:
    raise CheckpointError(
      f'{path}: not a torch checkpoint: neither a zip file nor the older format'
    )
  interpret(path, stream)  # protocol version
  info = interpret(path, stream)
  if not isinstance(info, dict) or info.get('little_endian') is not True:
    raise CheckpointError(f'{path}: written on a big-endian machine')
  storages: dict[str, Storage] = {}
  payload = interpret(path, stream, storages=storages)
  keys = interpret(path, stream)
  if not isinstance(keys, list):
    raise CheckpointError(f'{path}: damaged: no list of storages')
  position, places = stream.tell(), {}
  for key in map(str, keys):
    if key not in storages:
      raise CheckpointError(f'{path}: damaged: storage {key!r} is not used by the pickle')
    size = storages[key].count * storages[key].dtype.itemsize
    if int.from_bytes(data.read(position, 8).tobytes(), 'little') != storages[key].count:
      raise CheckpointError(f'{path}: damaged: storage {key!r} has another length than recorded')
    places[key] = (position + 8, size)
    position += 8 + size
  return payload, lambda storage: places.get(storage.key)


def _state_dict(path, payload) -> dict[str, Tensor]:
  for nested in (
    (),
    ('model',),
    ('state_dict',),
    ('module',),
    ('model', 'state_dict'),
    ('state_dict', 'model'),
  ):
    found = payload
    for key in nested:
      found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, dict) and any(isinstance(value, Tensor) for value in found.values()):
      break
  else:
    raise CheckpointError(
      f'{path}: no state dict: tensors are looked for at the top, under `model` and `state_dict`'
    )
  others = [
    name
    for name, value in found.items()
    if not (isinstance(name, str) and isinstance(value, Tensor))
  ]
  if others:
    raise CheckpointError(f'{path}: not tensors: {", ".join(map(repr, others[:20]))}')
  return found


def _tensor(path, name, tensor: Tensor, data: Bytes, locate, where) -> Lazy:
  """The tensor in the file, after checking that it lies inside its storage and the storage inside
  the file.
  """
  storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
  place = where.setdefault(storage.key, locate(storage))
  itemsize = storage.dtype.itemsize
  if place is None:
    raise CheckpointError(f'{path}: {name}: storage {storage.key!r} is not in the file')
  start, size = place
  count = math.prod(shape)
  last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides)) if count else 0
  repeats = any(s <= 0 and n > 1 for n, s in zip(shape, strides))
  if (
    storage.count * itemsize > size
    or (count and last >= storage.count)
    or repeats
    or count > storage.count
  ):
    raise CheckpointError(
      f'{path}: {name}: refused: {list(shape)} with strides {list(strides)} from {tensor.offset} does not lie in its '
      f'storage of {size} bytes'
    )
  begin = start + tensor.offset * itemsize
  contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
  if all(n <= 1 or s == c for n, s, c in zip(shape, strides, contiguous)):
    return data.tensor(begin, shape, storage.dtype)

  def read(index):
    wanted = index_shape(index)
    if not math.prod(wanted):
      return np.empty(wanted, storage.dtype)
    first = sum(s.start * stride for s, stride in zip(index, strides))
    span = 1 + sum((n - 1) * stride for n, stride in zip(wanted, strides))
    flat = data.read(begin + first * itemsize, span * itemsize).view(storage.dtype)
    return np.lib.stride_tricks.as_strided(
      flat, wanted, [s * itemsize for s in strides], writeable=False
    ).copy()

  return Lazy(shape, storage.dtype, lambda index: read(full_index(index, shape)))


# ---- writing


def write_file(path, tensors):
  """Writes {name: Lazy} as torch.save writes a flat state dict; one block of at most 64 MB is in
  memory at a time.
  """
  names = {
    dtype: name
    for name, dtype in ((n, np.dtype(d)) for n, d in STORAGES.items() if n != 'UntypedStorage')
  }
  order = b'ccollections\nOrderedDict\n)R'
  program = [b'\x80\x02', order, b'(']
  for key, (name, value) in enumerate(tensors.items()):
    strides = [math.prod(value.shape[i + 1 :]) for i in range(len(value.shape))]
    program += [
      _text(name),
      b'ctorch._utils\n_rebuild_tensor_v2\n((',
      _text('storage'),
      f'ctorch\n{names[value.dtype]}\n'.encode(),
      _text(str(key)),
      _text('cpu'),
      _int(math.prod(value.shape)),
      b'tQ',
      _int(0),
      b'(',
      *map(_int, value.shape),
      b't(',
      *map(_int, strides),
      b't\x89',
      order,
      b'tR',
    ]
  program += [b'u.']
  with path.open('wb') as out, zipfile.ZipFile(out, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr('archive/data.pkl', b''.join(program))
    archive.writestr('archive/byteorder', 'little')
    for key, value in enumerate(tensors.values()):
      with archive.open(f'archive/data/{key}', 'w', force_zip64=True) as entry:
        for index in row_blocks(value):
          entry.write(np.ascontiguousarray(value.read(index)).reshape(-1).view(np.uint8).data)
    archive.writestr('archive/version', '3\n')


def _text(value: str) -> bytes:
  data = value.encode()
  return b'X' + len(data).to_bytes(4, 'little') + data


def _int(value: int) -> bytes:
  data = value.to_bytes(8, 'little')
  return b'\x8a\x08' + data  # LONG1
