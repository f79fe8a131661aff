"""Does this package compute what the official one computes? Golden tensors in, one verdict an
output out.

A golden directory holds `index.json`, the .safetensors files it names, and a tiny tokenizer. A case
has tensors called `w.<official name>` (weights), `in.<sub>.<x>`, `out.<sub>.<x>` and
`dbg.<sub>.<x>` (intermediates); the index gives each one's shape and type, and for an output
`sens_1ulp`: how far the official output itself moves when weights and inputs move by 6e-8
(docs/architecture.md 14). One function a kind of case computes the outputs with our modules:
`parity_parts`, `parity_models`, `parity_samples`. Nothing in them knows a size; `parity_sizes`
reads them all from the case.

The bar, with no exceptions: integers equal; floats within 30 x sens_1ulp everywhere, or within 2e-6
in relative L2.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tuna_jax.config import UserError, nearest
from tuna_jax.weights import safetensors
from tuna_jax.weights.tensors import CheckpointError, Lazy

SENSITIVITIES = 30.0  # of the official output to one rounding of everything that goes in
RELATIVE = 2e-6  # L2, of an output less sensitive than that
INDEX = 'index.json'
GROUPS = ('w', 'in', 'out', 'dbg')


class GoldenError(UserError):
  """A directory that holds no golden set."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison, or one fault. `passed` says which; a fault has a `note` and perhaps no numbers."""

  case: str
  output: str
  passed: bool
  shape: tuple[int, ...] | None = None
  max_abs: float | None = None
  relative: float | None = None
  sensitivity: float | None = None
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Case:
  """One case as its function sees it.

  config: the index's. tensors: {name: numpy} of in.*, out.* and dbg.*. weights: {official name:
  Lazy}. model: where the case runs the whole model, config['model'] of the case. folder: the golden
  directory.
  """

  name: str
  kind: str
  config: Mapping[str, Any]
  entries: Mapping[str, Mapping[str, Any]]
  tensors: Mapping[str, np.ndarray]
  weights: Mapping[str, Lazy]
  folder: epath.Path

  def given(self, *path: str) -> np.ndarray:
    """The tensor in.<path>; KeyError naming it if the case has none."""
    return self.tensors['.'.join(('in', *path))]

  def has(self, *path: str) -> bool:
    """Whether there is an in.<path>."""
    return '.'.join(('in', *path)) in self.tensors

  def wants(self, *path: str) -> bool:
    """Whether the case asks for out.<path>."""
    return '.'.join(('out', *path)) in self.entries


Compute = Callable[[Case], Mapping[str, Any]]


def run(folder, only: str = '', kinds: Mapping[str, Compute] | None = None) -> Iterator[Row]:
  """Yields one Row for every output of every case of the golden directory, and one for every fault.

  only: cases whose name begins so. kinds: what computes each kind of case; others are left out.
  Default: all that bring their own weights, and any other kind is a fault. Raises GoldenError where
  there is no readable index or no case.
  """
  folder = epath.Path(folder)
  cases = read_index(folder)
  yield from _unnamed(folder, cases)
  names = [str(case.get('name')) for case in cases]
  chosen = [
    case
    for case, name in zip(cases, names)
    if name.startswith(only) and (kinds is None or case.get('kind') in kinds)
  ]
  if not chosen:
    raise GoldenError(f'{folder}: no case begins with {only!r}{nearest(only, names)}')
  if kinds is None:
    from tuna_jax.parity import models, parts, samples, showo2

    kinds = {**parts.CASES, **models.CASES, **samples.CASES, **showo2.CASES}
  with jax.default_matmul_precision('highest'):
    for entry in chosen:
      yield from _run_case(folder, entry, dict(zip(names, cases)), kinds)


def read_index(folder: epath.Path) -> list[dict]:
  """The cases of index.json. Raises GoldenError naming what is wrong with it."""
  path = epath.Path(folder) / INDEX
  if not path.exists():
    raise GoldenError(f'{folder}: no {INDEX} there: not a directory of golden tensors')
  try:
    cases = json.loads(path.read_text())['cases']
  except (ValueError, KeyError, TypeError) as error:
    raise GoldenError(f'{path}: damaged: {type(error).__name__} {error}') from None
  if not isinstance(cases, list) or not cases or not all(isinstance(case, dict) for case in cases):
    raise GoldenError(f'{path}: no cases')
  return cases


def report(rows: Iterable[Row]) -> dict:
  """The rows and what they add up to, for JSON."""
  rows = list(rows)
  failed = sum(not row.passed for row in rows)
  return {
    'passed': not failed,
    'failed': failed,
    'cases': len({row.case for row in rows if row.case}),
    'tolerance': {'sensitivities': SENSITIVITIES, 'relative': RELATIVE},
    'rows': [
      {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(row).items()
      }
      for row in rows
    ],
  }


def compare(case: str, output: str, ours, theirs: np.ndarray, entry: Mapping[str, Any]) -> Row:
  """The verdict on one output."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  shape, sensitivity = theirs.shape, float(entry.get('sens_1ulp') or 0.0)
  if ours.shape != theirs.shape:
    return Row(case, output, False, shape, note=f'ours has shape {list(ours.shape)}')
  if not np.issubdtype(theirs.dtype, np.floating):
    wrong = int(np.sum(ours.astype(np.int64) != theirs.astype(np.int64)))
    error = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
    return Row(
      case,
      output,
      not wrong,
      shape,
      error,
      0.0 if not wrong else None,
      0.0,
      f'{wrong} of {theirs.size} differ' if wrong else '',
    )
  ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
  if not np.array_equal(np.isnan(ours), np.isnan(theirs)) or np.isinf(ours).any():
    return Row(
      case,
      output,
      False,
      shape,
      sensitivity=sensitivity,
      note='not finite where the other is, or infinite',
    )
  difference, size = np.nan_to_num(ours - theirs), np.linalg.norm(np.nan_to_num(theirs))
  largest, norm = float(np.abs(difference).max(initial=0.0)), float(np.linalg.norm(difference))
  relative = norm / size if size else (0.0 if not norm else float('inf'))
  passed = largest <= SENSITIVITIES * sensitivity or relative <= RELATIVE
  note = '' if passed else f'allowed {SENSITIVITIES * sensitivity:.1e}, or {RELATIVE:.0e} relative'
  return Row(case, output, bool(passed), shape, largest, float(relative), sensitivity, note)


def _run_case(folder, entry, entries, cases: Mapping[str, Compute]) -> Iterator[Row]:
  name, kind = str(entry.get('name')), entry.get('kind')
  if kind not in cases:
    yield Row(
      name,
      '',
      False,
      note=f'unknown kind {kind!r}{nearest(kind, cases)}; known: {", ".join(cases)}',
    )
    return
  try:
    case, faults = _read_case(folder, entry, entries)
  except (GoldenError, CheckpointError, KeyError, TypeError, OSError) as error:
    yield Row(name, '', False, note=_text(error))
    return
  for tensor, note in faults:
    yield Row(name, tensor, False, note=note)
  faulty = {tensor for tensor, _ in faults}
  try:
    ours = cases[kind](case)
  except Exception as error:  # noqa: BLE001 - whatever a damaged case breaks, the others still get their verdicts
    yield Row(name, '', False, note=_text(error))
    return
  if not any(n.startswith('out.') for n in case.entries) and not ours:
    yield Row(name, '', False, note='a case without outputs')
  for tensor, meaning in case.entries.items():
    if tensor in faulty:
      continue
    if tensor in ours:
      yield compare(name, tensor, ours[tensor], case.tensors[tensor], meaning)
    elif tensor.startswith('out.'):
      note = f'no such output in this kind{nearest(tensor, ours)}'
      yield Row(name, tensor, False, tuple(meaning['shape']), note=note)
  yield from (value for value in ours.values() if isinstance(value, Row))


def _read_case(folder, entry, entries) -> tuple[Case, list[tuple[str, str]]]:
  """The case with its tensors in memory, and (tensor, fault) of all that disagree with the index."""
  config = entry['config']
  meanings = {name: meaning for name, meaning in entry['tensors'].items()}
  tensors = safetensors.read_file(_inside(folder, entry['file']))
  faults = [
    (name, 'missing: the index names it, the file has no such tensor' + nearest(name, tensors))
    for name in meanings
    if name not in tensors
  ]
  faults += [
    (name, 'extra: in the file, not in the index') for name in tensors if name not in meanings
  ]
  arrays = {}
  for name, tensor in tensors.items():
    if name not in meanings:
      continue
    if name.partition('.')[0] not in GROUPS:
      faults.append((name, f'unknown group: names begin with {", ".join(GROUPS)}'))
    meaning = meanings[name]
    found, wanted = (
      [list(tensor.shape), str(tensor.dtype)],
      [list(meaning['shape']), meaning['dtype']],
    )
    if found != wanted:
      faults.append(
        (name, f'misshapen: found {found[1]}{found[0]}, the index says {wanted[1]}{wanted[0]}')
      )
      continue
    array = np.asarray(tensor)
    if np.issubdtype(array.dtype, np.floating):
      odd = int(np.sum(~np.isfinite(array)))
      if odd != meaning.get('non_finite', 0):
        faults.append(
          (name, f'{odd} values are not finite, the index says {meaning.get("non_finite", 0)}')
        )
    arrays[name] = array
  keys = {f'w.{key}' for key in entry.get('state_dict_keys', ())}
  faults += [
    (name, 'missing: a state_dict key without a tensor') for name in keys - meanings.keys()
  ]
  faults += [
    (name, 'extra: not among the state_dict keys')
    for name in meanings
    if name.startswith('w.') and name not in keys
  ]
  weights_entry = entry
  if entry.get('weights_file') not in (None, entry['file']):
    source = config.get('weights_from')
    if source not in entries:
      raise GoldenError(f'weights_from {source!r}: no such case{nearest(source, entries)}')
    weights_entry = entries[source]
    if weights_entry['file'] != entry['weights_file']:
      raise GoldenError(
        f'weights_file {entry["weights_file"]!r}: case {source} is in {weights_entry["file"]!r}'
      )
    weights_tensors = safetensors.read_file(_inside(folder, entry['weights_file']))
  else:
    weights_tensors = tensors
  weights = {
    name.removeprefix('w.'): tensor
    for name, tensor in weights_tensors.items()
    if name.startswith('w.')
  }
  arrays = {name: array for name, array in arrays.items() if not name.startswith('w.')}
  return Case(
    entry['name'], entry['kind'], config, meanings, arrays, weights, epath.Path(folder)
  ), faults


def _inside(folder, file) -> epath.Path:
  """A file beside the index."""
  if not isinstance(file, str) or '/' in file or '\\' in file or not file.endswith('.safetensors'):
    raise GoldenError(f'file {file!r}: expected the name of a .safetensors file beside {INDEX}')
  path = epath.Path(folder) / file
  if not path.exists():
    raise GoldenError(f'{file}: no such file in {folder}')
  return path


def _unnamed(folder, cases) -> Iterator[Row]:
  """Faults of the set as a whole: files that no case names, names that two cases share."""
  files = {case.get('file') for case in cases}
  for path in sorted(folder.iterdir()):
    if path.suffix == '.safetensors' and path.name not in files:
      yield Row('', path.name, False, note='extra: a file that no case names')
  names = [case.get('name') for case in cases]
  for name in sorted({str(n) for n in names if names.count(n) > 1}):
    yield Row(name, '', False, note='two cases have this name')


def _text(error: Exception) -> str:
  return (
    str(error)
    if isinstance(error, (GoldenError, CheckpointError))
    else f'{type(error).__name__}: {error}'
  )
