"""Compares every module with golden tensors of the official one, one verdict per output.

  tuna-jax parity --golden=DIR [--json=FILE] [--only=CASE]

DIR holds index.json and the .safetensors files it names, of any sizes. One row per output: shape,
largest absolute error, relative L2 error, the official code's own sensitivity to rounding, verdict.
An output passes within 30 times that sensitivity or within 2e-6 relative L2, integers when they are
equal.

Exit code 0: everything passed. 1: an output failed, or a tensor is missing, extra, misshapen or not
finite, or a case is of an unknown kind; the rows name it. 2: DIR is no golden set.
"""

import time

from absl import flags

from tuna_jax import files
from tuna_jax.cli import app

_GOLDEN = flags.DEFINE_string('golden', None, 'The directory of golden tensors.', required=True)
_JSON = flags.DEFINE_string('json', None, 'Also write the rows to this file, as JSON.')
_ONLY = flags.DEFINE_string('only', '', 'Run only the cases whose name begins with this.')


def main(argv):
  del argv
  from tuna_jax.parity import cases
  from tuna_jax.parity.case import report

  start, rows = time.time(), []
  for row in cases.run(_GOLDEN.value, _ONLY.value):
    if not rows:
      print(_line('case', 'output', 'shape', 'max abs', 'rel L2', 'sens 1ulp', 'verdict'))
    rows.append(row)
    verdict = 'ok' if row.passed else 'FAIL'
    shape = '' if row.shape is None else 'x'.join(map(str, row.shape)) or 'scalar'
    print(
      _line(
        row.case,
        row.output,
        shape,
        *map(_number, (row.max_abs, row.relative, row.sensitivity)),
        f'{verdict}  {row.note}'.rstrip(),
      ),
      flush=True,
    )
  found, seconds = report(rows), time.time() - start
  verdict, good = 'PASS' if found['passed'] else 'FAIL', len(rows) - found['failed']
  print(f'{verdict}: {good} of {len(rows)} rows in {found["cases"]} cases, {seconds:.0f} s')
  if _JSON.value:
    files.write_json(_JSON.value, {'golden': _GOLDEN.value, 'seconds': round(seconds, 1), **found})
  return int(not found['passed'])


def _line(case, output, shape, *rest) -> str:
  numbers, verdict = rest[:-1], rest[-1]
  return (
    f'{case:<18} {output:<58} {shape:<16} ' + ' '.join(f'{n:>9}' for n in numbers) + f'  {verdict}'
  )


def _number(value) -> str:
  return '' if value is None else f'{value:.2e}'


if __name__ == '__main__':
  app.run(main)
