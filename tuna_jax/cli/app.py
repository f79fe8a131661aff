"""What every verb shares: checked flags and arguments; a mistake is one line and exit code 2.

A verb is a module that defines absl flags and `main(argv)`, and ends with

    if __name__ == '__main__':
      app.run(main, positional=('t2i|edit', 'PATH?'))

Its docstring's first line is its summary in `tuna-jax --help`, the whole docstring its own
`--help`. This module imports neither jax nor numpy, so that help and errors come at once.
"""

import functools
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import app as absl_app
from absl import flags
from absl import logging as absl_logging
from ml_collections.config_flags import config_flags

from tuna_jax.cli import config_files
from tuna_jax.config import UserError, nearest

flags.disclaim_key_flags()  # flags that a function of this module defines are the calling verb's

EXIT_USAGE = 2  # the person must change something: never worth a retry
EXIT_RETRY = (
  75  # EX_TEMPFAIL: saved after a preemption; the launch scripts run the same command again
)
TRACEBACK = 'TUNA_JAX_TRACEBACK'  # set to 1, errors of the user's making keep their traceback

# Mistakes of the person at the keyboard: one line. All else is a fault of ours, with a traceback.
USERS = (
  UserError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError
)  # fmt: skip

PLAIN_TYPES = {'int': 'an integer', 'float': 'a number', 'bool': 'true or false'}


def fail(program: str, message: str):
  """Prints one line on stderr and exits with EXIT_USAGE."""
  print(f'{program}: {message}', file=sys.stderr)
  sys.exit(EXIT_USAGE)


def run(main: Callable[[Sequence[str]], object], *, positional: Sequence[str] = ()):
  """Parses sys.argv and exits with what `main([program, *positional arguments])` returns.

  Args:
    main: the verb. Raises UserError for what the user must change.
    positional: what may stand beside the flags, in order. 'a|b' is a choice, 'PATH' anything; a
      trailing '?' makes it optional, and a trailing '*' in the last place takes any number.

  Exits 2 with one line on stderr if a flag, an argument, a config file or a config field is wrong.
  """
  module = sys.modules[main.__module__]
  program = f'tuna-jax {pathlib.Path(module.__file__).stem}'

  def parse(argv):
    if any(a in ('--help', '-h', '-help', '--helpshort') for a in config_files.before_dashes(argv)):
      print(_help(module, program, positional, argv))
      sys.exit(0)
    if any(a in ('--helpfull', '-helpfull') for a in config_files.before_dashes(argv)):
      print(flags.FLAGS.get_help())
      sys.exit(0)
    try:
      argv = config_files.resolve(argv, _config_flags())
      sys.argv = argv  # ml_collections reads the overrides from here
      program_and_rest = _parse_flags(argv)
      _check_positional(program_and_rest[1:], positional)
    except UserError as error:
      fail(program, str(error))
    return program_and_rest

  absl_app.run(functools.partial(_guard, main, program), flags_parser=parse)


def define_distributed():
  """Defines the flags by which a verb joins the other processes of its run.

  --coordinator, --num_processes, --process_id, --init_timeout_s and --expect_processes; each may
  also come from the environment (TUNA_COORDINATOR, ...), which is how the launch scripts pass them
  to every host with one command line; the flag wins. Returns the function that joins the run, which
  `main` calls first.
  """
  env = os.environ.get
  flags.DEFINE_string(
    'coordinator',
    env('TUNA_COORDINATOR'),
    'host:port of process 0. Not needed on Cloud TPU, GKE '
    'and Slurm, which know their processes. Environment: TUNA_COORDINATOR.',
  )
  flags.DEFINE_integer(
    'num_processes',
    env('TUNA_NUM_PROCESSES'),
    'Processes in the run, with --coordinator. Environment: TUNA_NUM_PROCESSES.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'process_id',
    env('TUNA_PROCESS_ID'),
    'The number of this process, from 0, with --coordinator. Environment: TUNA_PROCESS_ID.',
    lower_bound=0,
  )
  flags.DEFINE_float(
    'init_timeout_s',
    env('TUNA_INIT_TIMEOUT_S', '1800'),
    'Seconds to wait for the other processes. Environment: TUNA_INIT_TIMEOUT_S.',
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    'expect_processes',
    env('TUNA_EXPECT_PROCESSES'),
    'Refuse to start with another number of '
    'processes, and name those missing. Environment: TUNA_EXPECT_PROCESSES.',
    lower_bound=1,
  )
  return _join


def _join():
  """Joins the run that the flags describe; names missing processes and exits with EXIT_RETRY."""
  from tuna_jax.train import distributed  # imports jax

  f = flags.FLAGS
  try:
    distributed.initialize(
      f.coordinator, f.num_processes, f.process_id, f.init_timeout_s, f.expect_processes
    )
  except distributed.MissingProcesses as error:
    print(f'tuna-jax: {error}', file=sys.stderr)
    sys.exit(EXIT_RETRY)


def _guard(main, program, argv):
  if not flags.FLAGS['verbosity'].present:
    # absl.app says INFO by default, and libraries beneath us talk a page about every checkpoint.
    absl_logging.set_verbosity(absl_logging.WARNING)
  try:
    return main(argv)
  except BrokenPipeError:  # the reader of our output has left, as `head` does
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except USERS as error:
    if os.environ.get(TRACEBACK) == '1':
      raise
    fail(program, str(error))


# ---- flags


def _parse_flags(argv):
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    raise UserError(
      f'unknown flag --{error.flagname}{nearest(error.flagname, _all_names())}'
    ) from None
  except flags.IllegalFlagValueError as error:
    raise UserError(_illegal_value(str(error))) from None
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(str(error)) from None


def _all_names():
  own = {flag.name for flag in _own_flags()}
  return [
    *own,
    *(f'no{n}' for n in own if flags.FLAGS[n].boolean),
    'help',
    'helpfull',
    'flagfile',
    'verbosity',
  ]


def _own_flags():
  return flags.FLAGS.get_key_flags_for_module(sys.argv[0])


def _illegal_value(message: str) -> str:
  """absl's text for a bad value, in terms of what was wanted."""
  missing = re.match(r'flag --([\w.]+)=None: Flag --\1 must have a value other than None', message)
  if missing:
    return f'--{missing[1]} is required'
  found = re.match(r'flag --([\w.]+)=(.*?): (.*)', message, re.DOTALL)
  if not found:
    return message
  name, value, reason = found.groups()
  flag = flags.FLAGS[name]
  wanted = PLAIN_TYPES.get(flag.parser.flag_type())
  if wanted and not re.search(r'\bis not\b', reason):
    reason = f'expected {wanted}'
  if isinstance(flag, flags.EnumFlag):
    choices = flag.parser.enum_values
    reason = f'expected one of {"|".join(choices)}{nearest(value, choices)}'
  return f'--{name}={value}: {reason}'


def _config_flags():
  return [flag for flag in _own_flags() if config_flags.is_config_flag(flag)]


def _check_positional(arguments, wanted):
  usage = ' '.join(wanted)
  for i, argument in enumerate(arguments):
    spec = wanted[min(i, len(wanted) - 1)] if wanted else ''
    if not wanted or (i >= len(wanted) and not spec.endswith('*')):
      hint = f'; did you mean --{argument}?' if argument.partition('=')[0] in flags.FLAGS else ''
      raise UserError(
        f'unexpected argument {argument!r}{hint or (f"; expected {usage}" if usage else "")}'
      )
    choices = spec.rstrip('?*').split('|')
    if spec == spec.lower() and argument not in choices:
      raise UserError(
        f'unknown argument {argument!r}{nearest(argument, choices)}; expected {"|".join(choices)}'
      )
  missing = [spec for spec in wanted[len(arguments) :] if not spec.endswith(('?', '*'))]
  if missing:
    raise UserError(f'missing argument {missing[0]}')


# ---- help


def _help(module, program, positional, argv) -> str:
  usage = ' '.join(
    ['usage:', program, *(f'[{p}]' if p[-1] in '?*' else p for p in positional), '[--flags]']
  )
  lines = [usage, '', (module.__doc__ or '').strip(), '', 'flags:']
  for flag in sorted(_own_flags(), key=lambda flag: flag.name):
    lines += _flag_help(flag)
  for flag in _config_flags():
    lines += _config_help(flag, argv)
  lines += [
    '',
    '--helpfull lists the flags of every library as well; --flagfile=FILE reads flags from a file.',
  ]
  return '\n'.join(lines)


def _flag_help(flag):
  kind = 'config.py[:argument]' if config_flags.is_config_flag(flag) else flag.flag_type()
  if isinstance(flag, flags.EnumFlag):
    kind = '|'.join(flag.parser.enum_values)
  head = f'  --[no]{flag.name}' if flag.boolean else f'  --{flag.name}=<{kind}>'
  required = any(
    name == flag.name
    for validator in flag.validators
    for name in validator.get_flags_names()
    if 'must have a value other than None' in str(validator.message)
  )
  if required:
    tail = 'required'
  elif flag.default is None:
    tail = 'default: none'
  else:
    tail = f'default: {str(flag.default).lower() if flag.boolean else flag.default}'
  body = textwrap.wrap(f'{" ".join((flag.help or "").split())} ({tail})', 90)
  return [head, *(f'      {line}' for line in body)]


def _config_help(flag, argv):
  where = config_files.index_of(argv, flag.name)
  if where is None or '=' not in argv[where]:
    return [
      '',
      (
        f'--{flag.name}.FIELD=VALUE overrides one field of the config; '
        f'`--{flag.name}=FILE --help` lists the fields of FILE.'
      ),
    ]
  try:
    config = config_files.load(flag, argv[where].partition('=')[2])
  except UserError as error:
    return ['', str(error)]
  return [
    '',
    f'fields of {argv[where]}:',
    *(f'  --{flag.name}.{n}={v!r}' for n, v in config_files.fields(config).items()),
  ]
