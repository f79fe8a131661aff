"""`evaluate`: the score table of a trained model, each row with its floor, its ceiling and its
target.

captions, questions            about held-out pictures          understanding.py
one, two, count, position      pictures drawn from prompts      drawing.py
edits, clips                   changed pictures, filmed prompts drawing.py
clip_questions                 about held-out clips             understanding.py
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tuna_jax.evals import mixture
from tuna_jax.evals.results import Result, Row
from tuna_jax.sample.generate import Drawing, Generator
from tuna_jax.toy import drawing, understanding

TITLES = MappingProxyType(
  {
    'captions': 'captions: every object, colour and place right',
    'questions': 'questions about a picture',
    'one': 'generation: one object with colour',
    'two': 'generation: two objects bound to their colours',
    'count': 'generation: counting',
    'position': 'generation: position',
    'edits': 'editing: asked change made, the rest kept',
    'clips': 'clips: object and motion direction right',
    'clip_questions': 'questions about a clip',
  }
)
TARGETS = MappingProxyType(
  {
    'tiny': MappingProxyType(
      {
        'captions': 0.90,
        'questions': 0.92,
        'one': 0.90,
        'two': 0.75,
        'count': 0.75,
        'position': 0.75,
        'edits': 0.75,
        'clips': 0.75,
        'clip_questions': 0.80,
      }
    ),
    'fast': MappingProxyType(
      {
        'captions': 0.05,
        'questions': 0.45,
        'one': 0.20,
        'two': 0.05,
        'count': 0.05,
        'position': 0.05,
        'edits': 0.05,
        'clips': 0.02,
        'clip_questions': 0.45,
      }
    ),
  }
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """results: by row name, in the order of the table. titles: of the rows. seconds: each part took."""

  results: Mapping[str, Result]
  titles: Mapping[str, str]
  rows: Mapping[str, Row]
  seconds: Mapping[str, float]

  @property
  def rebuilt(self) -> dict[str, float]:
    """The judge's score on true pictures that went through the VAE: what no drawing can be better
    than.
    """
    return {
      name: Row.of(dataclasses.replace(r, score=r.rebuilt), None).score
      for name, r in self.results.items()
      if r.rebuilt is not None
    }


def evaluate(
  generator: Generator,
  n: int,
  how: Drawing,
  targets: str = 'tiny',
  say: Callable[[str], None] = print,
) -> Evaluation:
  """The score table of the rendered world: `n` held-out items a row.

  how: the sampler of pictures and clips. targets: a name of TARGETS. say: is told each part as it
  ends.
  """
  parts = {
    'captions': lambda: {'captions': understanding.captions(generator, n)},
    'questions': lambda: {'questions': understanding.questions(generator, n)},
    'pictures': lambda: drawing.pictures(generator, n, how),
    'edits': lambda: {'edits': drawing.edits(generator, n, how)},
    'clips': lambda: {'clips': drawing.clips(generator, n, how)},
    'clip questions': lambda: {
      'clip_questions': understanding.questions(generator, n, 'video_vqa')
    },
  }
  results, seconds = _run(parts, say)
  rows = {name: Row.of(results[name], TARGETS[targets][name]) for name in TITLES}
  return Evaluation({name: results[name] for name in TITLES}, TITLES, rows, seconds)


def evaluate_mixture(
  generator: Generator,
  train: str,
  test: str,
  n: int,
  how: Drawing,
  say: Callable[[str], None] = print,
) -> Evaluation:
  """Scores on a data set of one's own, on records trained on and held out (see `mixture`); no
  targets are set.
  """
  results, seconds = _run({'all': lambda: mixture.evaluate(generator, train, test, n, how)}, say)
  titles = {name: mixture.TITLES[name] for name in results}
  return Evaluation(
    results, titles, {name: Row.of(r, None) for name, r in results.items()}, seconds
  )


def _run(
  parts: Mapping[str, Callable[[], dict[str, Result]]], say
) -> tuple[dict[str, Result], dict[str, float]]:
  results, seconds = {}, {}
  for name, part in parts.items():
    began = time.perf_counter()
    found = part()
    seconds[name] = round(time.perf_counter() - began, 1)
    results |= found
    scores = ', '.join(f'{k} {100 * Row.of(r, None).score:.1f}%' for k, r in found.items())
    say(f'evaluated {name}: {scores}; {seconds[name]} s')
  return results, seconds
