"""Lists, verifies and compares checkpoints by the digests they were saved with.

  tuna-jax ckpt list RUN
  tuna-jax ckpt verify RUN [--step=N]
  tuna-jax ckpt diff RUN
  tuna-jax ckpt diff A B

A path is a run, one checkpoint of a run (RUN/checkpoints/STEP) or a weights directory; verify also
takes what `convert export` wrote. docs/reliability.md says what the digests cover.
"""

import collections
import math

import ml_dtypes  # noqa: F401, which makes numpy know bfloat16
import numpy as np
from absl import flags

from tuna_jax import files
from tuna_jax.cli import app
from tuna_jax.config import UserError
from tuna_jax.weights import steps, store
from tuna_jax.weights.open import verify as verify_file
from tuna_jax.weights.tensors import CheckpointError, Damaged

ACTIONS = {
  'list': 'Lists the checkpoints of a run, and what in its folder is no complete checkpoint.',
  'verify': 'Reads everything, compares it with its digests, and exits with 1 if anything differs.',
  'diff': 'Names the leaves that differ, by digests alone; of one run, between its newest two '
  'checkpoints. Exits with 1 if any does.',
}
_STEP = flags.DEFINE_integer('step', None, 'The only step of the run to verify.')


def main(argv):
  action, *paths = argv[1:]
  most = 2 if action == 'diff' else 1
  if not 1 <= len(paths) <= most:
    raise UserError(f'ckpt {action}: expected {"one or two paths" if most == 2 else "one path"}')
  return {'list': list_, 'verify': verify, 'diff': diff}[action](*paths)


def list_(path):
  run, step = _run_of(path)
  if run is None:
    store.read_config(path)  # which names the runs in a folder of several
    raise UserError(f'{path}: not a run; `tuna-jax convert inspect` lists a weights directory')
  complete = steps.committed(run)
  for number in [step] if step is not None else complete:
    try:
      known = steps.record(run, number)
    except Damaged as error:
      print(f'step {number}: {error}')
      continue
    sizes = collections.Counter()
    for item in steps.ARRAYS:
      for shape, dtype, _ in known[item].values():
        sizes[item] += math.prod(shape) * np.dtype(dtype).itemsize
    told = ', '.join(f'{n} {len(known[n])} leaves {size / 1e6:.1f} MB' for n, size in sizes.items())
    print(f'step {number}: {told}')
  folder = files.path(run) / 'checkpoints'
  for other in sorted(folder.iterdir()) if step is None and folder.exists() else ():
    if not (other.name.isdigit() and int(other.name) in complete):
      print(f'{other.name}: not complete; it is ignored')


def verify(path):
  run, step = _run_of(path)
  if run is None:
    compared = True
    try:
      if store.is_stored(path):
        store.checked(store.open_stored(path))
      else:
        compared = verify_file(path)
    except Damaged as error:
      print(error)
      return 1
    print(f'{path}: ' + ('as it was written' if compared else 'holds no digests to compare with'))
    return 0
  wanted = _STEP.value if _STEP.value is not None else step
  numbers = steps.committed(run) if wanted is None else [wanted]
  if not numbers or set(numbers) - set(steps.committed(run)):
    raise CheckpointError(f'{run}: no such checkpoint; it has {steps.committed(run)}')
  bad = 0
  for number in numbers:
    try:
      store.read_config(run)
      steps.check(run, number)
    except Damaged as error:
      bad += 1
      print(f'step {number}: {error}')
    else:
      print(f'step {number}: as it was saved')
  return int(bool(bad))


def diff(first, second=None):
  if second is None:
    run, _ = _run_of(first)
    numbers = steps.committed(run) if run is not None else []
    if len(numbers) < 2:
      raise UserError(f'{first}: not a run of two checkpoints; give two paths')
    first, second = (steps.at(run, number) for number in numbers[-2:])
  a, b = _digests(first), _digests(second)
  lines = [f'only in {first}: {name}' for name in a if name not in b]
  lines += [f'only in {second}: {name}' for name in b if name not in a]
  lines += [f'{name}: differs' for name in a if name in b and a[name] != b[name]]
  print('\n'.join(lines) if lines else f'equal: {len(a)} leaves')
  return int(bool(lines))


def _run_of(path):
  """(run, step) of a run or one checkpoint of it, the step None for a run; (None, None) if it is
  neither."""
  where = files.path(path)
  if where.parent.name == 'checkpoints' and where.name.isdigit():
    return str(where.parent.parent), int(where.name)
  if (where / 'checkpoints').exists():
    return str(where), None
  return None, None


def _digests(path) -> dict[str, str]:
  """{item/leaf: digest}, without reading the arrays."""
  run, step = _run_of(path)
  if run is None:
    found = store.read_config(path)['digests']
    if not found:
      raise UserError(f'{path}: has no digests; `tuna-jax convert diff` compares the values')
    return {f'params/{name}': value for name, value in found.items()}
  known = steps.newest_good(run, lambda number: steps.record(run, number), step)
  leaves = {f'{i}/{name}': v[2] for i in steps.ARRAYS for name, v in known[i].items()}
  return {**leaves, 'data': known['data']}


if __name__ == '__main__':
  app.run(main, actions=ACTIONS, positional=('PATH', 'PATH?'), only={'step': ('verify',)})
