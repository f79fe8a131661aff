"""Values of other people's layouts become those of our records (docs/data.md 1).

A picture or clip may be {'bytes', 'path'}, as `datasets` of Hugging Face stores it. A conversation
may have turns of {'role', 'content'} or of {'user', 'assistant'}. A class may be a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data.tasks import TASKS

_ROLES = {'user': 'human', 'assistant': 'gpt'}


def record_of(values: Mapping[str, Any], task: str, classes: Sequence[str] = ()) -> dict[str, Any]:
  """The record that the values of the task's fields mean; other values stay as they are.

  classes: the names of class numbers. Raises UserError for a number without a name.
  """
  record = dict(values)
  for field, kind in TASKS[task].fields.items():
    if field not in record:
      continue
    value = record[field]
    if kind == 'turns':
      record[field] = _turns(value)
    elif kind == 'text':
      record[field] = class_name(value, classes) if isinstance(value, int) else value
    else:
      record[field] = [_media(one) for one in value] if isinstance(value, list) else _media(value)
      if kind == 'picture' and isinstance(value, list) and len(value) == 1:
        record[field] = record[field][0]
  return record


def read_classes(path: str) -> list[str]:
  """The lines of a file of class names; none without a path."""
  return files.path(path).read_text().splitlines() if path else []


def class_name(number: int, classes: Sequence[str]) -> str:
  """The name of a class. Raises UserError if there is none."""
  if not 0 <= number < len(classes):
    wanted = 'give the row "classes": a text file with a name per line'
    raise UserError(f'class {number}: {len(classes)} names of classes are known; {wanted}')
  return classes[number]


def _media(value):
  """Bytes or a path of {'bytes', 'path'}."""
  if isinstance(value, Mapping) and {'bytes', 'path'} >= set(value):
    return value.get('bytes') or value.get('path')
  return value


def _turns(value):
  """[{'from', 'value'}] of other kinds of turns. Anything else stays, and `turns_of` names it."""
  if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
    return value
  turns = []
  for turn in value:
    if 'role' in turn and 'content' in turn:
      turns.append({'from': _ROLES.get(turn['role'], turn['role']), 'value': turn['content']})
    elif 'user' in turn and 'assistant' in turn:
      turns.append({'from': 'human', 'value': turn['user']})
      turns.append({'from': 'gpt', 'value': turn['assistant']})
    else:
      turns.append(turn)
  return turns
