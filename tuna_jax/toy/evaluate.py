"""The score table of the rendered world: each score with its floor, its ceiling and its target.

captions, questions            about held-out pictures          understanding.py
one, two, count, position      pictures drawn from prompts      drawing.py
edits, clips                   changed pictures, filmed prompts drawing.py
clip_questions                 about held-out clips             understanding.py
"""

from __future__ import annotations

from collections.abc import Callable

from tuna_jax.evals import results
from tuna_jax.sample.generate import Drawing, Generator
from tuna_jax.toy import drawing, understanding

# fmt: off
ROWS = {  # row: (title, target of the tiny size, target of the fast one)
  'captions': ('captions: every object, colour and place right', 0.90, 0.05),
  'questions': ('questions about a picture', 0.92, 0.45),
  'one': ('generation: one object with colour', 0.90, 0.20),
  'two': ('generation: two objects bound to their colours', 0.75, 0.05),
  'count': ('generation: counting', 0.75, 0.05),
  'position': ('generation: position', 0.75, 0.05),
  'edits': ('editing: asked change made, the rest kept', 0.75, 0.05),
  'clips': ('clips: object and motion direction right', 0.75, 0.02),
  'clip_questions': ('questions about a clip', 0.80, 0.45),
}
# fmt: on
TITLES = {name: title for name, (title, _, _) in ROWS.items()}
TARGETS = {
  'tiny': {name: tiny for name, (_, tiny, _) in ROWS.items()},
  'fast': {name: fast for name, (_, _, fast) in ROWS.items()},
}


def evaluate(
  generator: Generator,
  n: int,
  how: Drawing,
  targets: str = 'tiny',
  say: Callable[[str], None] = print,
) -> results.Evaluation:
  """The score table: `n` held-out items per row.

  how: the sampler of pictures and clips. targets: a name of TARGETS. say: is told the scores of
  each part as it ends.
  """
  asked = understanding.questions
  parts = {
    'captions': lambda: {'captions': understanding.captions(generator, n)},
    'questions': lambda: {'questions': asked(generator, n)},
    'pictures': lambda: drawing.pictures(generator, n, how),
    'edits': lambda: {'edits': drawing.edits(generator, n, how)},
    'clips': lambda: {'clips': drawing.clips(generator, n, how)},
    'clip questions': lambda: {'clip_questions': asked(generator, n, 'video_vqa')},
  }
  if generator.config.pictures_only:  # pictures only
    del parts['clips'], parts['clip questions']
  return results.evaluate(parts, TITLES, TARGETS[targets], say)
