"""The pickles of torch files, walked and never run.

A pickle is a little program; unpickling runs it. Here its opcodes are read (`pickletools`) by an
interpreter that can build containers and note which tensor lies where in the file, and can do
nothing else: it imports nothing and calls nothing. A name outside PyTorch's own tensor format is
refused, with the name.
"""

from __future__ import annotations

import collections
import dataclasses
import pickletools

import ml_dtypes
import numpy as np

from tuna_jax.config import UserError
from tuna_jax.weights.tensors import CheckpointError

STEP_LIMIT = 20_000_000  # opcodes

STORAGES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
  'UntypedStorage': np.uint8,
}
DTYPES = {
  'float64': np.float64,
  'double': np.float64,
  'float32': np.float32,
  'float': np.float32,
  'float16': np.float16,
  'half': np.float16,
  'bfloat16': ml_dtypes.bfloat16,
  'int64': np.int64,
  'int32': np.int32,
  'int16': np.int16,
  'int8': np.int8,
  'uint8': np.uint8,
  'bool': np.bool_,
}
ALLOWED = {
  'collections OrderedDict',
  'torch Size',
  'torch device',
  'torch._utils _rebuild_tensor_v2',
  'torch._utils _rebuild_tensor',
  'torch._utils _rebuild_parameter',
  'torch.nn.parameter Parameter',
  'torch.storage TypedStorage',
  'torch.storage UntypedStorage',
  *(f'torch {name}' for name in (*STORAGES, *DTYPES)),
}


@dataclasses.dataclass(frozen=True)
class Name:
  """A global that the pickle mentions: 'module name'. Never looked up."""

  name: str


@dataclasses.dataclass(frozen=True)
class Storage:
  """A run of numbers in the file, by key."""

  key: str
  dtype: np.dtype
  count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage, in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def interpret(path, stream, *, storages: dict | None = None, what: str = 'a pickle'):
  """The value of one pickle: plain containers, numbers, text and `Tensor`.

  Args:
    path: the file, for messages.
    stream: the pickle; left after its end.
    storages: filled with every storage that the pickle mentions, by key.
    what: what the file should be, for messages.

  Raises CheckpointError for a name, call or opcode that no tensor needs, and for a damaged pickle.
  """
  stack, marks, memo = [], [], {}

  def since_mark():
    at = marks.pop()
    items = stack[at:]
    del stack[at:]
    return items

  def remember(storage):
    if storages is not None:
      storages[storage.key] = storage
    return storage

  try:
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
      op = opcode.name
      if step > STEP_LIMIT:
        raise CheckpointError(f'{path}: refused: a pickle of more than {STEP_LIMIT} steps')
      if op in ('PROTO', 'FRAME'):
        pass
      elif op == 'STOP':
        return stack.pop()
      elif op == 'MARK':
        marks.append(len(stack))
      elif op in ('GLOBAL', 'STACK_GLOBAL'):
        if op == 'STACK_GLOBAL':
          name, module = stack.pop(), stack.pop()
          argument = f'{module} {name}'
        if argument not in ALLOWED:
          raise CheckpointError(
            f'{path}: refused: its pickle refers to {argument.replace(" ", ".")}, which is no part of a tensor'
          )
        stack.append(Name(argument))
      elif op in ('BINPERSID', 'PERSID'):
        stack.append(remember(_storage(stack.pop())))
      elif op == 'REDUCE':
        arguments, function = stack.pop(), stack.pop()
        stack.append(_call(function, arguments))
      elif op == 'BUILD':
        stack.pop()  # attributes, such as a state dict's _metadata
      elif op in ('NONE', 'NEWTRUE', 'NEWFALSE'):
        stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[op])
      elif op in ('EMPTY_DICT', 'EMPTY_LIST', 'EMPTY_TUPLE'):
        stack.append({'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}[op]())
      elif op in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
        count = int(op[-1])
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)
      elif op in ('TUPLE', 'LIST'):
        stack.append((tuple if op == 'TUPLE' else list)(since_mark()))
      elif op == 'DICT':
        stack.append(_pairs(since_mark()))
      elif op in ('SETITEM', 'SETITEMS'):
        items = since_mark() if op == 'SETITEMS' else [stack.pop(-2), stack.pop()]
        stack[-1].update(_pairs(items))
      elif op in ('APPEND', 'APPENDS'):
        items = since_mark() if op == 'APPENDS' else [stack.pop()]
        stack[-1].extend(items)
      elif op in ('PUT', 'BINPUT', 'LONG_BINPUT'):
        memo[argument] = stack[-1]
      elif op == 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      elif op in ('GET', 'BINGET', 'LONG_BINGET'):
        stack.append(memo[argument])
      elif op == 'POP':
        stack.pop()
      elif (
        op.startswith(('BININT', 'INT', 'LONG', 'BINFLOAT', 'FLOAT'))
        or 'UNICODE' in op
        or 'BYTES' in op
        or ('STRING' in op)
      ):
        stack.append(argument)
      else:
        raise CheckpointError(f'{path}: refused: its pickle uses {op}, which no tensor needs')
  except CheckpointError:
    raise
  except (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    UnicodeDecodeError,
    OverflowError,
  ) as error:
    raise CheckpointError(
      f'{path}: not {what}, or damaged: {type(error).__name__} {error}'
    ) from None
  raise CheckpointError(f'{path}: not {what}, or truncated')


def _pairs(items) -> dict:
  if len(items) % 2:
    raise UserError('a key without a value')
  for key in items[0::2]:
    if not isinstance(
      key, (str, int, float, type(None))
    ):  # hashing nested tuples can take for ever
      raise TypeError(f'a key of type {type(key).__name__}')
  return dict(zip(items[0::2], items[1::2]))


def _storage(pid) -> Storage:
  """('storage', type, key, device, count[, view])."""
  kind, storage_type, key, _, count, *view = pid
  known = (
    isinstance(kind, str)
    and isinstance(key, (str, int))
    and type(count) is int
    and isinstance(storage_type, Name)
  )
  if not known or kind != 'storage' or count < 0 or (view and view[0] is not None):
    raise UserError('an unknown kind of reference')
  return Storage(str(key), np.dtype(STORAGES[storage_type.name.split(' ')[1]]), count)


def _call(function, arguments):
  """What the few calls of the tensor format stand for."""
  if not isinstance(function, Name):
    raise TypeError(f'a call of {type(function).__name__}')
  module, name = function.name.split(' ')
  if name == 'OrderedDict':
    return collections.OrderedDict(
      _pairs([part for pair in (arguments[0] if arguments else ()) for part in pair])
    )
  if name == 'Size':
    return tuple(*arguments)
  if name == 'device':
    return arguments
  if name == '_rebuild_parameter':
    return arguments[0]
  if name in ('_rebuild_tensor_v2', '_rebuild_tensor'):
    storage, offset, shape, strides = arguments[:4]
    if (
      not isinstance(storage, Storage)
      or len(shape) != len(strides)
      or not all(type(n) is int and n >= 0 for n in (offset, *shape))
      or not all(type(n) is int for n in strides)
    ):
      raise UserError('a damaged tensor record')
    return Tensor(storage, offset, tuple(shape), tuple(strides))
  raise UserError(f'a call of {module}.{name}')
