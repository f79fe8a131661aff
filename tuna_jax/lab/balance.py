"""How balanced the visual tokens of the compared rows are: CKNNA against a row that only reads and
one that only draws, and of late fusion's branches against what they are fused to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuna_jax.lab import features, verdicts
from tuna_jax.lab.alignment import How, compare
from tuna_jax.toy.understanding import held_out

READS, DRAWS, CASCADE, FUSION = '3', '6', '12', '7'  # rows of configs/compare.py
ROWS = (READS, DRAWS, CASCADE, FUSION)
PICTURES = 300


def measure(runs: Mapping[str, str], n: int = PICTURES) -> dict[str, Any]:
  """{'reading', 'drawing': {row: {layer of the reference: score}}, 'branches': {branch: score}} of
  one seed. runs: the run of each of ROWS."""
  pictures = [record['image'] for record in held_out('caption', n)]
  made = {name: features.read(runs[name], pictures) for name in ROWS}
  visual = {name: {name: made[name]['visual']} for name in (CASCADE, FUSION)}

  def against(reference):
    found = {name: compare(own, reference, How()) for name, own in visual.items()}
    return {name: dict(zip(f['b'], f['score'][0])) for name, f in found.items()}

  fused = made[FUSION]
  last = [name for name in fused if name.startswith('vision ')][-1]
  branches = {'semantic': fused[last], 'projector': fused['projector']}
  found = compare(visual[FUSION], branches, How())
  return {
    'reading': against(made[READS]),
    'drawing': against(made[DRAWS]),
    'branches': dict(zip(found['b'], found['score'][0])),
  }


def judge(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The verdicts on what the paper says of its representation; one value for each seed, intervals
  over seeds. measured: of `measure`."""
  best = lambda scores: max(scores.values())
  mean = lambda scores: sum(scores.values()) / len(scores)
  lean = [m['branches']['semantic'] - m['branches']['projector'] for m in measured]
  above = [mean(m['drawing'][CASCADE]) - mean(m['drawing'][FUSION]) for m in measured]
  group = 'The representation is balanced'
  found = [
    (group, f'row {CASCADE} above 0.5 against row {READS}, which reads',
     [best(m['reading'][CASCADE]) - 0.5 for m in measured]),
    (group, f'row {FUSION} above 0.5 against row {READS}, which reads',
     [best(m['reading'][FUSION]) - 0.5 for m in measured]),
    (group, f'row {CASCADE} above row {FUSION} against row {DRAWS}, which draws', above),
    ('Late fusion leans to its semantic branch', f'row {FUSION}: semantic above projector', lean),
  ]  # fmt: skip
  out = []
  for name, what, values in found:
    difference = verdicts.over_seeds(values)
    out.append(
      {'group': name, 'what': what, 'verdict': verdicts.verdict(difference),
       'difference': difference._asdict()}
    )  # fmt: skip
  return out
