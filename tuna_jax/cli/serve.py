"""Serves a model to clients of OpenAI's API: chat with pictures, images, edits.

  tuna-jax serve --checkpoint=RUN
  client = openai.OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='none')

Requests are served one after another. By default only this machine is served. A signal lets
requests in progress end, and exits with 75. It needs the extra: pip install 'tuna_jax[serve]'.
"""

import os

from absl import flags

from tuna_jax.cli import app, options

_open = options.define_model(batch_size=4)
_server = options.define_server(port=8000, without=('frames',))
_NAME = flags.DEFINE_string(
  'name', None, 'The name that clients ask for. By default it is that of the directory or model.'
)


def main(argv):
  del argv
  host, port, limits = _server()
  with app.extra('serve'):
    from tuna_jax.serve import api, guards
  bound = guards.bind(host, port)  # before the model is loaded
  path, generator = _open()
  name = _NAME.value or os.path.basename(os.path.normpath(path))
  say = lambda address: print(f'{name} is served at {address}/v1', flush=True)
  guards.serve(api.application(generator, name, limits), bound, say)


if __name__ == '__main__':
  app.run(main)
