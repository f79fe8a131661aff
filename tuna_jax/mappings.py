"""Configs from nested mappings and back: every way in from a file or a command line is strict."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Annotated

from tuna_jax.config import UserError, nearest
from tuna_jax.ranges import Range


def kind(value) -> str:
  """What a value is, for error messages: the name of its type, or None."""
  return 'None' if value is None else type(value).__name__


def from_dict(cls, mapping: Mapping, path: str = ''):
  """Builds the frozen dataclass `cls` from a (nested) mapping.

  Raises UserError with the full path of an unknown field (and the nearest right name), a missing
  one, or a value of another type or outside of its range. An integer may stand for a float, and a
  list for a tuple.
  """
  where = path or cls.__name__
  if not isinstance(mapping, Mapping):
    raise UserError(f'{where}: expected a mapping, found {_shown(mapping)}')
  hints = typing.get_type_hints(cls, include_extras=True)
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in mapping:
    if key not in fields:
      raise UserError(f'{path + "." if path else ""}{key}: no such field{nearest(key, fields)}')
  values = {}
  for name, field in fields.items():
    full = f'{path}.{name}' if path else name
    if name in mapping:
      values[name] = _convert(hints[name], mapping[name], full)
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise UserError(f'{full}: missing')
  return cls(**values)


def checked(config):
  """`config`, once every value in it is within its range; raises UserError as `from_dict` does."""
  return from_dict(type(config), to_dict(config))


def to_dict(config) -> dict:
  """The nested plain mapping that `from_dict` reads back to an equal config."""
  return dataclasses.asdict(config)


def _convert(hint, value, path):
  """`value` as type `hint`; UserError with the path if it has another type."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    value = _convert(args[0], value, path)
    for limits in args[1:]:
      if isinstance(limits, Range) and not limits.holds(value):
        raise UserError(f'{path}={value!r}: expected {limits.wanted(value)}')
    return value
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    return _convert(next(a for a in args if a is not type(None)), value, path)
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else from_dict(hint, value, path)
  if origin is tuple and isinstance(value, (list, tuple)):
    if args[-1] is Ellipsis:
      args = (args[0],) * len(value)
    if len(args) != len(value):
      raise UserError(f'{path}: expected {len(args)} items, found {len(value)}: {value!r}')
    return tuple(_convert(a, v, f'{path}[{i}]') for i, (a, v) in enumerate(zip(args, value)))
  if origin is list and isinstance(value, list):
    return [_convert(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)]
  if origin is dict and isinstance(value, dict):
    return {
      _convert(args[0], k, path): _convert(args[1], v, f'{path}.{k}') for k, v in value.items()
    }
  if hint is float and type(value) is int and abs(value) < 1e308:
    return float(value)
  if hint is typing.Any or (type(value) is hint):
    return value
  raise UserError(f'{path}: expected {getattr(hint, "__name__", hint)}, found {_shown(value)}')


def _shown(value) -> str:
  return 'None' if value is None else f'{kind(value)} {value!r}'
