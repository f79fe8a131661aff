"""What clients of OpenAI's API send, checked, and what they are answered, as plain data.

Fields are those of the API, with the names of ours for what it lacks: `top_k` for answers;
`negative`, `guidance`, `points`, `shift` and `solver` for pictures. A field that would change the
result and is not known is refused; one that asks for what is the case anyway is passed over.
"""

from __future__ import annotations

import base64
import dataclasses
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from tuna_jax.config import UserError
from tuna_jax.data.media import BUCKETS
from tuna_jax.mappings import from_dict
from tuna_jax.ranges import Count, NotNegative, Positive, Range, Share, Whole
from tuna_jax.sample import familiar, requests
from tuna_jax.serve.limits import RequestLimits

Seed = Annotated[int, Range(0, requests.MAX_SEED - 1)]

ANSWER = 512  # tokens of an answer, where nobody says

# Fields that say nothing about the result, and values of others that ask for what is the case.
PASSED = (
  'user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention '
  'parallel_tool_calls moderation'
).split()
NEUTRAL: dict[str, tuple] = {
  'frequency_penalty': (0,),
  'presence_penalty': (0,),
  'logit_bias': ({},),
  'logprobs': (False,),
  'top_logprobs': (0,),
  'modalities': (['text'],),
  'response_format': ({'type': 'text'},),
  'stop': ([], ''),
  'tools': ([],),
  'tool_choice': ('none', 'auto'),
  'background': ('auto', 'opaque'),
  'output_format': ('png',),
  'output_compression': (100, '100'),
  'partial_images': (0, '0'),
  'quality': ('auto', 'standard'),
}


@dataclasses.dataclass(frozen=True)
class StreamOptions:
  """include_usage: a last event has the counts of tokens."""

  include_usage: bool = False
  include_obfuscation: bool = False


@dataclasses.dataclass(frozen=True)
class Chat:
  """The body of chat/completions."""

  model: str
  messages: Any
  max_tokens: Count | None = None
  max_completion_tokens: Count | None = None
  temperature: NotNegative | None = None
  top_p: Share | None = None
  top_k: Whole | None = None
  seed: Seed | None = None
  n: Count | None = None
  stream: bool | None = None
  stream_options: StreamOptions | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
  """The body of images/generations, and the texts of a form for images/edits."""

  prompt: str
  model: str = ''
  size: str | None = None
  n: Count | None = None
  response_format: str | None = None
  stream: bool | None = None
  seed: Seed | None = None
  negative: str = ''
  guidance: Positive | None = None
  points: Annotated[int, Range(2)] | None = None
  shift: Positive | None = None
  solver: str | None = None


def chat_of(body: Mapping, limits: RequestLimits) -> tuple[Chat, list[dict], int]:
  """(the request, its turns for `Generator`, tokens that each answer may have)."""
  asked = from_dict(Chat, _effective(body))
  turns = turns_of(asked.messages, limits)
  room = asked.max_completion_tokens or asked.max_tokens
  limits.check(answer=room, pictures=asked.n)
  return asked, turns, room or min(ANSWER, limits.answer)


def drawn_of(body: Mapping, limits: RequestLimits) -> tuple[Drawn, dict[str, Any]]:
  """(the request, the arguments of `Generator.image` and `edit` that it gives)."""
  asked = from_dict(Drawn, _effective(body, kept=('response_format',)))
  if asked.response_format not in (None, 'b64_json', 'url'):
    raise UserError(f'response_format={asked.response_format!r}: expected b64_json or url')
  if not asked.prompt.strip():
    raise UserError('prompt: empty; expected what to draw or to change')
  if asked.stream:
    raise UserError('stream: pictures are sent when they are complete; leave it out')
  size = None if asked.size in (None, 'auto') else size_of(asked.size)
  words = len(asked.prompt) + len(asked.negative)
  limits.check(prompt=words, points=asked.points, pictures=asked.n, size=size)
  names = ('guidance', 'points', 'shift', 'solver')
  return asked, {'size': size, **{name: getattr(asked, name) for name in names}}


def size_of(text: str) -> str:
  """'WIDTHxHEIGHT' as the API writes it -> 'HEIGHTxWIDTH' as we do; other sizes as they are."""
  width, times, height = text.partition('x')
  if times and width.isdigit() and height.isdigit():
    return f'{height}x{width}'
  if text in BUCKETS or text.isdigit():
    return text
  raise UserError(f"size {text!r}: expected 'WIDTHxHEIGHT', such as 512x512")


def seeds_of(seed: int | None, count: int) -> list[int]:
  """Consecutive seeds; from a random one where none is given."""
  first = secrets.randbelow(requests.MAX_SEED) if seed is None else seed
  return [(first + i) % requests.MAX_SEED for i in range(count)]


def turns_of(messages, limits: RequestLimits) -> list[dict]:
  """Messages as turns whose pictures are bytes. A picture comes as a data: URL alone: no file of
  this machine is opened, and no address."""
  if not isinstance(messages, list) or not messages:
    raise UserError('messages: expected a list of messages, each with role and content')
  turns, words, pictures = [], 0, 0
  for n, message in enumerate(messages):
    if not isinstance(message, Mapping) or not isinstance(message.get('role'), str):
      raise UserError(f'messages[{n}]: expected a mapping with role and content')
    role = 'system' if message['role'] == 'developer' else message['role']
    content = message.get('content')
    if not isinstance(content, str | list) or message.get('tool_calls'):
      raise UserError(f'messages[{n}]: expected content, a text or a list of parts')
    parts = [content] if isinstance(content, str) else [_part(part, n) for part in content]
    words += sum(len(part) for part in parts if isinstance(part, str))
    pictures += sum(not isinstance(part, str) for part in parts)
    turns.append({'role': role, 'content': parts})
  limits.check(prompt=words, pictures=pictures)
  if turns[-1]['role'] != 'user':
    raise UserError(f"messages: the last has the role {turns[-1]['role']!r}; expected 'user'")
  return turns


def _part(part, n: int) -> str | bytes:
  if not isinstance(part, Mapping) or part.get('type') == 'image':  # which may name a file
    raise UserError(f"messages[{n}]: expected parts of type 'text' or 'image_url'")
  return familiar.piece_of(part)


def _effective(body, kept=()) -> dict[str, Any]:
  """The fields that say something about the result."""
  if not isinstance(body, Mapping):
    raise UserError(f'expected a JSON object, found {type(body).__name__}')
  return {
    name: value
    for name, value in body.items()
    if value is not None
    and (name in kept or not (name in PASSED or any(value == v for v in NEUTRAL.get(name, ()))))
  }


# ---- answers


def model(name: str, created: int) -> dict:
  """An entry of /v1/models."""
  return {'id': name, 'object': 'model', 'created': created, 'owned_by': 'tuna_jax'}


class Completion:
  """A chat completion, whole or in chunks."""

  def __init__(self, name: str):
    self._head = {
      'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': name,
    }  # fmt: skip

  def whole(self, texts: Mapping[int, str], reasons: Mapping[int, str], usage: dict) -> dict:
    """texts, reasons: of each choice."""
    choices = [
      {
        'index': i,
        'message': {'role': 'assistant', 'content': text, 'refusal': None},
        'logprobs': None,
        'finish_reason': reasons[i],
      }
      for i, text in texts.items()
    ]
    return {**self._head, 'object': 'chat.completion', 'choices': choices, 'usage': usage}

  def chunk(self, index: int, reason: str | None = None, **delta) -> dict:
    """A piece of choice `index`; with a reason, its end."""
    choice = {'index': index, 'delta': delta, 'logprobs': None, 'finish_reason': reason}
    return {**self._head, 'object': 'chat.completion.chunk', 'choices': [choice]}

  def counts(self, usage: dict) -> dict:
    """The last chunk of a stream whose counts are asked for."""
    return {**self._head, 'object': 'chat.completion.chunk', 'choices': [], 'usage': usage}


def usage(prompt: int, answers: int) -> dict:
  """The counts of a chat completion."""
  return {
    'prompt_tokens': prompt, 'completion_tokens': answers, 'total_tokens': prompt + answers,
  }  # fmt: skip


def images(pictures, asked: Drawn, text_tokens: int, given: int, drawn: int) -> dict:
  """pictures: PNG files and their seeds. given, drawn: visual tokens of sources and results."""
  data = []
  for png, seed in pictures:
    text = base64.b64encode(png).decode()
    url = asked.response_format == 'url'
    data.append({'url': f'data:image/png;base64,{text}'} if url else {'b64_json': text})
    data[-1]['seed'] = seed
  counts = {
    'input_tokens': text_tokens + given,
    'input_tokens_details': {'text_tokens': text_tokens, 'image_tokens': given},
    'output_tokens': drawn,
    'total_tokens': text_tokens + given + drawn,
  }
  return {'created': int(time.time()), 'output_format': 'png', 'data': data, 'usage': counts}


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict:
  """The body of every refusal."""
  return {'error': {'message': message, 'type': kind, 'param': param, 'code': code}}
