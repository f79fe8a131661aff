"""An ordinary (not editable) installation, used from a folder that has a `configs/` of its own."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('tuna_jax', 'configs')
IGNORE = shutil.ignore_patterns('__pycache__')
OWN = """
from tuna_jax.configs import stage1


def get_config(size='tiny'):
  config = stage1.get_config(size)
  config.steps = 17
  return config
"""


def run(*command, cwd):
  environment = {n: v for n, v in os.environ.items() if n not in ('PYTHONPATH', 'VIRTUAL_ENV')}
  done = subprocess.run(
    list(map(str, command)), cwd=cwd, text=True, capture_output=True, check=False, env=environment
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """(the environment's bin/, a folder to work in); the wheel's dependencies are those of here."""
  folder = tmp_path_factory.mktemp('install')
  source = folder / 'source'
  for name in PACKAGES:
    shutil.copytree(ROOT / name, source / name, ignore=IGNORE)
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
  run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, source, cwd=folder)
  venv.create(folder / 'env', with_pip=True)
  python = folder / 'env' / 'bin' / 'python'
  here = sysconfig.get_paths()['purelib']
  site = run(python, '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])', cwd=folder)
  # This environment may itself take packages from another one.
  shared = [p for p in sys.path if p.endswith('site-packages') and p != here]
  pathlib.Path(site.strip(), 'here.pth').write_text('\n'.join([here, *shared]) + '\n')
  (wheel,) = folder.glob('*.whl')
  run(python, '-m', 'pip', '-q', 'install', '--no-deps', wheel, cwd=folder)
  work = folder / 'work'
  (work / 'configs').mkdir(parents=True)
  (work / 'configs' / '__init__.py').touch()
  (work / 'configs' / 'mine.py').write_text(OWN)
  return python.parent, work


@pytest.mark.slow
def test_the_commands_find_their_own_configs_and_those_of_the_folder(installed):
  bin, work = installed
  command = bin / 'tuna-jax'
  assert 'train' in run(command, '--help', cwd=work)
  stage = run(command, 'train', '--config=configs/stage1.py:tiny', '--help', cwd=work)
  assert "--config.stage='stage1'" in stage
  mine = run(command, 'train', '--config=configs/mine.py', '--help', cwd=work)
  assert "--config.stage='stage1'" in mine and '--config.steps=17' in mine


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_configs_and_its_templates(installed):
  bin, work = installed
  where = 'import tuna_jax, tuna_jax.configs as c; print(tuna_jax.__path__[0], c.__path__[0])'
  for place, name in zip(run(bin / 'python', '-c', where, cwd=work).split(), PACKAGES):
    files = [p for p in (ROOT / name).rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    missing = [p for p in files if not (pathlib.Path(place) / p.relative_to(ROOT / name)).exists()]
    assert files and not missing and work not in pathlib.Path(place).parents
