"""The report of a run: one self-contained page to look at, and report.json to compute with.

`report.json` holds every row of the table as `{"score", "floor", "ceiling", "target", "n"}` under
"scores".
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax import files
from tuna_jax.evals import curves
from tuna_jax.evals.results import Evaluation, Row, Sample
from tuna_jax.evals.style import STYLE

SHOWN = 12  # samples a section: the first ones, never chosen
RUNS = ('vae', 'decoder', 'stage1', 'stage2', 'stage3')


def write(
  directory: str,
  evaluation: Evaluation,
  runs: str,
  *,
  title: str,
  facts: Mapping[str, Any],
  command: str = '',
  seconds: float = 0.0,
) -> str:
  """Writes `index.html` and `report.json` and returns the path of the page.

  runs: the directory that holds the parts of RUNS (those that exist) and steps.jsonl, where a
  launch script wrote {"step", "seconds", "command"} lines. facts: what else describes the run, name
  -> value. command: what made this report, and how many seconds it took.
  """
  root, runs_path = files.path(directory), files.path(runs)
  root.mkdir(parents=True, exist_ok=True)
  steps = read_steps(runs_path / 'steps.jsonl')
  if command:
    steps.append({'step': 'evaluation', 'seconds': round(seconds, 1), 'command': command})
  history = {name: curves.read(runs_path / name / 'metrics.jsonl') for name in RUNS}
  body = [
    _head(title, evaluation, steps),
    _section(
      'Scores',
      _scores(evaluation),
      'On held-out compositions, with averaged weights. The mark on a bar is the '
      'target; the dark foot is the floor. The ceiling is what the judge says of true answers and pictures, '
      '&ldquo;VAE&rdquo; what it says of true pictures encoded and decoded.',
    ),
    *_galleries(evaluation),
    _section('Loss', _curves(history), 'Means over hundredths of each run.'),
    _section('Steps', _steps(steps)),
    _section('Settings', _facts(facts)),
  ]
  page = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{STYLE}</style></head>'
    f'<body><main>{"".join(body)}</main></body></html>'
  )
  files.write_text(root / 'index.html', page)
  files.write_json(root / 'report.json', _json(title, evaluation, steps, facts, history))
  return str(root / 'index.html')


def read_steps(path) -> list[dict[str, Any]]:
  """The lines of steps.jsonl; what was run again counts once, with all its seconds."""
  path = files.path(path)
  steps: dict[str, dict[str, Any]] = {}
  for line in path.read_text().splitlines() if path.exists() else ():
    step = json.loads(line)
    if step['step'] in steps:
      step['seconds'] += steps[step['step']]['seconds']
    steps[step['step']] = step
  return list(steps.values())


def _json(title, evaluation, steps, facts, history) -> dict[str, Any]:
  return {
    'title': title,
    'scores': {name: row.to_dict() for name, row in evaluation.rows.items()},
    'titles': dict(evaluation.titles),
    'rebuilt': evaluation.rebuilt,
    'steps': steps,
    'seconds': dict(evaluation.seconds),
    'facts': dict(facts),
    'losses': {name: records[-1] for name, records in history.items() if records},
    'samples': {
      name: [
        {'text': s.text, 'right': bool(s.right), 'answer': s.answer, 'wanted': s.wanted}
        for s in result.samples
      ]
      for name, result in evaluation.results.items()
    },
  }


# ---- sections


def _head(title: str, evaluation: Evaluation, steps) -> str:
  judged = [row for row in evaluation.rows.values() if row.target is not None]
  tiles = []
  if judged:
    tiles.append((f'{sum(bool(r.reached) for r in judged)} of {len(judged)}', 'targets reached'))
  tiles.append((f'{np.mean([r.score for r in evaluation.rows.values()]):.0%}', 'mean score'))
  tiles.append((f'{sum(r.n for r in evaluation.rows.values()):,}', 'held-out items judged'))
  if steps:
    tiles.append((_clock(sum(s['seconds'] for s in steps)), 'all steps'))
  boxes = ''.join(f'<div class="tile"><b>{value}</b>{name}</div>' for value, name in tiles)
  return f'<header><h1>{html.escape(title)}</h1><div class="tiles">{boxes}</div></header>'


def _section(title: str, content: str, note: str = '') -> str:
  if not content:
    return ''
  return (
    f'<section><h2>{title}</h2>{f"<p class=note>{note}</p>" if note else ""}{content}</section>'
  )


def _scores(evaluation: Evaluation) -> str:
  rebuilt = evaluation.rebuilt
  lines = []
  for name, row in evaluation.rows.items():
    verdict = {
      True: '<span class="yes">reached</span>',
      False: '<span class="no">missed</span>',
      None: '',
    }[row.reached]
    cells = [
      _percent(row.score, 'strong'),
      _percent(row.floor),
      _percent(row.ceiling),
      _percent(rebuilt.get(name)),
      _percent(row.target),
      f'<td>{row.n}</td>',
      f'<td>{verdict}</td>',
    ]
    lines.append(
      f'<tr><th>{html.escape(evaluation.titles[name])}{_bar(row)}</th>{"".join(cells)}</tr>'
    )
  head = ''.join(
    f'<th>{name}</th>' for name in ('', 'score', 'floor', 'ceiling', 'VAE', 'target', 'n', '')
  )
  return f'<div class="wide"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _bar(row: Row) -> str:
  mark = '' if row.target is None else f'<u style="left:{100 * row.target:.1f}%"></u>'
  kind = {True: 'good', False: 'bad', None: ''}[row.reached]
  return (
    f'<div class="bar {kind}"><i style="width:{100 * row.score:.1f}%"></i>'
    f'<s style="width:{100 * row.floor:.1f}%"></s>{mark}</div>'
  )


def _percent(value: float | None, tag: str = 'span') -> str:
  return '<td></td>' if value is None else f'<td><{tag}>{100 * value:.1f}</{tag}></td>'


def _curves(history) -> str:
  boxes = []
  for name, records in history.items():
    if records:
      boxes += [
        f'<figure><figcaption>{name} &middot; {title}</figcaption>{svg}</figure>'
        for title, svg in curves.panels(records)
      ]
  return f'<div class="curves">{"".join(boxes)}</div>' if boxes else ''


def _galleries(evaluation: Evaluation) -> Iterable[str]:
  """A section a row that has samples; several pictures a sample stand side by side."""
  for name, result in evaluation.results.items():
    samples = result.samples[:SHOWN]
    if not samples:
      continue
    right = sum(s.right for s in samples)
    kind = (
      'talk'
      if any(s.wanted for s in samples)
      else 'drawn'
      if len(samples[0].pictures) == 1
      else 'pairs'
    )
    cards = ''.join(map(_talk if kind == 'talk' else _drawn, samples))
    title = evaluation.titles[name]
    yield _section(
      html.escape(title[0].upper() + title[1:]),
      f'<div class="gallery {kind}">{cards}</div>',
      f'The first {len(samples)} of {len(result.score)}: {right} right.',
    )


def _drawn(sample: Sample) -> str:
  many = len(sample.pictures) > 1
  pictures = ''.join(
    f'<div>{picture(x, f"{sample.text} ({name})")}{f"<small>{name}</small>" if many else ""}</div>'
    for name, x in sample.pictures.items()
  )
  return f'<figure class="{_right(sample)}"><div class="strip">{pictures}</div><figcaption>{html.escape(sample.text)}</figcaption></figure>'


def _talk(sample: Sample) -> str:
  (shown, *_) = sample.pictures.values()
  wanted = '' if sample.right else f'<p class="wanted">{html.escape(sample.wanted)}</p>'
  return (
    f'<figure class="{_right(sample)}">{picture(shown, sample.text)}<figcaption><p class="asked">'
    f'{html.escape(sample.text)}</p><p class="said">{html.escape(sample.answer) or "&hellip;"}</p>{wanted}'
    '</figcaption></figure>'
  )


def _right(sample: Sample) -> str:
  return 'right' if sample.right else 'wrong'


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
  if not steps:
    return ''
  total = sum(s['seconds'] for s in steps)
  lines = ''.join(
    f'<tr><th>{html.escape(s["step"])}</th><td>{_clock(s["seconds"])}</td>'
    f'<td><code>{html.escape(s.get("command", ""))}</code></td></tr>'
    for s in steps
  )
  return (
    f'<div class="wide"><table class="steps">{lines}<tr class="total"><th>all</th><td>{_clock(total)}</td><td></td>'
    '</tr></table></div>'
  )


def _facts(facts: Mapping[str, Any]) -> str:
  lines = ''.join(
    f'<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>'
    for k, v in facts.items()
  )
  return f'<div class="wide"><table class="facts">{lines}</table></div>' if facts else ''


def _clock(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes} min {rest:02} s' if minutes else f'{seconds:.0f} s'


# ---- pictures


def picture(pixels: np.ndarray, label: str) -> str:
  """An <img> of uint8 [H, W, 3], or of a clip uint8 [F, H, W, 3] as an animated PNG."""
  return f'<img alt="{html.escape(label)}" src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'


def png(pixels: np.ndarray, frame_ms: int = 110, hold_ms: int = 700) -> bytes:
  """PNG bytes of a picture, or of a clip that loops and holds its last frame; nothing is lost."""
  pixels = np.asarray(pixels)
  frames = [Image.fromarray(frame) for frame in (pixels if pixels.ndim == 4 else pixels[None])]
  file = io.BytesIO()
  if len(frames) == 1:
    frames[0].save(file, 'PNG', optimize=True)
  else:
    frames[0].save(
      file,
      'PNG',
      save_all=True,
      append_images=frames[1:],
      loop=0,
      duration=[frame_ms] * (len(frames) - 1) + [hold_ms],
    )
  return file.getvalue()
