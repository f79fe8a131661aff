"""`tuna-jax VERB --flags` runs the verb's module, as `python -m tuna_jax.cli.VERB` does."""

import ast
import importlib.metadata
import pathlib
import pkgutil
import runpy
import sys

import tuna_jax.cli
from tuna_jax.cli import app
from tuna_jax.config import nearest

FRAME = (
  'app',
  'config_files',
  'main',
  'options',
  'packing',
)  # modules of this package that are not verbs


def verbs() -> dict[str, str]:
  """Every verb and the first line of its module's docstring, read without importing the module."""
  found = {}
  for info in pkgutil.iter_modules(tuna_jax.cli.__path__):
    if info.name in FRAME or info.ispkg:
      continue
    source = pathlib.Path(info.module_finder.path, f'{info.name}.py').read_text(encoding='utf-8')
    docstring = ast.get_docstring(ast.parse(source)) or ''
    found[info.name.replace('_', '-')] = docstring.partition('\n')[0]
  return found


def help_text() -> str:
  """What `tuna-jax --help` prints."""
  table = verbs()
  width = max(map(len, table), default=0)
  lines = [f'  {name:<{width}}  {summary}' for name, summary in table.items()]
  return '\n'.join(
    [
      'usage: tuna-jax VERB [--flags]',
      '',
      'verbs:',
      *lines,
      '',
      '`tuna-jax VERB --help` lists the flags of a verb.',
    ]
  )


def main():
  """The console command. Exits 2, with one line on stderr, on anything the user got wrong."""
  with app.plain_errors('tuna-jax'):
    _main()


def _main():
  arguments = sys.argv[1:]
  if not arguments:
    print(help_text(), file=sys.stderr)
    sys.exit(app.EXIT_USAGE)
  verb = arguments[0]
  if verb in ('--help', '-h', '-help', 'help'):
    print(help_text(), flush=True)
    return
  if verb == '--version':
    print(importlib.metadata.version('tuna_jax'))
    return
  if verb.startswith('-'):
    app.fail('tuna-jax', f'{verb}: the verb comes first, as in `tuna-jax VERB {verb}`')
  if verb not in verbs():
    app.fail(
      'tuna-jax', f'unknown verb {verb!r}{nearest(verb, verbs())}; `tuna-jax --help` lists them'
    )
  sys.argv = [verb, *arguments[1:]]
  runpy.run_module(f'tuna_jax.cli.{verb.replace("-", "_")}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
