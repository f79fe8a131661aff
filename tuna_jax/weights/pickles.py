"""The pickles of torch files, read by an unpickler that describes tensors and can do nothing else.

A pickle is a program. This unpickler knows the opcodes that tensors need, imports nothing (a global
becomes a stand-in of this file, or the pickle is refused with the global's name) and calls nothing
but these stand-ins. It is built on the Python implementation of `pickle.Unpickler`, whose opcodes
can be chosen and whose memo is a dictionary: the C implementation allocates what the pickle asks.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tuna_jax.weights.tensors import CheckpointError

RANK_LIMIT = 32
ARGUMENTS = 8  # of a call; the tensor format has at most seven
WORK = 10_000_000  # elements that all calls together are given: a few per tensor are needed
OPCODES = """
  PROTO FRAME STOP MARK POP GLOBAL STACK_GLOBAL BINPERSID PERSID REDUCE BUILD NONE NEWTRUE NEWFALSE
  EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 LIST DICT SETITEM SETITEMS APPEND
  APPENDS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET INT BININT BININT1 BININT2 LONG
  LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING
  SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8""".split()
_KINDS = 'Double:f8 Float:f4 Half:f2 Long:i8 Int:i4 Short:i2 Char:i1 Byte:u1 Bool:?'
STORAGES = {
  **{f'{n}Storage': np.dtype(d) for n, d in (kind.split(':') for kind in _KINDS.split())},
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'UntypedStorage': np.dtype(np.uint8),
}
_DTYPES = 'float64 double float32 float float16 half bfloat16 int64 int32 int16 int8 uint8 bool'
ALLOWED = {
  'collections.OrderedDict',
  'torch._utils._rebuild_tensor_v2',
  'torch._utils._rebuild_tensor',
  'torch._utils._rebuild_parameter',
  'torch.nn.parameter.Parameter',
  'torch.storage.TypedStorage',
  'torch.storage.UntypedStorage',
  *(f'torch.{name}' for name in ('Size', 'device', *STORAGES, *_DTYPES.split())),
}
DAMAGED = (
  *(ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, EOFError),
  *(MemoryError, RecursionError, AssertionError, pickle.UnpicklingError),
)


class Storage(NamedTuple):
  """`count` numbers in the file, found by key."""

  key: str
  dtype: np.dtype
  count: int


class Tensor(NamedTuple):
  """A view of a storage; offset and strides are in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def interpret(path, stream, *, storages: dict | None = None, what: str = 'a pickle'):
  """The value of one pickle: plain containers, numbers, text and `Tensor`.

  Args:
    path: the file, for messages.
    stream: the pickle, in memory; left after its end.
    storages: filled with every storage that the pickle mentions, by key.
    what: what the file should be, for messages.

  Raises CheckpointError for a global, a call or an opcode that no tensor needs, and for damage.
  """
  try:
    return _Unpickler(stream, {} if storages is None else storages).load()
  except CheckpointError as error:
    raise CheckpointError(f'{path}: {error}') from None
  except DAMAGED as error:
    raise CheckpointError(
      f'{path}: not {what}, or damaged or truncated: {type(error).__name__} {error}'
    ) from None


class _Global(NamedTuple):
  """Stands for a global that the pickle mentions; calling it is what REDUCE can do."""

  name: str

  def __call__(self, *arguments):
    match self.name.rpartition('.')[2]:
      case 'OrderedDict':
        keys_and_values = [(key, value) for key, value in (arguments[0] if arguments else ())]
        return _pairs([part for pair in keys_and_values for part in pair])
      case 'Size':
        return tuple(*arguments)
      case 'device':
        return arguments
      case '_rebuild_parameter':
        return arguments[0]
      case '_rebuild_tensor_v2' | '_rebuild_tensor':
        return _tensor(*arguments[:4])
    raise ValueError(f'a call of {self.name}')


class _Opcodes(dict):
  """{opcode: method} of the opcodes that tensors need."""

  def __missing__(self, code: int):
    name = next((op.name for op in pickletools.opcodes if ord(op.code) == code), f'opcode {code}')
    raise CheckpointError(f'refused: its pickle uses {name}, which no tensor needs')


class _Unpickler(pickle._Unpickler):
  def __init__(self, stream, storages: dict):
    super().__init__(stream)
    self.storages = storages
    self.work = 0

  def find_class(self, module, name):
    if f'{module}.{name}' not in ALLOWED:
      raise CheckpointError(
        f'refused: its pickle refers to {module}.{name}, which is no part of a tensor'
      )
    return _Global(f'{module}.{name}')

  def persistent_load(self, pid) -> Storage:
    """The storage of ('storage', type, key, device, count[, view])."""
    if type(pid) is not tuple or not 5 <= len(pid) <= 6:
      raise ValueError('an unknown kind of reference')
    kind, storage, key, _, count, *view = pid
    known = isinstance(storage, _Global) and isinstance(key, str | int) and _is_size(count)
    if kind != 'storage' or not known or (view and view[0] is not None):
      raise ValueError('an unknown kind of reference')
    found = Storage(str(key), STORAGES[storage.name.rpartition('.')[2]], count)
    self.storages[found.key] = found
    return found

  def load_reduce(self):
    arguments, function = self.stack.pop(), self.stack.pop()
    if not isinstance(function, _Global) or type(arguments) is not tuple:
      raise TypeError(f'a call of {type(function).__name__}')
    if len(arguments) > ARGUMENTS:
      raise ValueError(f'a call with {len(arguments)} arguments')
    self.work += sum(len(a) for a in arguments if isinstance(a, list | tuple))
    if self.work > WORK:
      raise CheckpointError(f'refused: its pickle makes calls with over {WORK:,} elements')
    self.append(function(*arguments))

  def load_dict(self):
    items = self.pop_mark()
    self.append(_pairs(items))

  def load_setitem(self):
    items = [self.stack.pop(-2), self.stack.pop()]
    self.stack[-1].update(_pairs(items))

  def load_setitems(self):
    items = self.pop_mark()
    self.stack[-1].update(_pairs(items))

  def load_build(self):
    self.stack.pop()  # attributes, such as a state dict's _metadata

  dispatch = _Opcodes()


for _name in OPCODES:
  _code = getattr(pickle, _name)[0]
  _Unpickler.dispatch[_code] = getattr(_Unpickler, pickle._Unpickler.dispatch[_code].__name__)


def _is_size(n) -> bool:
  return type(n) is int and 0 <= n < 1 << 63


def _pairs(items) -> dict:
  if len(items) % 2:
    raise ValueError('a key without a value')
  for key in items[0::2]:  # hashing nested tuples can take for ever
    if not (isinstance(key, str | float | None) or (isinstance(key, int) and _is_size(abs(key)))):
      raise TypeError(f'a key of type {type(key).__name__}')
  return dict(zip(items[0::2], items[1::2], strict=True))


def _tensor(storage, offset, shape, strides) -> Tensor:
  sizes = (offset, *shape, *(abs(s) for s in strides))
  if (
    not isinstance(storage, Storage)
    or not len(shape) == len(strides) <= RANK_LIMIT
    or not all(map(_is_size, sizes))
  ):
    raise ValueError('a damaged tensor record')
  return Tensor(storage, offset, tuple(shape), tuple(strides))
