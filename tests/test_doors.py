"""Doors between rooms (DESIGN.md 2), read from all imports, those inside functions included."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODELS = (
  'attention',
  'rope',
  'layers',
  'vae',
  'vae_stream',
  'vision',
  'decoder',
  'flow_head',
  'tuna',
)  # pixels to velocity
CORE = ('config', 'tree', 'batch')

# What each room may import of ours, itself aside. `models` also go by the order above, see below.
DOORS = {
  **dict.fromkeys(CORE, CORE),
  'quick': (),
  'sharding': CORE,
  'flow': ('batch',),
  'losses': ('batch',),
  'models': ('config', 'batch', 'sharding'),
  'data': ('config', 'batch'),
  'weights': (*CORE, 'models', 'sharding'),
  'train': (*CORE, 'sharding', 'flow', 'losses', 'models', 'data', 'weights'),
  'sample': (*CORE, 'sharding', 'flow', 'models', 'data', 'weights'),
  'evals': (*CORE, 'data', 'sample'),
  'cli': (
    *CORE,
    'sharding',
    'flow',
    'losses',
    'models',
    'data',
    'weights',
    'train',
    'sample',
    'evals',
    'configs',
    'parity',
  ),
  'configs': ('config', 'data', 'train'),
  # An instrument, not a part: it holds whole passes, training and sampling included, against
  # the official ones.
  'parity': (*CORE, 'quick', 'flow', 'losses', 'models', 'data', 'weights', 'train', 'sample'),
}

# What stands open beyond that: (module, what it imports), each with its reason.
OPEN = {
  # Runs and weights directories are one format, written and read in one place.
  ('sample.open', 'train.checkpoint'),
}


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
        f'{node.module}.{alias.name}' if is_package(node.module, alias.name) else node.module
        for alias in node.names
      }
  return frozenset(found)


def is_package(module: str, name: str) -> bool:
  folder = ROOT.joinpath(*module.split('.'))
  return (folder / f'{name}.py').exists() or (folder / name).is_dir()


def ours(path):
  """Imports of this project: 'models.rope', 'config', 'configs.common'."""
  for name in imports(path):
    first, _, rest = name.partition('.')
    if first == 'tuna_jax' and rest:
      yield rest
    elif first == 'configs':
      yield name


ALL = dict(modules())
OURS = {(module, target) for module, path in ALL.items() for target in ours(path)}


def room(module):
  return 'parity' if module.startswith('weights.parity') else module.partition('.')[0]


@pytest.mark.parametrize('name', sorted(DOORS))
def test_a_room_imports_only_through_its_doors(name):
  allowed = {name, *DOORS[name]}
  wrong = [
    f'{module} imports {target}'
    for module, target in sorted(OURS)
    if room(module) == name and room(target) not in allowed and (module, target) not in OPEN
  ]
  assert not wrong


def test_every_module_is_in_a_room():
  assert {room(module) for module in ALL} - {'__init__'} == set(DOORS)


def test_no_open_door_is_unused():
  assert OPEN <= OURS


def test_models_import_only_the_files_before_them():
  for module, target in OURS:
    if room(module) == 'models' and room(target) == 'models':
      here, there = (m.partition('.')[2] for m in (module, target))
      assert MODELS.index(there) < MODELS.index(here), f'{module} imports {target}'
  assert {m.partition('.')[2] for m in ALL if room(m) == 'models'} - {'__init__'} == set(MODELS)


def test_models_take_only_the_anchor_from_sharding():
  for module, path in ALL.items():
    if room(module) != 'models':
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module == 'tuna_jax.sharding':
        names = {alias.name for alias in node.names}
        # The kernel is mapped over the mesh, so it needs the specs behind the anchors.
        assert names <= (
          {'activation_spec', 'active_mesh'} if module == 'models.attention' else {'anchor'}
        ), module


def third_party(name):
  """Modules that import the package `name`."""
  return {
    module for module, path in ALL.items() if any(i.split('.')[0] == name for i in imports(path))
  }


def test_data_never_imports_jax():
  for package in ('jax', 'jaxlib', 'flax', 'optax', 'orbax'):
    assert not {m for m in third_party(package) if room(m) == 'data'}


@pytest.mark.parametrize('package', ['absl', 'ml_collections'])
def test_flags_and_config_dicts_stay_at_the_edge(package):
  assert {room(m) for m in third_party(package)} <= {'cli', 'configs'}


def test_torch_is_nowhere():
  for package in ('torch', 'transformers', 'diffusers'):
    assert not third_party(package)
