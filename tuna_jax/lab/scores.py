"""The scores of a trained row: one verdict per held-out item of the rendered world's tasks."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tuna_jax import sharding
from tuna_jax.evals.results import Result
from tuna_jax.sample.generate import Drawing
from tuna_jax.sample.open import open_generator
from tuna_jax.toy import drawing, understanding
from tuna_jax.toy.records import PROMPTS

READ, DRAWN = ('captions', 'questions'), PROMPTS  # the tasks by what they need


def tasks(data: str) -> tuple[str, ...]:
  """The tasks that a row of `data` (configs/compare.py DATA) is scored on."""
  return {'und': READ, 'gen': DRAWN, 'both': (*READ, *DRAWN)}[data]


def score(run: str, data: str, n: int) -> dict[str, dict[str, Any]]:
  """{task: {'items': n verdicts as 0 and 1, 'floor', 'ceiling': means}} of a run.

  All rows draw with one sampler, that of the rendered world.
  """
  mesh = sharding.make_mesh(data=-1, fsdp=1)
  generator = open_generator(run, mesh=mesh, batch_size=50)
  how = Drawing.of('cascade', 't2i', 1.5, points=16)
  found: dict[str, Result] = {}
  with jax.set_mesh(mesh):
    if data != 'gen':
      found['captions'] = understanding.captions(generator, n)
      found['questions'] = understanding.questions(generator, n)
    if data != 'und':
      found |= drawing.pictures(generator, n, how)
  return {name: _verdicts(result) for name, result in found.items()}


def _verdicts(result: Result) -> dict[str, Any]:
  most = result.ceiling if result.rebuilt is None else result.rebuilt
  mean = lambda shares: round(float(np.mean(shares)), 4)
  return {
    'items': [int(ok) for ok in result.score],
    'floor': mean(result.floor),
    'ceiling': mean(most),
  }
