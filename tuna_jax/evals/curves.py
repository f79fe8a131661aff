"""Loss curves: the numbers of `metrics.jsonl` become panels of lines, which the report's template
draws as SVG.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from tuna_jax import files
from tuna_jax.data.tasks import TASKS
from tuna_jax.train.metrics import TIMES

# The panels, by the head of their names in metrics.jsonl; losses have a logarithmic axis.
PANELS = {
  'ntp': ('text: cross-entropy of the next token', 'log'),
  'flow': ('pictures: squared error of the velocity', 'log'),
  'flow_t': ('pictures: squared error of the velocity, by time', 'log'),
  'held_ntp': ('text, held out', 'log'),
  'held_flow': ('pictures, held out', 'log'),
  'psnr': ('pixels: signal to noise, dB', 'linear'),
}
BINS = 100  # points of a line, each a mean over its share of the run
COLOURS = 9  # of lines in the style sheet; 0 is 'all', tasks take the others in turn
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 210, 44, 430, 10, 186  # of a panel and its axes

Points = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a panel. points: as SVG writes them. last: its last value."""

  name: str
  colour: int
  points: str
  last: float


@dataclasses.dataclass(frozen=True)
class Panel:
  """One diagram. ticks: (y, label) of the vertical axis. steps: (x, anchor, label) below it."""

  title: str
  ticks: list[tuple[float, str]]
  steps: list[tuple[float, str, str]]
  lines: list[Line]


def read(path) -> list[dict[str, float]]:
  """The records of a metrics.jsonl in order of their steps; of a step that ran twice the last
  values count.
  """
  by_step: dict[int, dict[str, float]] = {}
  for line in files.read_appended(path).decode(errors='replace').splitlines():
    with contextlib.suppress(json.JSONDecodeError):  # torn by a kill, or being written
      record = json.loads(line)
      by_step.setdefault(record['step'], {}).update(record)
  return [by_step[step] for step in sorted(by_step)]


def panels(records: Sequence[Mapping[str, float]]) -> Iterator[Panel]:
  """A panel for every kind of curve that a run has, one line per task and one for all of them."""
  order = {name: number for number, name in enumerate(('all', *TASKS, *TIMES))}
  for head, (title, scale) in PANELS.items():
    lines = collections.defaultdict(list)
    for record in records:
      for name, value in record.items():
        first, _, task = name.partition('/')
        if first == head and math.isfinite(value) and (scale == 'linear' or value > 0):
          lines[task or 'all'].append((record['step'], value))
    if len(lines) == 2:  # 'all' says the same as the one task
      lines.pop('all', None)
    if lines:
      last = records[-1]['step']
      lines = {name: thin(lines[name], last) for name in sorted(lines, key=lambda n: order[n])}
      yield panel(
        title, {name: (order[name], points) for name, points in lines.items()}, scale, last
      )


def thin(points: Points, last: float) -> Points:
  """Means over up to BINS equal shares of the steps."""
  share = lambda point: min(BINS - 1, int((point[0] - 1) * BINS / max(last, 1)))
  groups = [list(group) for _, group in itertools.groupby(points, share)]
  return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def panel(title: str, lines: Mapping[str, tuple[int, Points]], scale: str, last: float) -> Panel:
  """name -> (number, points) drawn over `last` steps. scale: of the vertical axis, 'log' or
  'linear'.
  """
  at = math.log10 if scale == 'log' else float
  values = [at(v) for _, points in lines.values() for _, v in points]
  low, high = min(values), max(values)
  pad = max(0.05 * (high - low), 0.02)
  low, high = low - pad, high + pad
  x = lambda step: round(LEFT + (RIGHT - LEFT) * step / max(last, 1), 1)
  y = lambda value: round(TOP + (BOTTOM - TOP) * (high - at(value)) / (high - low), 1)

  def draw(points):
    places = [(x(step), y(value)) for step, value in points]
    if len(places) == 1:  # a dash, since a line of one point shows nothing
      places = [(places[0][0] + shift, places[0][1]) for shift in (-3, 3)]
    return ' '.join(f'{a},{b}' for a, b in places)

  colour = lambda number: number and 1 + (number - 1) % (COLOURS - 1)
  steps = ((0, 'start', '{}'), (0.5, 'middle', '{}'), (1, 'end', 'step {}'))
  return Panel(
    title,
    [(y(tick), f'{tick:g}') for tick in ticks(low, high, scale)],
    [(x(share * last), anchor, text.format(round(share * last))) for share, anchor, text in steps],
    [Line(name, colour(n), draw(points), points[-1][1]) for name, (n, points) in lines.items()],
  )


def ticks(low: float, high: float, scale: str) -> list[float]:
  """Round values between two ends of an axis (of their decimal logarithm, on a log axis)."""
  if scale == 'log':
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    found = [m * 10.0**e for e in decades for m in (1, 2, 5)]
    found = [t for t in found if low <= math.log10(t) <= high]
    if len(found) > 6:
      found = [t for t in found if f'{t:e}'.startswith('1.0')]
    if len(found) >= 2:
      return found
    low, high = 10.0**low, 10.0**high
  step = 10.0 ** math.floor(math.log10((high - low) / 2))
  step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 6)
  return [round(k * step, 9) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
