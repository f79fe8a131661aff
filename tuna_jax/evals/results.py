"""What an evaluation yields: verdicts with their floors and ceilings, rows of the score table,
samples to look at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Shown = Mapping[str, np.ndarray]  # name -> picture uint8 [H, W, 3] or clip uint8 [F, H, W, 3]


@dataclasses.dataclass(frozen=True)
class Sample:
  """One item as a person judges it.

  text: the prompt, instruction or question. pictures: what belongs to it, in the order it is shown.
  right: the verdict. answer, wanted: of questions and captions.
  """

  text: str
  right: bool
  pictures: Shown
  answer: str = ''
  wanted: str = ''


@dataclasses.dataclass(frozen=True)
class Result:
  """The verdicts of one row of the table, one an item (bool, or a share in [0, 1]).

  floor: of what knows the data but not the item. ceiling: of the true answer or picture, by the
  same judge. rebuilt: of the true picture encoded and decoded by the VAE, None where nothing is
  drawn.
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
    mean = lambda verdicts: round(float(np.mean(verdicts)), 4)
    return cls(
      mean(result.score), mean(result.floor), mean(result.ceiling), target, len(result.score)
    )

  @property
  def reached(self) -> bool | None:
    """Whether the target is reached; None without one."""
    return None if self.target is None else self.score >= self.target

  def to_dict(self) -> dict[str, Any]:
    """{"score", "floor", "ceiling", "target", "n"}."""
    return dataclasses.asdict(self)


def table(rows: Mapping[str, Row], titles: Mapping[str, str]) -> str:
  """The rows as aligned text, a line each."""
  percent = lambda x: '     -' if x is None else f'{100 * x:5.1f}%'
  width = max(map(len, (titles[name] for name in rows)))
  lines = [f'{"":{width}}   score   floor ceiling  target     n']
  for name, row in rows.items():
    verdict = {True: 'reached', False: 'missed', None: ''}[row.reached]
    lines.append(
      f'{titles[name]:{width}}  {percent(row.score)}  {percent(row.floor)}  {percent(row.ceiling)}  '
      f'{percent(row.target)}  {row.n:4}  {verdict}'.rstrip()
    )
  return '\n'.join(lines)
