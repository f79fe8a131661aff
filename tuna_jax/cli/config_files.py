"""Finds the file of a --config flag and checks every --config.FIELD=VALUE against it.

This comes before ml_collections, which answers a misspelt field with a traceback; here it is one
line with the nearest right name.
"""

import contextlib
import os
import pathlib
import re
from importlib.util import find_spec

from tuna_jax.config import UserError, nearest

# holds configs/ in a checkout, and in an installation too
ROOT = pathlib.Path(*find_spec('tuna_jax.configs').submodule_search_locations).parent


def resolve(argv, config_flags):
  """argv with every config path made findable, once files and overrides have been checked.

  Raises UserError naming the nearest file or field.
  """
  argv = list(argv)
  for flag in config_flags:
    where = index_of(argv, flag.name)
    value = flag.default if where is None else value_of(argv, flag.name)
    if where is not None and value is None:
      raise UserError(f'--{flag.name} needs a value, as in --{flag.name}=configs/stage1.py:tiny')
    if where is not None and '=' not in argv[where]:
      argv[where : where + 2] = [f'{argv[where]}={value}']
    overrides = [
      _flag_name(a) for a in before_dashes(argv) if re.match(rf'--?(no)?{flag.name}\.', a)
    ]
    if value is None:
      if overrides:
        raise UserError(f'--{overrides[0]} overrides a field of --{flag.name}, which is not given')
      continue
    path = _find_file(flag.name, value)
    if where is not None:
      argv[where] = f'--{flag.name}={path}'
    config = load(flag, path)
    for override in overrides:
      _check_field(flag.name, override.partition('.')[2], config)
  return argv


def index_of(argv, name: str) -> int | None:
  """Where argv gives the flag `name` (the last time, as absl reads it)."""
  found = [i for i, a in enumerate(argv) if re.match(rf'--?{name}(=|$)', a)]
  return found[-1] if found else None


def _find_file(name: str, value: str) -> str:
  """The config path as given, or, where the working directory has none, beside the package."""
  path, colon, argument = value.partition(':')
  for candidate in (pathlib.Path(path), ROOT / path):
    with contextlib.suppress(OSError):  # a name that is longer than file systems take
      if candidate.is_file():
        return f'{candidate}{colon}{argument}'
  folder = os.path.dirname(path) or '.'
  names = {str(p) for p in pathlib.Path('configs').glob('*.py')}
  for place in (pathlib.Path(folder), ROOT / folder):
    names |= {os.path.join(folder, p.name) for p in place.glob('*.py')}
  raise UserError(f'--{name}={value}: there is no file {path!r}{nearest(path, sorted(names))}')


def load(flag, path: str):
  """The config of `path`, 'FILE.py[:argument]', without overrides; UserError in its own words."""
  path = _find_file(flag.name, path)
  try:
    config = flag.parser.parse(path)
    config.keys()  # a file that failed to load answers with an OSError only now
  except OSError as error:
    raise UserError(f'--{flag.name}={path}: {error.__cause__ or error}') from None
  except (TypeError, ValueError) as error:
    raise UserError(f'--{flag.name}={path}: {error.__context__ or error}') from None
  except AttributeError:
    raise UserError(f'--{flag.name}={path}: expected Python code with a get_config') from None
  return config


def _check_field(name: str, field: str, config):
  """Refuses an override of a field that the config has not, with the nearest one that it has."""
  every = fields(config)
  plain = field.partition('[')[
    0
  ]  # the items of a tuple are checked by the parser of ml_collections
  if plain in every or any(known.startswith(f'{plain}.') for known in every):
    return
  for known, value in every.items():
    if plain.startswith(f'{known}.'):
      found = type(value).__name__
      raise UserError(f'--{name}.{field}: {known} is of type {found} and has no fields')
  same = [known for known in every if known.rpartition('.')[2] == plain.rpartition('.')[2]]
  near = nearest(plain, same or every) or (nearest(same[0], same) if same else '')
  raise UserError(f'--{name}.{field}: no such field{near}')


def fields(config, prefix: str = '') -> dict[str, object]:
  """Every leaf of a config as {'optimizer.lr': value}."""
  found = {}
  for key in config:
    value = config[key]
    if hasattr(value, 'keys'):
      found |= fields(value, f'{prefix}{key}.')
    else:
      found[f'{prefix}{key}'] = value
  return found


def help_of(flag, argv) -> list[str]:
  """What --help says of the fields of a config: all of them, if argv names its file."""
  value = value_of(argv, flag.name)
  if value is None:
    return [
      '',
      f'--{flag.name}.FIELD=VALUE overrides one field of the config; '
      f'`--{flag.name}=FILE --help` lists the fields of FILE.',
    ]
  found = fields(load(flag, value))
  lines = [f'  --{flag.name}.{name}={value!r}' for name, value in found.items()]
  return ['', f'fields of --{flag.name}={value}:', *lines]


def value_of(argv, name: str) -> str | None:
  """The value that argv gives the flag `name`, as --name=value or --name value."""
  where = index_of(argv, name)
  if where is None:
    return None
  _, equals, value = argv[where].partition('=')
  return value if equals else argv[where + 1] if where + 1 < len(argv) else None


def before_dashes(argv) -> list[str]:
  """The arguments that may be flags: those before a bare '--'."""
  arguments = list(argv[1:])
  return arguments[: arguments.index('--')] if '--' in arguments else arguments


def _flag_name(argument: str) -> str | None:
  """'--config.optimizer.lr=3' -> 'config.optimizer.lr'; None if this is not a flag."""
  found = re.match(r'--?([A-Za-z_][\w.\-\[\]]*)', argument)
  return found[1] if found else None
