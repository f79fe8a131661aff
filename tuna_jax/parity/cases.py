"""Does this package compute what the official one computes? Golden tensors in, one verdict per
output out.

A golden directory holds `index.json`, the .safetensors files it names, and a tiny tokenizer. A case
has tensors called `w.<official name>` (weights), `in.<sub>.<x>`, `out.<sub>.<x>` and
`dbg.<sub>.<x>` (intermediates); the index gives each one's shape and type, and for an output
`sens_1ulp`. One function per kind of case computes the outputs with our modules. Nothing in them
knows a size; `sizes` reads them all from the case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath

from tuna_jax import files
from tuna_jax.config import UserError, nearest
from tuna_jax.parity import models, parts, pixel, pixel_samples, samples, showo2, towers
from tuna_jax.parity.case import Case, Compute, GoldenError, Row, compare
from tuna_jax.weights import safetensors
from tuna_jax.weights.tensors import CheckpointError

INDEX = 'index.json'
GROUPS = ('w', 'in', 'out', 'dbg')
KINDS: Mapping[str, Compute] = {
  **parts.CASES,
  **towers.CASES,
  **models.CASES,
  **samples.CASES,
  **showo2.CASES,
  **pixel.CASES,
  **pixel_samples.CASES,
}


def run(folder, only: str = '', kinds: Mapping[str, Compute] | None = None) -> Iterator[Row]:
  """Yields one Row for every output of every case of the golden directory, and one for every fault.

  only: cases whose name begins so. kinds: what computes each kind of case; cases of other kinds are
  left out. Default: KINDS, all that bring their own weights, and any other kind is a fault. Raises
  GoldenError where there is no readable index or no case.
  """
  folder = files.path(folder)
  cases = read_index(folder)
  yield from _unnamed(folder, cases)
  names = [str(case.get('name')) for case in cases]
  chosen = [
    case
    for case, name in zip(cases, names, strict=True)
    if name.startswith(only) and (kinds is None or case.get('kind') in kinds)
  ]
  if not chosen:
    raise GoldenError(f'{folder}: no case begins with {only!r}{nearest(only, names)}')
  by_name = dict(zip(names, cases, strict=True))
  with jax.default_matmul_precision('highest'):
    for entry in chosen:
      yield from _run_case(folder, entry, by_name, KINDS if kinds is None else kinds)


def read_index(folder) -> list[dict]:
  """The cases of index.json. Raises GoldenError naming what is wrong with it."""
  path = files.path(folder) / INDEX
  if not path.exists():
    raise GoldenError(f'{folder}: no {INDEX} there: not a directory of golden tensors')
  try:
    cases = files.read_json(path)['cases']
  except (UserError, KeyError, TypeError) as error:
    raise GoldenError(f'{path}: damaged: {type(error).__name__} {error}') from None
  if not isinstance(cases, list) or not cases or not all(isinstance(case, dict) for case in cases):
    raise GoldenError(f'{path}: no cases')
  return cases


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
  """The case with its tensors in memory, and (tensor, fault) where they disagree with the index."""
  meanings = dict(entry['tensors'])
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
  for name in [name for name in tensors if name in meanings]:
    meaning, tensor = meanings[name], tensors[name]
    if name.partition('.')[0] not in GROUPS:
      faults.append((name, f'unknown group: names begin with {", ".join(GROUPS)}'))
    found = f'{tensor.dtype}{list(tensor.shape)}'
    wanted = f'{meaning["dtype"]}{list(meaning["shape"])}'
    if found != wanted:
      faults.append((name, f'misshapen: found {found}, the index says {wanted}'))
      continue
    arrays[name] = np.asarray(tensor)
    if np.issubdtype(arrays[name].dtype, np.floating):
      odd, told = int(np.sum(~np.isfinite(arrays[name]))), meaning.get('non_finite', 0)
      if odd != told:
        faults.append((name, f'{odd} values are not finite, the index says {told}'))
  keys = {f'w.{key}' for key in entry.get('state_dict_keys', ())}
  faults += [
    (name, 'missing: a state_dict key without a tensor') for name in keys - meanings.keys()
  ]
  faults += [
    (name, 'extra: not among the state_dict keys')
    for name in meanings
    if name.startswith('w.') and name not in keys
  ]
  held = _other_weights(folder, entry, entries) or tensors
  weights = {name[2:]: tensor for name, tensor in held.items() if name.startswith('w.')}
  arrays = {name: array for name, array in arrays.items() if not name.startswith('w.')}
  case = Case(entry['name'], entry['kind'], entry['config'], meanings, arrays, weights, folder)
  return case, faults


def _other_weights(folder, entry, entries):
  """The tensors of the case that `weights_from` or `weights_file` names; None if it has its own."""
  if entry.get('weights_file') in (None, entry['file']):
    return None
  of_files = {other['file']: name for name, other in entries.items()}
  source = entry['config'].get('weights_from', of_files.get(entry['weights_file']))
  if source not in entries:
    raise GoldenError(f'weights_from {source!r}: no such case{nearest(str(source), entries)}')
  held = entries[source]['file']
  if held != entry['weights_file']:
    raise GoldenError(f'weights_file {entry["weights_file"]!r}: case {source} is in {held!r}')
  return safetensors.read_file(_inside(folder, held))


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
  named = isinstance(error, GoldenError | CheckpointError)
  return str(error) if named else f'{type(error).__name__}: {error}'
