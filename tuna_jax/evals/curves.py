"""Loss curves as inline SVG: one panel a run and kind of loss, one line a task, coloured by the
page's style sheet.
"""

from __future__ import annotations

import collections
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

# The lines of the panels, by the head of their names in metrics.jsonl; 'log' axes for losses.
PANELS = {
  'ntp': ('text: cross-entropy of the next token', 'log'),
  'flow': ('pictures: squared error of the velocity', 'log'),
  'psnr': ('pixels: signal to noise, dB', 'linear'),
}
BINS = 100  # points of a line, each a mean over its share of the run
COLOURS = {
  name: i
  for i, name in enumerate(
    ('all', 't2i', 'caption', 'vqa', 'edit', 't2v', 'video_caption', 'video_vqa', 'text')
  )
}

Points = list[tuple[float, float]]
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 210, 44, 10, 10, 24


def read(path) -> list[dict[str, float]]:
  """The records of a metrics.jsonl in order of their steps; a step that ran twice counts once, its
  last time.
  """
  path = epath.Path(path)
  if not path.exists():
    return []
  by_step = {}
  for line in path.read_text().splitlines():
    if line.strip():
      record = json.loads(line)
      by_step[record['step']] = record
  return [by_step[step] for step in sorted(by_step)]


def panels(records: Sequence[Mapping[str, float]]) -> Iterable[tuple[str, str]]:
  """(title, SVG) of every kind of curve that a run has."""
  for head, (title, scale) in PANELS.items():
    lines = collections.defaultdict(list)
    for record in records:
      for name, value in record.items():
        first, _, task = name.partition('/')
        if first == head and math.isfinite(value):
          lines[task or 'all'].append((record['step'], value))
    if len(lines) == 2:  # 'all' says the same as the one task
      lines.pop('all', None)
    thinned = {task: thin(points, records[-1]['step']) for task, points in lines.items()}
    thinned = {task: points for task, points in thinned.items() if points}
    if thinned:
      yield (
        title,
        svg(
          dict(sorted(thinned.items(), key=lambda item: COLOURS.get(item[0], 0))),
          scale,
          records[-1]['step'],
        ),
      )


def thin(points: Points, last: float) -> Points:
  """Means over up to BINS equal shares of the steps."""
  bins = collections.defaultdict(list)
  for step, value in points:
    bins[min(BINS - 1, int((step - 1) * BINS / max(last, 1)))].append((step, value))
  return [
    (sum(s for s, _ in b) / len(b), sum(v for _, v in b) / len(b)) for _, b in sorted(bins.items())
  ]


def svg(lines: Mapping[str, Points], scale: str, last: float) -> str:
  """One panel. scale: of the vertical axis, 'log' or 'linear'."""
  values = [v for points in lines.values() for _, v in points if scale == 'linear' or v > 0]
  if not values:
    return ''
  at = math.log10 if scale == 'log' else float
  low, high = at(min(values)), at(max(values))
  pad = max(0.05 * (high - low), 0.02)
  low, high = low - pad, high + pad
  x = lambda step: _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(last, 1)
  y = lambda value: _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - at(value)) / (high - low)
  parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss curves">']
  for tick in _ticks(low, high, scale):
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
      f'<text x="{_LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
    )
  for share in (0, 0.5, 1):
    anchor = {0: 'start', 0.5: 'middle', 1: 'end'}[share]
    parts.append(
      f'<text x="{x(share * last):.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">'
      f'{"step " if share == 1 else ""}{round(share * last)}</text>'
    )
  for task, points in lines.items():
    path = ' '.join(f'{x(s):.1f},{y(v):.1f}' for s, v in points if scale == 'linear' or v > 0)
    parts.append(
      f'<polyline class="line c{COLOURS.get(task, 0)}" points="{path}"><title>{html.escape(task)}</title>'
      '</polyline>'
    )
  parts.append('</svg>')
  legend = ''.join(
    f'<span><i class="c{COLOURS.get(task, 0)}"></i>{html.escape(task)} '
    f'<b>{points[-1][1]:.3g}</b></span>'
    for task, points in lines.items()
  )
  return ''.join(parts) + f'<div class="legend">{legend}</div>'


def _ticks(low: float, high: float, scale: str) -> list[float]:
  """Round values between two ends of an axis (of their decimal logarithm, on a log axis)."""
  if scale == 'log':
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    ticks = [m * 10.0**e for e in decades for m in (1, 2, 5)]
    ticks = [t for t in ticks if low <= math.log10(t) <= high]
    if len(ticks) > 6:
      ticks = [t for t in ticks if f'{t:e}'.startswith('1.0')]
    if len(ticks) >= 2:
      return ticks
    low, high = 10.0**low, 10.0**high
  step = 10.0 ** math.floor(math.log10((high - low) / 2))
  step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 6)
  return [round(k * step, 9) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
