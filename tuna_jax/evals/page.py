"""Self-contained HTML pages: a jinja2 template beside the code, pictures as data URIs."""

from __future__ import annotations

import base64
import functools
import io

import jinja2
import numpy as np
from PIL import Image


def render(template: str, **values) -> str:
  """The page of a template of the package, for example 'evals/report.html.j2'. Text is escaped; a
  name without a value is an error.
  """
  return _environment().get_template(template).render(values)


def clock(seconds: float) -> str:
  """'3 min 05 s', or '7 s'."""
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes} min {rest:02} s' if minutes else f'{seconds:.0f} s'


def uri(pixels: np.ndarray) -> str:
  """A picture uint8 [H, W, 3], or a clip uint8 [F, H, W, 3] as an animated PNG, as a data URI."""
  return f'data:image/png;base64,{base64.b64encode(png(pixels)).decode()}'


def png(pixels: np.ndarray, frame_ms: int = 110, hold_ms: int = 700) -> bytes:
  """PNG bytes of a picture, or of a clip that loops and holds its last frame; nothing is lost."""
  pixels = np.asarray(pixels)
  first, *more = [Image.fromarray(x) for x in (pixels if pixels.ndim == 4 else pixels[None])]
  duration = [frame_ms] * len(more) + [hold_ms]
  animated = {'save_all': True, 'append_images': more, 'loop': 0, 'duration': duration}
  file = io.BytesIO()
  first.save(file, 'PNG', **animated if more else {'optimize': True})
  return file.getvalue()


@functools.cache
def _environment() -> jinja2.Environment:
  loader, strict = jinja2.PackageLoader('tuna_jax', '.'), jinja2.StrictUndefined
  environment = jinja2.Environment(
    loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters |= {'clock': clock, 'uri': uri}
  return environment
