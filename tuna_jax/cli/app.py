"""What every verb shares: checked flags and arguments; a mistake is one line and exit code 2.

A verb is a module that defines absl flags and `main(argv)`, and ends with

    if __name__ == '__main__':
      app.run(main, actions={'t2i': 'Draws a prompt.'}, positional=('PROMPT*',))

Its docstring's first line is its summary in `tuna-jax --help`, the whole docstring its own
`--help`. This module imports neither jax nor numpy, so help and errors come at once.
"""

import contextlib
import errno
import os
import pathlib
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence

from absl import app as absl_app
from absl import flags
from absl import logging as absl_logging
from ml_collections.config_flags import config_flags

from tuna_jax import stopping
from tuna_jax.cli import config_files
from tuna_jax.config import UserError, nearest

EXIT_USAGE = 2  # the person must change something: never worth a retry
EXIT_RETRY = stopping.AGAIN  # saved after a preemption; the launch scripts run the command again
TRACEBACK = 'TUNA_JAX_TRACEBACK'  # set to 1, errors of the user's making keep their traceback
# Mistakes of the person at the keyboard: one line. All else is a fault of ours, with a traceback.
USERS = (
  UserError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError
)  # fmt: skip
# What a machine runs out of, and what helps. Libraries say so in the words of the system.
SHORT = {
  errno.ENOSPC: 'make room',
  errno.EDQUOT: 'make room',
  errno.EFBIG: 'raise the limit of the size of files (ulimit -f)',
  errno.EROFS: 'choose a folder that can be written',
  errno.EMFILE: 'raise the limit of open files (ulimit -n)',
  errno.ENFILE: 'raise the limit of open files',
  errno.ENOMEM: 'give it more memory, or make batches, models or pictures smaller',
}
PLAIN_TYPES = {'int': 'an integer', 'float': 'a number', 'bool': 'true or false'}


def fail(program: str, message: str):
  """Prints one line on stderr and exits with EXIT_USAGE. A message may begin with the verb, and may
  hold characters that would break the line, of a path or of a file, which are printed as escapes.
  """
  shown = (c if c.isprintable() or c in '\n\t' else repr(c)[1:-1] for c in message)
  message = ''.join(shown)
  command, _, verb = program.partition(' ')
  named = verb and message.startswith((f'{verb} ', f'{verb}: '))
  with contextlib.suppress(OSError):  # no room for it either: the code still says whose mistake
    print(f'{command} {message}' if named else f'{program}: {message}', file=sys.stderr, flush=True)
  sys.exit(EXIT_USAGE)


@contextlib.contextmanager
def plain_errors(program: str):
  """Within the block a mistake of the user is one line and exit code 2, and a reader of our output
  that leaves early, as `head` does, is exit code 1 without a word."""
  try:
    yield
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except Exception as error:
    users = isinstance(error, (*USERS, flags.Error))
    said = str(error).removeprefix('ERROR:: ') if users else short_of(error)
    if os.environ.get(TRACEBACK) == '1' or not said:
      raise
    fail(program, said)


def short_of(error: BaseException) -> str:
  """What the machine ran out of, by an error or one that led to it; '' if of nothing."""
  seen = []
  while error is not None and error not in seen:
    seen.append(error)
    error = error.__cause__ or error.__context__
  for one in seen:
    number = errno.ENOMEM if isinstance(one, MemoryError) else getattr(one, 'errno', None)
    words = str(one)
    told = (n for n in SHORT if os.strerror(n) in words)
    if (number := number if number in SHORT else next(told, None)) is not None:
      named = re.search(r' file "([^"]+)"', words)  # as TensorStore says it
      file = getattr(one, 'filename', None) or (named and named[1])
      where = f'{file}: ' if file else ''
      return f'{where}{os.strerror(number)}; {SHORT[number]} and run the same command again'
  return ''


@contextlib.contextmanager
def extra(name: str):
  """Within the block, a package that is not there is a UserError that names the extra."""
  try:
    yield
  except ModuleNotFoundError as error:
    raise UserError(
      f"no package {error.name}: this needs the extra, pip install 'tuna_jax[{name}]', in a clone "
      f"pip install -e '.[{name}]'"
    ) from None


def run(
  main: Callable[[Sequence[str]], object],
  *,
  positional: Sequence[str] = (),
  actions: Mapping[str, str] | None = None,
  only: Mapping[str, Sequence[str]] | None = None,
):
  """Parses sys.argv and exits with what `main([program, *positional arguments])` returns.

  Args:
    main: the verb. Raises UserError for what the user must change.
    positional: what may stand beside the flags, in order. 'a|b' is a choice, 'PATH' anything; a
      trailing '?' makes it optional, and a trailing '*' in the last place takes any number.
    actions: {name: what it does} of a verb whose first argument is one of these.
    only: {flag: the actions that take it} of the flags that not every action takes.

  Exits 2 with one line on stderr if a flag, an argument, a config file or a config field is wrong,
  and with EXIT_RETRY if it is stopped by a signal (`stopping.Signals`).
  """
  module = sys.modules[main.__module__]
  program = f'tuna-jax {pathlib.Path(module.__file__).stem.replace("_", "-")}'
  actions, only = actions or {}, only or {}
  if actions:
    positional = ('|'.join(actions), *positional)

  def parse(argv):
    asked = config_files.before_dashes(argv)
    if any(a in ('--help', '-h', '-help', '--helpshort') for a in asked):
      action = asked[0] if asked[0] in actions else ''
      print(_help(module, program, positional, actions, only, action, argv), flush=True)
      sys.exit(0)
    if any(a in ('--helpfull', '-helpfull') for a in asked):
      print(flags.FLAGS.get_help(), flush=True)
      sys.exit(0)
    argv = config_files.resolve(argv, _config_flags())
    sys.argv = argv  # ml_collections reads the overrides from here
    arguments = _parse_flags(argv)
    _check_positional(arguments[1:], positional)
    for name, takers in only.items():
      if flags.FLAGS[name].present and arguments[1] not in takers:
        raise UserError(f'{arguments[1]}: takes no --{name}, which is for {" and ".join(takers)}')
    return arguments

  def quietly(argv):
    if not flags.FLAGS['verbosity'].present:
      # absl.app says INFO by default, and libraries log a page about every checkpoint.
      absl_logging.set_verbosity(absl_logging.WARNING)
    try:
      code = main(argv)
    except USERS:
      if distributed := _several():
        distributed.leave(well=False)
      raise
    except Exception:
      if distributed := _several():
        traceback.print_exc()
        distributed.blame()
        distributed.leave(well=False)
      raise
    sys.stdout.flush()
    stopping.ignore()
    if distributed := _several():
      distributed.leave(well=True)
    return code

  stopping.install()
  try:
    with plain_errors(program):
      absl_app.run(quietly, flags_parser=parse)
  except stopping.Stopped as stopped:
    print(f'{program}: {stopped}', file=sys.stderr)
    _leave(EXIT_RETRY)


def _leave(code: int):
  """Exits. A process that works alone does not wait for its threads, of which one may hang in
  reading; several processes of one run part from each other first."""
  stopping.ignore()
  if distributed := _several():
    distributed.leave(well=True)
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _several():
  """The module that knows the other processes of the run, if there are any."""
  jax = sys.modules.get('jax')
  several = jax is not None and jax.distributed.is_initialized()
  return sys.modules.get('tuna_jax.train.distributed') if several else None


# ---- flags

_TEXT = '\0'  # stands before an argument that begins with a dash and is no flag, as '-5 degrees'


def _parse_flags(argv):
  try:
    marked = [_TEXT + a if _is_text(a, argv[i]) else a for i, a in enumerate(argv[1:])]
    arguments = flags.FLAGS([argv[0], *marked])
  except flags.UnrecognizedFlagError as error:
    near = nearest(error.flagname, _all_names())
    raise UserError(
      f'unknown flag --{error.flagname}{near or "; text that begins with a dash goes after --"}'
    ) from None
  except flags.IllegalFlagValueError as error:
    raise UserError(_illegal_value(str(error))) from None
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(str(error)) from None
  return [a.removeprefix(_TEXT) for a in arguments]


def _is_text(argument: str, before: str) -> bool:
  """Whether an argument cannot be a flag although it begins with a dash, nor the value of one."""
  if not argument.startswith('-') or re.match(r'--?[A-Za-z_][\w.\-\[\]]*(=|$)|--?$', argument):
    return False
  name = before.lstrip('-')
  return not (before.startswith('-') and name in flags.FLAGS and not flags.FLAGS[name].boolean)


def _all_names():
  own = {flag.name for flag in _own_flags()}
  negated = [f'no{name}' for name in own if flags.FLAGS[name].boolean]
  return [*own, *negated, 'help', 'helpfull', 'flagfile', 'verbosity']


def _own_flags():
  return flags.FLAGS.get_key_flags_for_module(sys.argv[0])


def _config_flags():
  return [flag for flag in _own_flags() if config_flags.is_config_flag(flag)]


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


def _check_positional(arguments, wanted):
  usage = ' '.join(wanted)
  for i, argument in enumerate(arguments):
    spec = wanted[min(i, len(wanted) - 1)] if wanted else ''
    if not wanted or (i >= len(wanted) and not spec.endswith('*')):
      hint = f'; did you mean --{argument}?' if argument.partition('=')[0] in flags.FLAGS else ''
      expected = hint or (f'; expected {usage}' if usage else '')
      raise UserError(f'unexpected argument {argument!r}{expected}')
    choices = spec.rstrip('?*').split('|')
    if spec == spec.lower() and argument not in choices:
      near = nearest(argument, choices)
      raise UserError(f'unknown argument {argument!r}{near}; expected {"|".join(choices)}')
  missing = [spec for spec in wanted[len(arguments) :] if not spec.endswith(('?', '*'))]
  if missing:
    raise UserError(f'missing argument {missing[0]}')


# ---- help


def _help(module, program, positional, actions, only, action, argv) -> str:
  """Of the verb, or of one of its actions: then what the action does, and the flags it takes."""
  shown = {'?': '[{}]', '*': '[{} ...]'}
  places = [shown.get(p[-1], '{}').format(p.rstrip('?*')) for p in positional]
  if action:
    text = [actions[action]]
    places[0] = action
  else:
    text = [(module.__doc__ or '').strip()]
    if actions:
      width = max(map(len, actions))
      text += ['', 'actions:', *(f'  {name:{width}}  {what}' for name, what in actions.items())]
      text += ['', f'`{program} ACTION --help` lists the flags that an action takes.']
  lines = [' '.join(['usage:', program, *places, '[--flags]']), '', *text, '', 'flags:']
  for flag in sorted(_own_flags(), key=lambda flag: flag.name):
    takers = only.get(flag.name, actions)
    if not action or action in takers:
      lines += _flag_help(flag, '' if action or flag.name not in only else ' and '.join(takers))
  for flag in _config_flags():
    if action and action not in only.get(flag.name, actions):
      continue
    lines += config_files.help_of(flag, argv)
  lines += ['', '--helpfull lists the flags of every library as well.']
  return '\n'.join(lines)


def _flag_help(flag, takers: str):
  kind = 'config.py[:argument]' if config_flags.is_config_flag(flag) else flag.flag_type()
  if isinstance(flag, flags.EnumFlag):
    kind = '|'.join(flag.parser.enum_values)
  head = f'  --[no]{flag.name}' if flag.boolean else f'  --{flag.name}=<{kind}>'
  required = any(
    flag.name in validator.get_flags_names() and 'other than None' in str(validator.message)
    for validator in flag.validators
  )
  default = str(flag.default).lower() if flag.boolean else flag.default
  tail = 'required' if required else f'default: {"none" if default in (None, "") else default}'
  tail = f'for {takers}; {tail}' if takers else tail
  text = re.sub(r'^<[^>]*>: ', '', flag.help)  # absl puts the choices of an enum before its help
  body = textwrap.wrap(f'{" ".join(text.split())} ({tail})', 90)
  return [head, *(f'      {line}' for line in body)]
