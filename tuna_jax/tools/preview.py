"""One HTML page of what the model sees: every example's tokens, spans, learned labels and pictures.
numpy only.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from tuna_jax.data.segments import Example
from tuna_jax.data.tokenizer import Tokenizer

_STYLE = """
body { font: 15px/1.7 system-ui, sans-serif; max-width: 60em; margin: 2em auto; color: #222 }
code { background: #f1f1f1; border-radius: 3px; padding: 1px 2px; white-space: pre-wrap }
code.learned { background: #bfe8c2 } code.special { color: #8a3ab9 }
.span { border: 2px solid #7a9cc6; border-radius: 4px; padding: 3px; display: inline-block; vertical-align: middle }
.span.target { border-color: #d9822b } img { image-rendering: pixelated; height: 64px; vertical-align: middle }
small { color: #666 }"""


def page(examples: Iterable[tuple[str, Example]], tokenizer: Tokenizer) -> str:
  """A self-contained page of (title, example) pairs.

  Green: the model is asked to predict this token. Blue box: a clean picture. Orange box: a picture
  it must draw. The position and id of a token show on hover.
  """
  parts = [
    f'<!doctype html><meta charset="utf-8"><title>tuna_jax data preview</title><style>{_STYLE}</style>',
    '<p><code class="learned">green</code> is learned, <code class="special">violet</code> is a special token; ',
    '<span class="span">blue</span> is a clean picture, <span class="span target">orange</span> is drawn.</p>',
  ]
  for title, example in examples:
    learned = int((example.label_weight > 0).sum())
    parts.append(
      f'<h3>{html.escape(title)}</h3><small>{example.length} positions, {example.cells} latent cells, '
      f'{example.images} pictures or clips, {learned} learned tokens</small><p>{_body(example, tokenizer)}</p>'
    )
  return '\n'.join(parts)


def _body(example: Example, tokenizer: Tokenizer) -> str:
  weight = np.concatenate(
    [[0], example.label_weight[:-1]]
  )  # of predicting the token that stands here
  out = []
  for p, token in enumerate(example.tokens.tolist()):
    slot = int(example.slot[p])
    if 0 <= slot < example.images:
      out.append(_span(example, slot, p))
    elif slot < 0:
      text = tokenizer.decode([token], skip_special=False)
      kind = 'learned' if weight[p] else 'special' if token in tokenizer.specials.values() else ''
      out.append(
        f'<code class="{kind}" title="position {p}, id {token}, weight {weight[p]:g}">'
        f'{html.escape(text).replace(chr(10), "&#8629;")}</code>'
      )
  return ' '.join(out)


def _span(example: Example, image: int, position: int) -> str:
  frames, rows, columns = example.grid[image].tolist()
  kind = 'span target' if example.target[image] else 'span'
  label = f'positions {position} to {int(example.kv_limit[position])}: time token and {frames}x{rows}x{columns} cells'
  media = example.media[image]
  pictures = ''.join(map(_picture, media)) if media.dtype == np.uint8 else 'latents'
  return f'<span class="{kind}" title="{label}">{pictures} <small>{frames}x{rows}x{columns}</small></span>'


def _picture(pixels: np.ndarray) -> str:
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'png')
  return f'<img src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'
