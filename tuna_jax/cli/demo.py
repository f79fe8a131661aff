"""Opens a page to draw, edit, film, ask and talk with a model, in the browser.

  tuna-jax demo --checkpoint=RUN

Several people may use it at once; the device serves one request after another. By default only this
machine is served. A signal ends it with 75. It needs the extra: pip install 'tuna_jax[demo]'.
"""

import os
import tempfile

from tuna_jax.cli import app, options

_open = options.define_model(batch_size=4)
_server = options.define_server(port=7860)


def main(argv):
  del argv
  host, port, limits = _server()
  with tempfile.TemporaryDirectory(prefix='tuna_demo_') as folder:
    # Before gradio is imported: where it keeps what people upload, and that it reports nothing.
    os.environ |= {'GRADIO_TEMP_DIR': folder, 'GRADIO_ANALYTICS_ENABLED': 'False'}
    with app.extra('demo'):
      from tuna_jax.serve import examples, guards, page, studio
    bound = guards.bind(host, port)  # before the model is loaded
    path, generator = _open()
    name = os.path.basename(os.path.normpath(path))
    shop = studio.Studio(generator, limits, folder)
    shown = page.application(page.Page(shop, name, examples.of_run(path)), limits)
    guards.serve(shown, bound, lambda address: print(f'{name} is shown at {address}', flush=True))


if __name__ == '__main__':
  app.run(main)
