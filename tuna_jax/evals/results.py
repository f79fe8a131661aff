"""What an evaluation yields: verdicts with floors and ceilings, rows of a table, samples."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

KNOWN = 2000  # records of the training data that a floor is learned from

Shown = Mapping[str, np.ndarray]  # name -> picture uint8 [H, W, 3] or clip uint8 [F, H, W, 3]


@dataclasses.dataclass(frozen=True)
class Sample:
  """One item as a person judges it.

  text: the prompt, instruction or question. pictures: what belongs to it, in the order it is
  shown. right: the verdict, None where nobody judged. answer, wanted: of questions and captions; of
  a picture, what the judge took it for and the caption it should have. prior: the verdict on the
  floor's answer.
  """

  text: str
  right: bool | None
  pictures: Shown
  answer: str = ''
  wanted: str = ''
  prior: bool | None = None


@dataclasses.dataclass(frozen=True)
class Result:
  """The verdicts of one row of the table, one per item (bool, or a share in [0, 1]).

  floor: of a baseline that knows the training data and ignores the item. ceiling: of the true
  answer or picture, by the same judge. rebuilt: of the true picture encoded and decoded by the VAE,
  None where nothing is drawn.
  """

  score: Sequence[float]
  floor: Sequence[float]
  ceiling: Sequence[float]
  rebuilt: Sequence[float] | None
  samples: Sequence[Sample]


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the score table: shares in [0, 1]; target None where none is set."""

  score: float
  floor: float
  ceiling: float
  target: float | None
  n: int

  @classmethod
  def of(cls, result: Result, target: float | None) -> Row:
    """The means of a result."""
    means = map(_mean, (result.score, result.floor, result.ceiling))
    return cls(*means, target, len(result.score))

  @property
  def reached(self) -> bool | None:
    """Whether the target is reached; None without one."""
    return None if self.target is None else self.score >= self.target

  def to_dict(self) -> dict[str, Any]:
    """{"score", "floor", "ceiling", "target", "n"}."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ByAnswer:
  """The items of a row whose right answer is `answer`: how many, the share that is right, the share
  that the floor has right, and how often the answer was given, rightly or not."""

  answer: str
  n: int
  score: float
  prior: float
  said: int


def by_answer(samples: Sequence[Sample], most: int = 20) -> list[ByAnswer]:
  """The `most` frequent right answers; empty where hardly any answer repeats."""
  judged = [s for s in samples if s.prior is not None]
  wanted = collections.Counter(s.wanted for s in judged)
  if not judged or len(wanted) > len(judged) / 3:
    return []
  said = collections.Counter(s.answer for s in judged)
  rows = []
  for answer, n in wanted.most_common(most):
    own = [s for s in judged if s.wanted == answer]
    shares = (_mean([s.right for s in own]), _mean([s.prior for s in own]))
    rows.append(ByAnswer(answer, n, *shares, said[answer]))
  return rows


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """results: by row name, in the order of the table. titles: of the rows. seconds: of each part.
  training: the rows whose items were trained on."""

  results: Mapping[str, Result]
  titles: Mapping[str, str]
  rows: Mapping[str, Row]
  seconds: Mapping[str, float]
  training: Collection[str] = ()

  @property
  def rebuilt(self) -> dict[str, float]:
    """The judge's score of true pictures encoded and decoded by the VAE: no drawing scores more."""
    drawn = {name: r.rebuilt for name, r in self.results.items() if r.rebuilt is not None}
    return {name: _mean(verdicts) for name, verdicts in drawn.items()}


NOTHING = Evaluation({}, {}, {}, {})


def evaluate(
  parts: Mapping[str, Callable[[], Mapping[str, Result]]],
  titles: Mapping[str, str],
  targets: Mapping[str, float],
  say: Callable[[str], None],
  training: Collection[str] = (),
) -> Evaluation:
  """Runs the parts, each of which gives results by row name.

  titles: of all rows that there can be, in the order of the table. targets: of the rows that have
  one. say: is told the scores of each part as it ends. training: the rows whose items were trained
  on.
  """
  results, seconds = {}, {}
  for part, run in parts.items():
    began = time.perf_counter()
    found = run()
    results |= found
    seconds[part] = round(time.perf_counter() - began, 1)
    scores = ', '.join(f'{name} {100 * _mean(r.score):.1f}%' for name, r in found.items())
    say(f'evaluated {part}: {scores}; {seconds[part]} s')
  results = {name: results[name] for name in titles if name in results}
  rows = {name: Row.of(result, targets.get(name)) for name, result in results.items()}
  return Evaluation(results, {name: titles[name] for name in results}, rows, seconds, training)


def table(rows: Mapping[str, Row], titles: Mapping[str, str]) -> str:
  """The rows as aligned text, one line each."""
  percent = lambda x: '     -' if x is None else f'{100 * x:5.1f}%'
  width = max(map(len, (titles[name] for name in rows)))
  lines = [f'{"":{width}}   score   floor ceiling  target     n']
  for name, row in rows.items():
    verdict = {True: 'reached', False: 'missed', None: ''}[row.reached]
    shares = map(percent, (row.score, row.floor, row.ceiling, row.target))
    cells = (f'{titles[name]:{width}}', *shares, f'{row.n:4}', verdict)
    lines.append('  '.join(cells).rstrip())
  return '\n'.join(lines)


def _mean(verdicts: Sequence[float]) -> float:
  return round(float(np.mean(verdicts)), 4)
