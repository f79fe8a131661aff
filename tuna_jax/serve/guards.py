"""What stands before an application: the size of a request, and the names it may be called by; and
the server, bound to one address."""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Callable, MutableMapping
from typing import Any

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from tuna_jax.config import UserError
from tuna_jax.serve import protocol

PATIENCE = 10  # seconds that requests in progress have when the server is stopped
LOCAL = ('localhost', '127.0.0.1', '::1')


class UploadLimit:
  """Refuses a body of more than `most` bytes while it arrives."""

  def __init__(self, app, most: int):
    self._app, self._most = app, most

  async def __call__(self, scope: MutableMapping[str, Any], receive, send):
    read = 0

    async def counted():
      nonlocal read
      message = await receive()
      read += len(message.get('body', b''))
      if read > self._most:
        raise HTTPException(413, f'more than {self._most / 1e6:g} MB, which one request may have')
      return message

    await self._app(scope, counted, send)


class LocalOnly:
  """Answers requests to one of LOCAL alone, and of pages of the same address: no page of the web
  reaches the server, be it by its address or under a name of its own."""

  def __init__(self, app):
    self._app = app

  async def __call__(self, scope: MutableMapping[str, Any], receive, send):
    if scope['type'] in ('http', 'websocket'):
      headers = HTTPConnection(scope).headers
      here = urllib.parse.urlsplit(f'//{headers.get("host", "")}')
      origin = urllib.parse.urlsplit(headers.get('origin', f'//{here.netloc}'))
      if here.hostname not in LOCAL or origin.netloc != here.netloc:
        said = protocol.error('served to this machine alone; --host=ADDRESS', 'permission_error')
        refusal = JSONResponse(said, 403)
        return await refusal(scope, receive, send)
    await self._app(scope, receive, send)


def bind(host: str, port: int) -> socket.socket:
  """A socket that listens at this address; who connects waits until `serve`. port: 0 takes a free
  one. Raises UserError where the address cannot be had.
  """
  try:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
  except OSError as error:
    raise UserError(f'{host}:{port}: {error.strerror or error}; --host and --port choose') from None


def serve(app, bound: socket.socket, say: Callable[[str], None]) -> None:
  """Serves until a signal, then lets requests in progress end within PATIENCE seconds.

  At an address of this machine alone, `LocalOnly` stands before it. say: is told the address.
  """
  address, port = bound.getsockname()[:2]
  if ipaddress.ip_address(address).is_loopback:
    app = LocalOnly(app)
  config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=PATIENCE)
  say(f'http://[{address}]:{port}' if ':' in address else f'http://{address}:{port}')
  uvicorn.Server(config).run(sockets=[bound])
