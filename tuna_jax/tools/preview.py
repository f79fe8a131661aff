"""One HTML page of what the model sees: tokens, spans, learned labels and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tuna_jax.data.segments import Example
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.evals.page import render


def page(examples: Iterable[tuple[str, Example]], tokenizer: Tokenizer, rebuilt=None) -> str:
  """A self-contained page of (title, example) pairs, the template `preview.html.j2`.

  rebuilt: what a VAE makes of their pictures (`evals.reconstruct.Rebuilt`), or None.

  Green: the model is asked to predict this token. Blue box: a clean picture. Orange box: a picture
  it must draw. The position and id of a token show on hover.
  """
  laid = [(title, example, list(_pieces(example, tokenizer))) for title, example in examples]
  return render('tools/preview.html.j2', examples=laid, rebuilt=rebuilt)


def _pieces(example: Example, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
  """The text tokens and the pictures or clips of an example, in their order."""
  weight = np.concatenate([[0], example.label_weight[:-1]])  # of predicting the token at a position
  special = set(tokenizer.specials.values())
  for position, token in enumerate(example.tokens.tolist()):
    slot, place = int(example.slot[position]), {'position': position, 'token': token}
    if 0 <= slot < example.images:
      media = example.media[slot]
      yield place | {
        'grid': 'x'.join(map(str, example.grid[slot].tolist())),
        'last': int(example.kv_limit[position]),
        'target': bool(example.target[slot]),
        'pictures': list(media) if media.dtype == np.uint8 else [],
      }
    elif slot < 0:
      yield place | {
        'text': tokenizer.decode([token], skip_special=False).replace(
          '\n', '\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}'
        ),
        'weight': weight[position],
        'kind': 'learned' if weight[position] else 'special' if token in special else '',
      }
