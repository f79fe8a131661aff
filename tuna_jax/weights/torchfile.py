"""PyTorch's .pt, .pth and .bin files, read without executing anything in them (see pickles.py).

Zip files (torch >= 1.6) hold NAME/data.pkl and one stored entry NAME/data/KEY per storage. Older
files are five pickles in a row, then each storage as an int64 count and its bytes.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib

import numpy as np

from tuna_jax import files
from tuna_jax.weights.pickles import STORAGES, Storage, Tensor, interpret
from tuna_jax.weights.tensors import CHUNK_BYTES, Bytes, CheckpointError, Lazy, blocks, index_shape

PICKLE_LIMIT = 16 << 20  # bytes: names and shapes of a 7B checkpoint are under 1 MB
ENTRY_LIMIT = 100_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ZIP_MAGIC = b'PK\x03\x04'
# Where a state dict lies in a file, by what is asked for; '' is the top.
NESTS = {
  'model': ('', 'model', 'state_dict', 'module', 'model/state_dict', 'state_dict/model'),
  'ema': ('ema', 'model_ema', 'ema_model', 'ema_state_dict', 'state_dict_ema', 'ema/state_dict'),
}
MISSING = (0, -1)  # the place of a storage that is not in the file


def read_file(path, weights: str = 'model') -> dict[str, Lazy]:
  """{name: Lazy} of the state dict in a torch file: flat, or nested as in NESTS[weights].

  Raises CheckpointError for anything but tensors: a pickle that would import or call something is
  refused by name.
  """
  data = Bytes(path)
  payload, places = (_read_zip if _is_zip(data) else _read_legacy)(path, data)
  return {
    name: _tensor(f'{path}: {name}', tensor, data, *places.get(tensor.storage.key, MISSING))
    for name, tensor in _state_dict(path, payload, weights)[1].items()
  }


def ignored(path, weights: str = 'model') -> dict[str, str]:
  """{entry: what it is} of all that `read_file` leaves in a file."""
  data = Bytes(path)
  payload, _ = (_read_zip if _is_zip(data) else _read_legacy)(path, data)
  nest, _ = _state_dict(path, payload, weights)
  found = {}
  for name, value in payload.items() if nest else ():
    if name != nest.partition('/')[0]:
      tensors = len(value) if isinstance(value, dict) and _has_tensors(value) else 0
      which = next((w for w, nests in NESTS.items() if name in nests), '')
      by = f', which --weights={which} takes' if which and tensors else ''
      found[str(name)] = f'{tensors} tensors{by}' if tensors else f'a {type(value).__name__}'
  return found


def verify(path) -> bool:
  """Compares every entry of a zip file with its CRC-32, and returns whether it is one, since other
  files have no checksums. CheckpointError names a damaged entry."""
  data = Bytes(path)
  if not _is_zip(data):
    return False
  for name, (start, size, crc) in _zip_entries(path, data).items():
    found = 0
    for at in range(0, size, CHUNK_BYTES):
      found = zlib.crc32(data.read(start + at, min(CHUNK_BYTES, size - at)), found)
    if crc and found != crc:
      raise CheckpointError(f'{path}: entry {name} is damaged: CRC {found:08x}, recorded {crc:08x}')
  return True


def _is_zip(data: Bytes) -> bool:
  return data.size >= 4 and data.read(0, 4).tobytes() == ZIP_MAGIC


def _zip_entries(path, data: Bytes) -> dict[str, tuple[int, int, int]]:
  """{entry: (first byte, size, crc)}. Only stored entries that lie apart inside the file pass."""
  try:
    with data.path.open('rb') as file:
      infos = zipfile.ZipFile(file).infolist()
  except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
    raise CheckpointError(f'{path}: truncated or damaged zip file: {error}') from None
  if len(infos) > ENTRY_LIMIT:
    raise CheckpointError(f'{path}: refused: {len(infos)} entries')
  entries, end = {}, 0
  for info in sorted(infos, key=lambda info: info.header_offset):
    name, size = info.filename, info.file_size
    if name.startswith(('/', '\\')) or '..' in re.split(r'[/\\]', name) or name in entries:
      raise CheckpointError(f'{path}: refused entry name {name!r}')
    if info.compress_type != zipfile.ZIP_STORED or size != info.compress_size or info.flag_bits & 1:
      raise CheckpointError(
        f'{path}: refused entry {name!r}: {info.compress_size} bytes that unpack to {size}; '
        'torch.save never compresses'
      )
    header = data.read(info.header_offset, 30).tobytes()
    name_and_extra = int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:], 'little')
    start = info.header_offset + 30 + name_and_extra
    if header[:4] != ZIP_MAGIC or info.header_offset < end or start + size > data.size:
      raise CheckpointError(
        f'{path}: damaged: entry {name!r} overlaps another or lies outside the file'
      )
    end = start + size
    entries[name] = (start, size, info.CRC)
  return entries


def _read_zip(path, data):
  """(what data.pkl holds, {storage key: (first byte, size)})."""
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
  places = {name.removeprefix(f'{root}data/'): entry[:2] for name, entry in entries.items()}
  return interpret(path, io.BytesIO(text)), places


def _read_legacy(path, data):
  """The same of the format before 1.6."""
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
  for key in keys:
    storage = storages.get(key) if isinstance(key, str) else None
    if storage is None:
      raise CheckpointError(f'{path}: damaged: storage {key!r} is not used by the pickle')
    if int.from_bytes(data.read(position, 8).tobytes(), 'little') != storage.count:
      raise CheckpointError(f'{path}: damaged: storage {key!r} has another length than recorded')
    places[key] = (position + 8, storage.count * storage.dtype.itemsize)
    position += 8 + places[key][1]
  return payload, places


def _has_tensors(value) -> bool:
  return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _state_dict(path, payload, weights: str) -> tuple[str, dict[str, Tensor]]:
  """(where it lies, it)."""
  for nest in NESTS[weights]:
    found = payload
    for key in filter(None, nest.split('/')):
      found = found.get(key) if isinstance(found, dict) else None
    if _has_tensors(found):
      break
  else:
    there = ', '.join(map(str, payload))[:200] if isinstance(payload, dict) else 'no mapping'
    places = ', '.join(nest or 'the top' for nest in NESTS[weights])
    raise CheckpointError(
      f'{path}: no state dict: tensors are looked for at {places}; the file holds {there}'
    )
  others = [
    repr(name)
    for name, value in found.items()
    if not (isinstance(name, str) and isinstance(value, Tensor))
  ]
  if others:
    raise CheckpointError(f'{path}: not tensors: {", ".join(others[:20])}')
  return nest, found


def _tensor(name: str, tensor: Tensor, data: Bytes, start: int, size: int) -> Lazy:
  """The tensor in the file, after checking that it lies inside its storage and this in the file."""
  (key, dtype, stored), offset, shape, strides = tensor
  if size < 0:
    raise CheckpointError(f'{name}: storage {key!r} is not in the file')
  count = math.prod(shape)
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if count else 0
  repeats = any(s <= 0 and n > 1 for n, s in zip(shape, strides, strict=True))
  fits = stored * dtype.itemsize <= size and count <= stored and (not count or last < stored)
  if repeats or not fits:
    raise CheckpointError(
      f'{name}: refused: {list(shape)} with strides {list(strides)} from {offset} does not lie in '
      f'its storage of {size} bytes'
    )
  begin = start + offset * dtype.itemsize
  if all(n <= 1 or s == c for n, s, c in zip(shape, strides, _contiguous(shape), strict=True)):
    return data.tensor(begin, shape, dtype)

  def read(index):
    wanted = index_shape(index)
    if not math.prod(wanted):
      return np.empty(wanted, dtype)
    first = sum(s.start * stride for s, stride in zip(index, strides, strict=True))
    span = 1 + sum((n - 1) * stride for n, stride in zip(wanted, strides, strict=True))
    flat = data.read(begin + first * dtype.itemsize, span * dtype.itemsize).view(dtype)
    steps = [s * dtype.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(flat, wanted, steps, writeable=False).copy()

  return Lazy(shape, dtype, read)


def _contiguous(shape) -> list[int]:
  return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def write_file(path, tensors) -> dict[str, str]:
  """Writes {name: Lazy} as torch.save writes a flat state dict, in blocks of at most 64 MB.

  Returns no digests, since the zip file holds checksums of its own."""
  names = {dtype: name for name, dtype in STORAGES.items() if name != 'UntypedStorage'}
  order = b'ccollections\nOrderedDict\n)R'
  program = [b'\x80\x02', order, b'(']
  for key, (name, value) in enumerate(tensors.items()):
    program += [
      *(_text(name), b'ctorch._utils\n_rebuild_tensor_v2\n(('),
      *(_text('storage'), f'ctorch\n{names[value.dtype]}\n'.encode(), _text(str(key))),
      *(_text('cpu'), _int(math.prod(value.shape)), b'tQ', _int(0)),
      *(b'(', *map(_int, value.shape), b't(', *map(_int, _contiguous(value.shape)), b't\x89'),
      *(order, b'tR'),
    ]
  program += [b'u.']
  with files.writing(path) as out, zipfile.ZipFile(out, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr('archive/data.pkl', b''.join(program))
    archive.writestr('archive/byteorder', 'little')
    for key, value in enumerate(tensors.values()):
      with archive.open(f'archive/data/{key}', 'w', force_zip64=True) as entry:
        for block in blocks(value):
          entry.write(block)
    archive.writestr('archive/version', '3\n')
  return {}


def _text(value: str) -> bytes:
  data = value.encode()
  return b'X' + len(data).to_bytes(4, 'little') + data


def _int(value: int) -> bytes:
  return b'\x8a\x08' + value.to_bytes(8, 'little')  # LONG1
