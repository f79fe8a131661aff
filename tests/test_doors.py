"""Dependencies between packages form one staircase (docs/design.md): read from all imports of the
source, those inside functions included.
"""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# From the bottom up. A package imports from its own step and from the steps below, except that
# packages which share a step do not import each other.
STAIRS = (
  ('ranges', 'config', 'mappings', 'sizes', 'tree', 'batch', 'files', 'stopping'),
  ('flow', 'losses', 'sharding', 'chips'),
  ('models', 'data'),
  ('weights',),
  ('sample',),
  ('train',),
  ('evals',),
  ('tools', 'benchmarks', 'serve'),
  ('parity', 'toy'),
  ('small',),
  ('configs',),
  ('lab',),
  ('cli',),
)
OPEN = {'__init__', '__main__'}  # of the package itself: the public names and the command
SHARED = set(STAIRS[0])  # these may import each other
STEP = {package: number for number, step in enumerate(STAIRS) for package in step}

# The model's files in the order data flows; each imports only files before it.
MODELS = (
  *('flash', 'attention', 'rope', 'layers', 'vae_layers', 'vae', 'vision', 'decoder', 'flow_head'),
  *('tuna', 'shapes', 'flops'),
)


def modules():
  for package in ('tuna_jax', 'configs'):
    for path in sorted((ROOT / package).rglob('*.py')):
      parts = path.relative_to(ROOT).with_suffix('').parts
      yield '.'.join(parts[1:] if package == 'tuna_jax' else parts), path


@functools.cache
def imports(path: pathlib.Path) -> frozenset[str]:
  """Every module that the file imports, absolute: 'jax.numpy', 'tuna_jax.models.rope'."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: imports are absolute'
      found |= {
        f'{node.module}.{alias.name}' if is_module(node.module, alias.name) else node.module
        for alias in node.names
      }
  return frozenset(found)


def is_module(package: str, name: str) -> bool:
  folder = ROOT.joinpath(*package.replace('tuna_jax.configs', 'configs').split('.'))
  return (folder / f'{name}.py').exists() or (folder / name).is_dir() or (package, name) == CONFIGS


CONFIGS = ('tuna_jax', 'configs')
ALL = dict(modules())
OURS = {
  (module, target.removeprefix('tuna_jax.'))
  for module, path in ALL.items()
  for target in imports(path)
  if target.startswith('tuna_jax.')
}


def package_of(module: str) -> str:
  return module.partition('.')[0]


def test_every_module_stands_on_a_step():
  assert {package_of(module) for module in ALL} - OPEN == set(STEP)


def test_no_package_imports_upwards_or_sideways():
  wrong = []
  for module, target in sorted(OURS):
    here, there = package_of(module), package_of(target)
    if here in {there, *OPEN} or {here, there} <= SHARED:
      continue
    if STEP[there] >= STEP[here]:
      wrong.append(f'{module} imports {target}')
  assert not wrong


def test_there_is_no_circle_of_modules():
  below = {module: {t for m, t in OURS if m == module and t in ALL} for module in ALL}
  done: set[str] = set()
  while ready := {m for m in below if m not in done and below[m] <= done}:
    done |= ready
  assert not set(below) - done


def test_models_import_only_the_files_before_them():
  for module, target in OURS:
    if package_of(module) == 'models' and package_of(target) == 'models':
      here, there = (m.partition('.')[2] for m in (module, target))
      assert MODELS.index(there) < MODELS.index(here), f'{module} imports {target}'
  found = {m.partition('.')[2] for m in ALL if package_of(m) == 'models'}
  assert found - {'__init__'} == set(MODELS)


def third_party(name):
  """Modules that import the package `name`."""
  return {
    module for module, path in ALL.items() if any(i.split('.')[0] == name for i in imports(path))
  }


def test_no_file_exceeds_350_lines():
  assert not {module for module, path in ALL.items() if len(path.read_text().splitlines()) > 350}


def test_data_never_imports_jax():
  for package in ('jax', 'jaxlib', 'flax', 'optax', 'orbax'):
    assert not {m for m in third_party(package) if package_of(m) == 'data'}


@pytest.mark.parametrize('package', ['absl', 'ml_collections'])
def test_flags_and_config_dicts_stay_at_the_edge(package):
  assert {package_of(m) for m in third_party(package)} <= {'cli', 'configs'}


@pytest.mark.parametrize('package', ['torch', 'transformers', 'diffusers'])
def test_pytorch_is_never_imported(package):
  assert not third_party(package)
