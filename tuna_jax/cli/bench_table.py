"""Puts results of benchmarks beside the numbers of the paper.

  tuna-jax bench-table RESULTS [RESULTS ...] [--output=results.md]

RESULTS are files or folders that lmms-eval, the official scorers or `tuna-jax bench-samples` wrote
(docs/benchmarks.md 5). The table says versions, seeds and settings.
"""

from absl import flags

from tuna_jax import files
from tuna_jax.cli import app

_OUTPUT = flags.DEFINE_string('output', '', 'The Markdown file to write instead of printing it.')


def main(argv):
  from tuna_jax.benchmarks import table

  page = table.markdown(table.collect(argv[1:]))
  if _OUTPUT.value:
    files.write_text(_OUTPUT.value, page)
    print(f'table: {_OUTPUT.value}')
  else:
    print(page)


if __name__ == '__main__':
  app.run(main, positional=('RESULTS', 'RESULTS*'))
