"""What people know from other libraries: names of arguments, and messages as chat services take
them. A name that no method takes is refused with the nearest that it does.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import inspect
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any

from tuna_jax import files
from tuna_jax.config import UserError, nearest
from tuna_jax.mappings import kind

# What diffusers, transformers and OpenAI's client call our arguments.
NAMES = (
  ('guidance_scale', 'guidance'),
  ('negative_prompt', 'negative'),
  ('num_frames', 'frames'),
  ('max_tokens', 'max_new_tokens'),
  ('max_completion_tokens', 'max_new_tokens'),
  ('image', 'images'),
  ('prompt', 'messages'),
  ('prompt', 'instruction'),
)
# What stands for a type of an argument, and its name in a message.
TYPES = {
  int: (numbers.Integral, 'a whole number'),
  float: (numbers.Real, 'a number'),
  str: (str, 'text'),
}


def familiar(method: Callable) -> Callable:
  """The method, which also takes the familiar names of its arguments: those of NAMES, `height` and
  `width` for `size`, and `num_inference_steps` for `points` - 1. Raises UserError for an unknown or
  doubled name, and for a value of another type."""
  known = list(inspect.signature(method).parameters)[1:]
  parameters = inspect.signature(method).parameters
  needed = [name for name in known if parameters[name].default is inspect.Parameter.empty]
  renamed = {name: ours for name, ours in NAMES if ours in known and name not in known}
  theirs = list(renamed)
  theirs += ['height', 'width'] if 'size' in known else []
  theirs += ['num_inference_steps'] if 'points' in known else []

  @functools.wraps(method)
  def call(self, *given, **named):
    if len(given) > len(known):
      raise UserError(f'{_name(method)}: {len(given)} arguments; it takes {", ".join(known)}')
    taken = known[: len(given)]
    for name in list(named):
      if name in known and name not in taken:
        continue
      if name not in theirs:
        what = 'is given twice' if name in taken else f'is unknown{nearest(name, known + theirs)}'
        raise UserError(f'{_name(method)}: the argument {name!r} {what}')
      if name in renamed:
        _put(method, named, taken, renamed[name], named.pop(name))
      elif name == 'num_inference_steps':
        steps = named.pop(name)
        if type(steps) is bool or not isinstance(steps, numbers.Integral) or steps < 1:
          raise UserError(f'{_name(method)}: {name}={steps!r}: expected a whole number from 1 on')
        _put(method, named, taken, 'points', int(steps) + 1)
    if {'height', 'width'} & named.keys():
      if not {'height', 'width'} <= named.keys():
        raise UserError(f'{_name(method)}: height and width go together; size=N is a square')
      _put(method, named, taken, 'size', (named.pop('height'), named.pop('width')))
    if missing := [name for name in needed if name not in named and name not in taken]:
      raise UserError(f'{_name(method)}: no {" and no ".join(missing)} given')
    check_types(method, dict(zip(known, given)) | named)
    return method(self, *given, **named)

  return call


def _name(function: Callable) -> str:
  """Of a class where the function makes one."""
  return function.__qualname__.removesuffix('.__init__').rpartition('.')[2]


def check_types(function: Callable, given: Mapping[str, Any]) -> None:
  """Raises UserError for an argument of another type than the function says, where that is a plain
  one of TYPES, a bool or a dataclass, or None beside it."""
  hints = typing.get_type_hints(function)
  for name, value in given.items():
    types = typing.get_args(hints.get(name)) or (hints.get(name),)
    wanted = [t for t in types if t is not type(None)]
    if len(wanted) != 1 or (value is None and len(types) > 1):
      continue
    known = wanted[0] in TYPES or wanted[0] is bool or dataclasses.is_dataclass(wanted[0])
    plain, words = TYPES.get(wanted[0], (wanted[0], getattr(wanted[0], '__name__', '')))
    if known and (not isinstance(value, plain) or (type(value) is bool and plain is not bool)):
      raise UserError(f'{_name(function)}: {name}={value!r}: expected {words}, found {kind(value)}')


def _put(method, named: dict, taken, name: str, value) -> None:
  if name in named or name in taken:
    raise UserError(f'{_name(method)}: {name} is given twice, by two names')
  named[name] = value


def piece_of(part: Mapping[str, Any]):
  """The text or picture of a part of a message: {'type': 'text', 'text': ...}, {'type':
  'image_url', 'image_url': {'url': 'data:image/png;base64,...'}}, or {'type': 'image', 'image': a
  path, bytes, a PIL picture or an array}. Raises UserError for any other.
  """
  kind = part.get('type')
  if kind in ('text', 'input_text') and isinstance(part.get('text'), str):
    return part['text']
  if kind == 'image' and 'image' in part:
    given = part['image']
    return files.path(given) if isinstance(given, str) else given  # a str would be text
  if kind in ('image_url', 'input_image') and 'image_url' in part:
    url = part['image_url']
    return data_of(url.get('url') if isinstance(url, Mapping) else url)
  raise UserError(
    f"a part of a message of type {kind!r} with {sorted(part)}: expected 'text' with text, 'image' "
    "with image, or 'image_url' with a data: URL"
  )


def data_of(url) -> bytes:
  """The bytes of a base64 data: URL. Other addresses are neither opened nor fetched."""
  head, comma, data = str(url).partition(',')
  if not (head.startswith('data:') and head.endswith(';base64') and comma):
    raise UserError(
      f'image_url {str(url)[:40]!r}: expected data:image/...;base64,...; no address is fetched'
    )
  try:
    return base64.b64decode(data, validate=True)
  except binascii.Error as error:
    raise UserError(f'image_url: damaged base64: {error}') from None
