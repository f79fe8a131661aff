"""The frame of the command line, held with a scratch verb in real processes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tuna_jax.cli import app, config_files

SCRATCH = '''\
"""Greets the world a number of times.

A longer explanation.
"""
from absl import flags
from ml_collections import config_flags

from tuna_jax.cli import app, options
from tuna_jax.config import UserError

_TIMES = flags.DEFINE_integer('times', 3, 'How often, in greetings.')
_LOUD = flags.DEFINE_bool('loud', False, 'Whether to shout.')
_COLOUR = flags.DEFINE_enum('colour', 'red', ['red', 'green'], 'The ink.')
_NAME = flags.DEFINE_string('name', None, 'Whom to greet.', required=True)
join = options.define_distributed()
_CONFIG = config_flags.DEFINE_config_file('config', None, 'A config file.')


def main(argv):
  if _NAME.value == 'all':
    join()
  if _NAME.value == 'nobody':
    raise UserError('nobody: cannot be greeted')
  if _NAME.value == 'bug':
    max([])
  if _NAME.value == 'file':
    pathlib.Path('gone.txt').read_text()
  if _NAME.value == 'again':
    return app.EXIT_RETRY
  if _CONFIG.value is not None:
    print('lr', _CONFIG.value.optimizer.lr)
  print(argv[1:], _TIMES.value, _LOUD.value, _COLOUR.value, _NAME.value)


import pathlib
if __name__ == '__main__':
  app.run(
    main,
    actions={'one': 'Greets once.', 'two': 'Greets twice.'},
    positional=('PATH?',),
    only={'loud': ('two',)},
  )
'''

CONFIG = """\
import ml_collections


def get_config(size='tiny'):
  if size not in ('tiny', '2b'):
    raise ValueError(f'unknown size {size!r}: expected one of tiny, 2b')
  optimizer = {'lr': 1e-4, 'clip': 1.0}
  return ml_collections.ConfigDict({'steps': 10, 'optimizer': optimizer, 'data': {'seed': 0}})
"""

REAL = 'from tuna_jax.cli.main import main; main()'
WITH_SCRATCH = 'import sys, tuna_jax.cli as c; c.__path__.append(sys.argv.pop(1)); ' + REAL


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cli')
  (folder / 'verbs').mkdir()
  (folder / 'verbs' / 'greet.py').write_text(SCRATCH)
  (folder / 'configs').mkdir()
  (folder / 'configs' / 'stage2.py').write_text(CONFIG)
  return folder


def command(folder, *arguments, **environment):
  root = pathlib.Path(__file__).parents[2]
  return subprocess.run(
    [sys.executable, '-c', WITH_SCRATCH, str(folder / 'verbs'), *arguments],
    cwd=folder,
    text=True,
    capture_output=True,
    check=False,
    env=os.environ | {'PYTHONPATH': str(root)} | environment,
  )


def refused(folder, *arguments) -> str:
  """The one line that a refusal prints."""
  done = command(folder, *arguments)
  assert (done.returncode, done.stdout) == (2, ''), done
  lines = done.stderr.splitlines()
  assert len(lines) == 1, done.stderr
  return lines[0]


def greet(folder, *arguments):
  return refused(folder, 'greet', 'one', '--name=you', *arguments)


def test_help_lists_each_verb_with_the_first_line_of_its_docstring(folder):
  done = command(folder, '--help')
  assert done.returncode == 0
  assert re.search(r'^  greet +Greets the world a number of times\.$', done.stdout, re.MULTILINE)


def test_help_of_the_frame_imports_no_verb(folder):
  (folder / 'verbs' / 'broken.py').write_text('"""Breaks when imported."""\nraise RuntimeError\n')
  try:
    assert 'Breaks when imported.' in command(folder, '--help').stdout
  finally:
    (folder / 'verbs' / 'broken.py').unlink()


def test_no_verb_is_a_usage_error(folder):
  done = command(folder)
  assert done.returncode == 2 and 'usage: tuna-jax VERB' in done.stderr


def test_unknown_verb_names_the_nearest(folder):
  assert refused(folder, 'gret').startswith("tuna-jax: unknown verb 'gret'; nearest is 'greet'")


def test_a_flag_before_the_verb_is_refused(folder):
  assert 'the verb comes first' in refused(folder, '--times=3', 'greet')


def test_a_verb_gets_its_flags_and_arguments(folder):
  done = command(folder, 'greet', 'two', 'x.txt', '--name=you', '--times', '5', '--loud')
  assert (done.returncode, done.stdout) == (0, "['two', 'x.txt'] 5 True red you\n"), done.stderr


def test_python_m_is_the_same_command(folder):
  run = (
    'import runpy, sys, tuna_jax.cli as c; c.__path__.append(sys.argv.pop(1)); '
    'runpy.run_module("tuna_jax.cli.greet", run_name="__main__", alter_sys=True)'
  )
  done = subprocess.run(
    [sys.executable, '-c', run, str(folder / 'verbs'), 'one', '--nmae=you'],
    cwd=folder,
    text=True,
    check=False,
    capture_output=True,
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
  )
  assert done.stderr == refused(folder, 'greet', 'one', '--nmae=you') + '\n'


def test_help_of_a_verb_shows_its_own_flags_only(folder):
  done = command(folder, 'greet', '--help')
  assert done.returncode == 0
  for text in (
    'usage: tuna-jax greet one|two [PATH] [--flags]',
    'A longer explanation.',
    '--times=<int>',
    'How often, in greetings. (default: 3)',
    '--[no]loud',
    '(for two; default: false)',
    '--colour=<red|green>',
    'Whom to greet. (required)',
    '--config=<config.py[:argument]>',
  ):
    assert text in done.stdout, done.stdout
  for noise in ('--verbosity', '--logtostderr', '--pdb', '--only_check_args', '--help:', 'jax_'):
    assert noise not in done.stdout


def test_help_of_an_action_says_what_it_does_and_lists_its_flags_only(folder):
  one, two = (command(folder, 'greet', action, '--help').stdout for action in ('one', 'two'))
  assert 'usage: tuna-jax greet one [PATH] [--flags]' in one and 'Greets once.' in one
  assert 'A longer explanation.' not in one and 'Greets twice.' not in one
  assert '--[no]loud' in two and '--[no]loud' not in one and '--times=<int>' in one


def test_a_flag_of_another_action_is_refused(folder):
  assert greet(folder, '--loud') == 'tuna-jax greet: one: takes no --loud, which is for two'


def test_text_that_begins_with_a_dash_is_an_argument_if_it_cannot_be_a_flag(folder):
  done = command(folder, 'greet', 'one', '-5 degrees', '--name=you', '--times', '-3')
  assert done.stdout == "['one', '-5 degrees'] -3 False red you\n", done.stderr
  assert greet(folder, '-xyzzy').endswith(
    'unknown flag --xyzzy; text that begins with a dash goes after --'
  )
  assert "'-xyzzy'" in command(folder, 'greet', '--name=you', '--', 'one', '-xyzzy').stdout


@pytest.mark.parametrize(
  'arguments', ['--help', 'greet --help', 'greet --helpfull', 'greet one --name=you']
)
def test_a_reader_that_leaves_early_ends_the_command_without_a_word(folder, arguments):
  verb = f"{sys.executable} -c '{WITH_SCRATCH}' {folder / 'verbs'} {arguments}"
  done = subprocess.run(
    ['bash', '-c', f'{verb} | true'], cwd=folder, text=True, capture_output=True, check=False,
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
  )  # fmt: skip
  assert not done.stderr


def test_helpfull_shows_the_libraries_flags_too(folder):
  done = command(folder, 'greet', '--helpfull')
  assert done.returncode == 0 and '--verbosity' in done.stdout or '-v,--verbosity' in done.stdout


def test_help_lists_the_fields_of_a_given_config(folder):
  done = command(folder, 'greet', '--config=configs/stage2.py', '--help')
  assert '  --config.optimizer.lr=0.0001' in done.stdout


def test_unknown_flag_names_the_nearest(folder):
  assert greet(folder, '--tmies=3') == "tuna-jax greet: unknown flag --tmies; nearest is 'times'"


def test_wrong_type_says_what_was_wanted(folder):
  assert greet(folder, '--times=three') == 'tuna-jax greet: --times=three: expected an integer'


def test_wrong_choice_names_the_nearest(folder):
  line = greet(folder, '--colour=grene')
  assert line == "tuna-jax greet: --colour=grene: expected one of red|green; nearest is 'green'"


def test_required_flag_is_named(folder):
  assert refused(folder, 'greet', 'one') == 'tuna-jax greet: --name is required'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--name=you',), 'missing argument one|two'),
    (('tow', '--name=you'), "unknown argument 'tow'; nearest is 'two'; expected one|two"),
    (('one', 'a', 'b', '--name=you'), "unexpected argument 'b'; expected one|two PATH?"),
    (
      ('one', 'a', 'times=3', '--name=you'),
      "unexpected argument 'times=3'; did you mean --times=3?",
    ),
  ],
)
def test_positional_arguments_are_checked(folder, arguments, message):
  assert refused(folder, 'greet', *arguments) == f'tuna-jax greet: {message}'


def test_config_overrides_reach_the_verb(folder):
  done = command(
    folder,
    'greet',
    'one',
    '--name=you',
    '--config=configs/stage2.py:2b',
    '--config.optimizer.lr=3e-5',
  )
  assert done.stdout.startswith('lr 3e-05\n'), done.stderr


def test_config_path_may_stand_apart_from_its_flag(folder):
  done = command(
    folder,
    'greet',
    'one',
    '--name=you',
    '--config',
    'configs/stage2.py',
    '--config.optimizer.lr',
    '3e-5',
  )
  assert done.stdout.startswith('lr 3e-05\n'), done.stderr


@pytest.mark.parametrize(
  ('field', 'right'),
  [
    ('optimizer.rl', 'optimizer.lr'),
    ('optimiser.lr', 'optimizer.lr'),
    ('step', 'steps'),
    ('lr', 'optimizer.lr'),
  ],
)
def test_misspelt_config_field_names_the_nearest(folder, field, right):
  line = greet(folder, '--config=configs/stage2.py', f'--config.{field}=3')
  assert line == f"tuna-jax greet: --config.{field}: no such field; nearest is '{right}'"


def test_field_of_a_leaf_is_refused(folder):
  assert 'steps is of type int and has no fields' in greet(
    folder, '--config=configs/stage2.py', '--config.steps.x=3'
  )


def test_wrong_type_of_a_config_field_says_what_was_wanted(folder):
  line = greet(folder, '--config=configs/stage2.py', '--config.optimizer.lr=fast')
  assert line == 'tuna-jax greet: --config.optimizer.lr=fast: expected a number'


def test_missing_config_file_names_the_nearest(folder):
  line = greet(folder, '--config=configs/stag2.py:2b')
  assert line.endswith("there is no file 'configs/stag2.py'; nearest is 'configs/stage2.py'")


def test_an_error_of_the_config_file_keeps_its_own_words(folder):
  assert "unknown size '7c': expected one of tiny, 2b" in greet(
    folder, '--config=configs/stage2.py:7c'
  )


def test_override_without_a_config_is_refused(folder):
  assert greet(folder, '--config.steps=3').endswith(
    'overrides a field of --config, which is not given'
  )


def test_a_mistake_of_the_user_is_one_line(folder):
  assert (
    refused(folder, 'greet', 'one', '--name=nobody') == 'tuna-jax greet: nobody: cannot be greeted'
  )


def test_a_missing_file_is_one_line(folder):
  assert 'gone.txt' in refused(folder, 'greet', 'one', '--name=file')


def test_every_other_error_keeps_its_traceback_whoever_raised_it(folder):
  done = command(folder, 'greet', 'one', '--name=bug')
  assert done.returncode == 1 and 'Traceback' in done.stderr and 'ValueError: max()' in done.stderr


def test_the_traceback_of_a_users_error_can_be_asked_for(folder):
  done = command(folder, 'greet', 'one', '--name=nobody', TUNA_JAX_TRACEBACK='1')
  assert done.returncode == 1 and 'Traceback' in done.stderr


def test_the_value_of_main_is_the_exit_code(folder):
  assert command(folder, 'greet', 'one', '--name=again').returncode == 75


def test_help_and_errors_do_not_import_jax(folder):
  probe = WITH_SCRATCH.replace(
    'main()', '\ntry:\n  main()\nfinally:\n  assert "jax" not in sys.modules'
  )
  done = subprocess.run(
    [sys.executable, '-c', probe, str(folder / 'verbs'), 'greet', '--help'],
    cwd=folder,
    text=True,
    check=False,
    capture_output=True,
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
  )
  assert done.returncode == 0, done.stderr


def test_missing_processes_are_named_and_worth_a_retry(folder):
  done = command(
    folder,
    'greet',
    'one',
    '--name=all',
    TUNA_EXPECT_PROCESSES='2',
    JAX_PLATFORMS='cpu',
    TUNA_COORDINATOR='127.0.0.1:1',
    TUNA_NUM_PROCESSES='1',
    TUNA_PROCESS_ID='0',
  )
  assert done.returncode == 75 and 'expected 2 processes, the run has 1' in done.stderr, done.stderr
  assert 'missing: 1' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize(('value', 'shown'), [('x' * 300, 'x' * 300), ('\x85', r'\x85')])
def test_the_name_of_a_file_that_cannot_be_is_one_line(value, shown, capsys):
  with pytest.raises(SystemExit) as ended, app.plain_errors('tuna-jax train'):
    config_files._find_file('config', value)
  said = capsys.readouterr().err
  assert ended.value.code == 2 and len(said.splitlines()) == 1 and f'--config={shown}:' in said


def test_the_module_is_the_command():
  done = subprocess.run([sys.executable, '-m', 'tuna_jax', 'trian'], capture_output=True, text=True)
  assert done.returncode == 2 and "nearest is 'train'" in done.stderr


def test_a_mistake_is_2_where_its_line_cannot_be_printed():
  with open('/dev/full', 'w') as full:
    done = subprocess.run([sys.executable, '-m', 'tuna_jax.cli.ckpt', 'verify'], stderr=full)
  assert done.returncode == 2
