"""Which layers of a checkpoint look re-initialised, and a stage that trains those first.

Released foundation checkpoints have some layers replaced by random values on purpose
(docs/architecture.md 11.2). Such a layer shows against its neighbours in the same tower: training
moves norm gains off one constant, changes the spread of each matrix, and makes its rows unequal;
independent draws have none of that. Per layer and matrix two numbers are taken, and a layer whose
matrices mostly lie outside what the other layers do is reported, with the evidence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tuna_jax.weights.tensors import Lazy

OUTSIDE = 6.0  # deviations from the tower's median, in robust standard deviations
SPREAD_FLOOR = 0.05  # of the log of a spread: layers closer than 5 % are alike
SHARE = 0.5  # of a layer's matrices
STACKED = re.compile(r'(.+?)/layers/(.+)')


STAGE = '''"""Recovery: trains the towers whose layers look re-initialised before the whole model.

{listed}

Written by `tuna-jax convert import --recover`; recover.json has the evidence. Layers are stacked,
so all layers of such a tower train; every other leaf has neither gradient nor optimizer state.
Continue with configs/stage2.py.
"""

from tuna_jax.configs import stage2


def get_config(size: str = 'tiny'):
  """size: tiny, 2b or 7b."""
  config = stage2.get_config(size)
  config.stage = 'recover'
  config.init_from = {weights!r}
  config.optimizer.groups = {groups!r}
  return config
'''


def reinitialised(leaves: Mapping[str, Lazy]) -> dict[str, dict[str, str]]:
  """{tower: {layer number: evidence}} for the layers that look re-initialised. Reads every stacked
  leaf once.
  """
  towers = {}
  for name, value in leaves.items():
    found = STACKED.fullmatch(name)
    if found:
      towers.setdefault(found[1], {})[found[2]] = value
  result = {}
  for tower, members in towers.items():
    gains = [value for name, value in members.items() if name.endswith('scale')]
    matrices = {name: value for name, value in members.items() if name.endswith('kernel')}
    reasons: dict[int, list[str]] = {}
    if gains:
      flat = np.array(
        [all(np.ptp(g[i : i + 1]) == 0 for g in gains) for i in range(gains[0].shape[0])]
      )
      if 0 < flat.sum() < len(flat):
        for layer in np.flatnonzero(flat):
          reasons.setdefault(int(layer), []).append('its norm gains are one constant')
    if matrices:
      numbers = np.array([_numbers(value) for value in matrices.values()])  # [matrices, layers, 2]
      outside = _outside(numbers)
      for layer in np.flatnonzero(outside.mean(0) >= SHARE):
        names = [name for name, out in zip(matrices, outside[:, layer]) if out]
        reasons.setdefault(int(layer), []).append(
          f'{len(names)} of {len(matrices)} matrices spread unlike those of other layers: '
          + ', '.join(names)
        )
    if reasons:
      result[tower] = {str(layer): '; '.join(why) for layer, why in sorted(reasons.items())}
  return result


def describe(found: Mapping[str, Mapping[str, str]]) -> str:
  """A readable list."""
  lines = [
    f'  {tower}/layers {layer}: {why}'
    for tower, layers in found.items()
    for layer, why in layers.items()
  ]
  return '\n'.join([f'layers that look re-initialised: {len(lines)}', *lines])


def _numbers(value: Lazy) -> np.ndarray:
  """float[layers, 2] of a stacked kernel: log spread, log of how unequal its columns are beside
  independent draws.
  """
  out = []
  for layer in range(value.shape[0]):
    x = np.asarray(value[layer : layer + 1], np.float32)
    x = x.reshape(-1, x.shape[-1])
    square = np.einsum('io,io->o', x, x, dtype=np.float64) / x.shape[0]
    spread = square.mean()
    if spread == 0:
      out.append((-30.0, 0.0))
      continue
    out.append((np.log(spread) / 2, np.log(square.std() / spread * np.sqrt(x.shape[0] / 2) + 1e-3)))
  return np.array(out)


def _outside(numbers: np.ndarray) -> np.ndarray:
  """bool[matrices, layers]: either number is far from the tower's other layers. Repeats without
  those found.
  """
  outside = np.zeros(numbers.shape[:2], bool)
  for _ in range(numbers.shape[1]):
    kept = ~(outside.mean(0) >= SHARE)
    if kept.sum() < 3:
      break
    middle = np.median(numbers[:, kept], axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(numbers[:, kept] - middle), axis=1, keepdims=True)
    floor = np.array([SPREAD_FLOOR, 4 * SPREAD_FLOOR])
    new = (np.abs(numbers - middle) > OUTSIDE * np.maximum(spread, floor)).any(-1)
    if (new == outside).all():
      break
    outside = new
  return outside


def stage(found: Mapping[str, Mapping[str, str]], weights) -> str:
  """The text of a stage config: stage 2 from the directory `weights`, in which only the towers
  found train.
  """
  groups = (
    *((f'{tower}/layers/.*', 1.0) for tower in sorted(found)),
    ('.*', 0.0 if found else 1.0),
  )
  listed = [f'  {tower}: layers {", ".join(found[tower])}' for tower in sorted(found)] or [
    '  none was found'
  ]
  return STAGE.format(listed='\n'.join(listed), weights=str(weights), groups=groups)
