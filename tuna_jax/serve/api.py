"""The OpenAI-compatible server: chat completions with pictures, images, edits, models."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tuna_jax.config import UserError
from tuna_jax.sample import asking, requests
from tuna_jax.sample import text as writing
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.prompt import strides
from tuna_jax.serve import protocol
from tuna_jax.serve.desk import Busy, Desk, Tell
from tuna_jax.serve.guards import UploadLimit
from tuna_jax.serve.limits import RequestLimits

_log = logging.getLogger(__name__)
# status: (type, code) of the errors of this server that are not about a field
KINDS = {
  404: ('invalid_request_error', 'not_found'),
  405: ('invalid_request_error', 'method_not_allowed'),
  413: ('invalid_request_error', 'request_too_large'),
  429: ('rate_limit_error', 'busy'),
  500: ('server_error', None),
}
GONE = 499, 'the client has gone'  # nobody reads it
NUMBERS = ('n', 'seed', 'guidance', 'points', 'shift')  # of a form, whose values are all text


def application(generator: Generator, name: str, limits: RequestLimits) -> Starlette:
  """The server as an ASGI application. name: of the model, as clients ask for it."""
  api = Api(generator, name, limits)
  routes = [
    Route('/v1/models', api.models),
    Route('/v1/models/{model:path}', api.model),
    Route('/v1/chat/completions', api.chat, methods=['POST']),
    Route('/v1/images/generations', api.images, methods=['POST']),
    Route('/v1/images/edits', api.edits, methods=['POST']),
  ]
  handlers = {
    UserError: lambda _, e: refusal(400, str(e)),
    Busy: lambda _, e: refusal(429, str(e)),
    HTTPException: lambda _, e: refusal(e.status_code, e.detail),
    Exception: lambda _, e: refusal(500, 'the server failed; its log says why'),
  }
  limit = Middleware(UploadLimit, most=limits.upload)
  return Starlette(routes=routes, exception_handlers=handlers, middleware=[limit])


def refusal(status: int, message: str) -> JSONResponse:
  """An error in the shape that clients expect."""
  kind, code = KINDS.get(status, ('invalid_request_error', None))
  headers = {'retry-after': '5'} if status == 429 else None
  body = protocol.error(message[:1000], kind, code)
  return JSONResponse(body, status, headers)


class Api:
  """The endpoints of one generator, whose requests are served one after another."""

  def __init__(self, generator: Generator, name: str, limits: RequestLimits):
    self._generator, self._name, self._limits = generator, name, limits
    self._desk, self._began = Desk(limits.waiting), int(time.time())

  async def models(self, request: Request) -> JSONResponse:
    """GET /v1/models."""
    del request
    entry = protocol.model(self._name, self._began)
    return JSONResponse({'object': 'list', 'data': [entry]})

  async def model(self, request: Request) -> JSONResponse:
    """GET /v1/models/NAME."""
    return self._unknown(request.path_params['model']) or JSONResponse(
      protocol.model(self._name, self._began)
    )

  async def chat(self, request: Request):
    """POST /v1/chat/completions."""
    asked, turns, room = protocol.chat_of(await _json(request), self._limits)
    if unknown := self._unknown(asked.model):
      return unknown
    choice = writing.Choice(asked.temperature or 0.0, asked.top_k or 0, asked.top_p or 1.0)
    seeds = protocol.seeds_of(asked.seed, asked.n or 1)
    work = functools.partial(self._answer, turns, room, choice, seeds)
    completion = protocol.Completion(self._name)
    events = _followed(self._desk.events(work))
    if asked.stream:
      first = await anext(events)  # a refusal comes before the stream begins
      options = asked.stream_options or protocol.StreamOptions()
      stream = _chunks(completion, first, events, options.include_usage)
      return StreamingResponse(stream, media_type='text/event-stream')
    texts, reasons = dict.fromkeys(range(len(seeds)), ''), {}
    async with contextlib.aclosing(events):
      async for kind, value in events:
        if kind == 'piece':
          texts[value[0]] += value[1]
          if await request.is_disconnected():
            return refusal(*GONE)
        elif kind == 'end':
          reasons[value[0]] = value[1]
        else:
          counts = value
    return JSONResponse(completion.whole(texts, reasons, counts))

  def _answer(self, turns, room: int, choice: writing.Choice, seeds, tell: Tell) -> dict:
    """Tells ('piece', (choice, text)) and ('end', (choice, reason)); returns the counts."""
    decode, eos = self._generator.tokenizer.decode, self._generator.tokenizer.eos
    prompt = total = 0
    for i, seed in enumerate(seeds):
      prompt, ids = asking.answer(self._generator, turns, (), room, choice, seed)
      so_far = [()]

      def text(ids, so_far=so_far):
        so_far[0] = ids
        return decode(ids)

      for piece in writing.pieces(map(text, ids)):
        if not tell('piece', (i, piece)):
          break
      ended = len(so_far[0]) and so_far[0][-1] == eos
      total += len(so_far[0])
      tell('end', (i, 'stop' if ended else 'length'))
    return protocol.usage(prompt, total)

  async def images(self, request: Request) -> JSONResponse:
    """POST /v1/images/generations."""
    asked, how = protocol.drawn_of(await _json(request), self._limits)
    draw = self._generator.image
    return await self._drawn(request, asked, 0, functools.partial(draw, **how))

  async def edits(self, request: Request) -> JSONResponse:
    """POST /v1/images/edits."""
    _expect(request, 'multipart/form-data')
    async with request.form(max_files=16, max_fields=64) as form:
      items = form.multi_items()
      files = [v for k, v in items if k in ('image', 'image[]') and not isinstance(v, str)]
      fields = {k: v for k, v in items if k not in ('image', 'image[]')}
      self._limits.check(pictures=len(files))
      sources = [await file.read() for file in files]
    if not sources:
      raise UserError('image: missing; expected a picture as a file of the form')
    fields = {k: _number(k, v) if k in NUMBERS else v for k, v in fields.items()}
    asked, how = protocol.drawn_of(fields, self._limits)
    generator, stride = self._generator, strides(self._generator.config)[1]
    sources = await run_in_threadpool(  # a bad picture does not wait for the device
      lambda: [requests.read_source(s, generator.media, how['size'], stride)[0] for s in sources]
    )
    given = sum(self._cells(s.shape[:2]) for s in sources)

    def edit(prompts, **more):
      return generator.edit([sources] * len(prompts), prompts, **how, **more)

    return await self._drawn(request, asked, given, edit)

  async def _drawn(self, request, asked, given: int, draw: Callable) -> JSONResponse:
    """given: visual tokens of the sources. draw: of a list of prompts."""
    if asked.model and (unknown := self._unknown(asked.model)):
      return unknown
    seeds = protocol.seeds_of(asked.seed, asked.n or 1)

    def work(tell):
      report = lambda done, total: tell('step', (done, total))
      prompts = [asked.prompt] * len(seeds)
      return draw(prompts, seed=seeds, negative=asked.negative, report=report)

    async with contextlib.aclosing(_followed(self._desk.events(work))) as events:
      async for kind, value in events:
        if kind == 'result':
          pictures = value
        elif await request.is_disconnected():
          return refusal(*GONE)
    drawn = sum(self._cells(p.pixels.shape[:2]) for p in pictures)
    words = len(self._generator.tokenizer.encode(asked.prompt))
    files = [(p.png(), p.info['seed']) for p in pictures]
    return JSONResponse(protocol.images(files, asked, words, given, drawn))

  def _cells(self, size) -> int:
    """Visual tokens of a picture of (height, width) pixels."""
    stride = strides(self._generator.config)[1]
    return (size[0] // stride) * (size[1] // stride)

  def _unknown(self, model: str) -> JSONResponse | None:
    """The refusal of a model that is not served here."""
    if model == self._name:
      return None
    message = f'model {model!r}: not served here; expected {self._name!r}'
    body = protocol.error(message, 'invalid_request_error', 'model_not_found', 'model')
    return JSONResponse(body, 404)


def _expect(request: Request, kind: str) -> None:
  """Refuses a body that is declared to be of another kind."""
  found = request.headers.get('content-type', '').partition(';')[0].strip().lower()
  if found != kind:
    raise HTTPException(415, f'Content-Type: expected {kind}, found {found or "none"}')


async def _json(request: Request):
  _expect(request, 'application/json')
  try:
    return json.loads(await request.body())
  except (ValueError, RecursionError) as error:
    raise UserError(f'the body is no JSON: {error}') from None


def _number(name: str, text: str):
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    raise UserError(f'{name}={text[:40]!r}: expected a number') from None


async def _followed(events: Iterator) -> AsyncIterator:
  """What a desk says, for the loop of the server; the work is left when this is closed."""
  try:
    while (event := await run_in_threadpool(next, events, None)) is not None:
      if event[0] != 'ahead':
        yield event
  finally:
    events.close()


async def _chunks(completion, first, events, counted: bool) -> AsyncIterator[str]:
  """Server-sent events of a chat completion."""
  opened = set()
  async with contextlib.aclosing(events):
    try:
      event = first
      while event is not None:
        kind, value = event
        if kind != 'result' and value[0] not in opened:
          opened.add(value[0])
          yield _event(completion.chunk(value[0], role='assistant', content=''))
        if kind == 'piece':
          yield _event(completion.chunk(value[0], content=value[1]))
        elif kind == 'end':
          yield _event(completion.chunk(value[0], value[1]))
        elif counted:
          yield _event(completion.counts(value))
        event = await anext(events, None)
      yield 'data: [DONE]\n\n'
    except Exception:  # the answer has begun, so that no status can say it
      _log.exception('a stream failed')
      yield _event(protocol.error('the server failed; its log says why', 'server_error'))


def _event(value: dict) -> str:
  return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'
