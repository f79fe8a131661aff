"""What the official scorers compute from judged samples: checks of numbers, not replacements.

Each needs a detector, a judge or a model first (docs/benchmarks.md); this is what follows.

    geneval    djghosh13/geneval evaluate_images.py       dpg      ELLA compute_dpg_bench.py
    oneig_text OneIG-Benchmark text_score.py              vbench   VBench cal_final_score.py
    imgedit    ImgEdit step1_get_avgscore.py, step2_...   viescore VIEScore's semantics and quality
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

# ---- GenEval

CONFIDENCE, COUNTING_CONFIDENCE, MAX_OBJECTS = 0.3, 0.9, 16


class Box(NamedTuple):
  """A detected object: corners in pixels, the detector's confidence, the colour that CLIP names."""

  x0: float
  y0: float
  x1: float
  y1: float
  confidence: float = 1.0
  color: str = ''


def geneval_correct(row: Mapping[str, Any], detected: Mapping[str, Sequence[Box]]) -> bool:
  """Whether a picture shows what a row of evaluation_metadata.jsonl asks for.

  detected: by class. The most confident boxes count; a group that failed is no reference for the
  position of another.
  """
  least = COUNTING_CONFIDENCE if row['tag'] == 'counting' else CONFIDENCE
  kept = {
    name: sorted((b for b in boxes if b.confidence > least), key=lambda b: -b.confidence)
    for name, boxes in detected.items()
  }
  kept = {name: boxes[:MAX_OBJECTS] for name, boxes in kept.items()}
  groups: list[Sequence[Box]] = []  # empty: not matched
  for wanted in row.get('include', ()):
    found = kept.get(wanted['class'], ())[: wanted['count']]
    right = len(found) == wanted['count']
    if 'color' in wanted:
      right = right and all(box.color == wanted['color'] for box in found)
    if 'position' in wanted and right:
      relation, other = wanted['position']
      right = bool(groups[other]) and all(
        relation in relations(box, target) for box in found for target in groups[other]
      )
    groups.append(found if right else ())
  excess = any(len(kept.get(w['class'], ())) >= w['count'] for w in row.get('exclude', ()))
  return all(groups) and not excess


def relations(box: Box, other: Box) -> set[str]:
  """Where `box` lies from `other`, by centres, less 10 % of both sizes along each axis."""
  corners = np.array([box[:4], other[:4]]).reshape(2, 2, 2)
  offset = np.subtract(*corners.mean(axis=1))
  margin = 0.1 * np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
  beyond = np.maximum(np.abs(offset) - margin, 0) * np.sign(offset)
  if np.all(np.abs(beyond) < 1e-3):
    return set()
  x, y = beyond / np.linalg.norm(offset)
  sides = {'left of': x < -0.5, 'right of': x > 0.5, 'above': y < -0.5, 'below': y > 0.5}
  return {side for side, there in sides.items() if there}


def geneval(judged: Sequence[tuple[str, bool]]) -> dict[str, float]:
  """The share of right pictures per tag and `overall`, the mean of the tags, of (tag, right)."""
  tags = collections.defaultdict(list)
  for tag, right in judged:
    tags[tag].append(right)
  return mean_of_means(tags, 'overall')


def mean_of_means(groups: Mapping[str, Sequence[float]], name: str) -> dict[str, float]:
  """The mean of each group, and under `name` the mean of those."""
  means = {key: float(np.mean(values)) for key, values in groups.items()}
  return {**means, name: float(np.mean(list(means.values())))}


# ---- DPG-Bench


def dpg(answers: Mapping[int, bool], parents: Mapping[int, Sequence[int]]) -> float:
  """The score of one picture: a question counts 0 where one it depends on counts 0.

  parents: of each question, in the order of the table; 0 is none.
  """
  scores = {number: float(answer) for number, answer in answers.items()}
  for number, above in parents.items():
    if any(parent and not scores[parent] for parent in above):
      scores[number] = 0.0
  return sum(scores.values()) / len(scores)


# ---- OneIG-Bench


def oneig_text(distance: float, complete: float, words: float, worst: float = 100) -> float:
  """The text score of mean edit distance, share of complete texts and share of right words.

  worst: 100 in English, 50 in Chinese.
  """
  return 1 - min(worst, distance) * (1 - complete) * (1 - words) / worst


# ---- VBench: name, lowest, highest, weight (scripts/constant.py)

VBENCH_QUALITY = MappingProxyType(
  {
    'subject_consistency': (0.1462, 1.0, 1.0),
    'background_consistency': (0.2615, 1.0, 1.0),
    'temporal_flickering': (0.6293, 1.0, 1.0),
    'motion_smoothness': (0.706, 0.9975, 1.0),
    'dynamic_degree': (0.0, 1.0, 0.5),
    'aesthetic_quality': (0.0, 1.0, 1.0),
    'imaging_quality': (0.0, 1.0, 1.0),
  }
)
VBENCH_SEMANTIC = MappingProxyType(
  {
    'object_class': (0.0, 1.0, 1.0),
    'multiple_objects': (0.0, 1.0, 1.0),
    'human_action': (0.0, 1.0, 1.0),
    'color': (0.0, 1.0, 1.0),
    'spatial_relationship': (0.0, 1.0, 1.0),
    'scene': (0.0, 0.8222, 1.0),
    'appearance_style': (0.0009, 0.2855, 1.0),
    'temporal_style': (0.0, 0.364, 1.0),
    'overall_consistency': (0.0, 0.364, 1.0),
  }
)


def vbench(scores: Mapping[str, float]) -> dict[str, float]:
  """quality, semantic and total of the 16 dimensions, all from 0 to 1."""

  def part(dimensions):
    weights = [weight for _, _, weight in dimensions.values()]
    normal = [(scores[n] - low) / (high - low) * w for n, (low, high, w) in dimensions.items()]
    return sum(normal) / sum(weights)

  quality, semantic = part(VBENCH_QUALITY), part(VBENCH_SEMANTIC)
  return {'quality': quality, 'semantic': semantic, 'total': (4 * quality + semantic) / 5}


# ---- ImgEdit and GEdit-Bench


def imgedit_score(reply: str) -> float | None:
  """The mean of the `Name: n` lines in a judge's reply, or None without any."""
  parts = [line.strip().split(': ') for line in reply.splitlines()]
  scores = [int(p[1]) for p in parts if len(p) == 2 and p[1].isdigit()]
  return round(sum(scores) / len(scores), 2) if scores else None


def imgedit(replies: Mapping[str, str], types: Mapping[str, str]) -> dict[str, float]:
  """The mean of each type of edit, and `overall`, the mean of the types (not of the samples)."""
  groups = collections.defaultdict(list)
  for key, reply in replies.items():
    score = imgedit_score(reply)
    if score is not None:
      groups[types[key]].append(score)
  return mean_of_means(groups, 'overall')


def viescore(semantics: Sequence[float], quality: Sequence[float]) -> float:
  """The overall score of one edit, 0 to 10: the root of the worst of each."""
  return math.sqrt(min(semantics) * min(quality))
