"""The range of a field of a config, written as its type: `rows: Count`. `mappings.from_dict`
refuses a value outside of it."""

from __future__ import annotations

import sys
from typing import Annotated, NamedTuple

MOST = sys.float_info.max  # neither inf nor nan is within a range


class Range(NamedTuple):
  """From `low` to `high`; `above` and `below` leave the ends themselves out."""

  low: float
  high: float = MOST
  above: bool = False
  below: bool = False

  def holds(self, value: float) -> bool:
    """Whether the value lies within; nan never does."""
    low = self.low < value if self.above else self.low <= value
    return low and (value < self.high if self.below else value <= self.high)

  def wanted(self, value: float) -> str:
    """What was expected instead of `value`; 2**31 - 1 is told only to what exceeds it."""
    low = f'{"above" if self.above else "at least"} {self.low:,g}'
    high = f'{"below" if self.below else "at most"} {self.high:,.10g}'
    told = self.high < (2**31 - 1 if value < self.low else MOST)
    ends = ([low] if self.low > -MOST else []) + ([high] if told else [])
    return ' and '.join(ends) or 'a finite number'


Count = Annotated[int, Range(1, 2**31 - 1)]
Whole = Annotated[int, Range(0, 2**31 - 1)]
Few = Annotated[int, Range(1, 10_000)]  # layers, heads, pictures of a row, threads
Width = Annotated[int, Range(1, 2**20)]  # of a layer, a row, a batch
Finite = Annotated[float, Range(-MOST)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Rate = Annotated[float, Range(0, 100)]  # of learning
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]
