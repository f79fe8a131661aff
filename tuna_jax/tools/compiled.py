"""What the TPU compiler answered, remembered: a step is compiled once, in a process of its own.

An answer is a JSON file of a folder, by default `plans` in the cache of the user, named after what
the step depends on: model, rows, optimizer, mesh, topology, slices, versions of jax and libtpu, and
the compiler's flags. `plans.json` beside this module holds those that come with the project.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time

from etils import epath

from tuna_jax import files, sharding
from tuna_jax.chips import count_of
from tuna_jax.config import TunaConfig, UserError
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.sizes import SIZES
from tuna_jax.tools.xla_cpu import ALONE
from tuna_jax.train.config import MeshConfig, OptimizerConfig, TrainConfig

SHIPPED = pathlib.Path(__file__).with_name('plans.json')
FLAGS = 'LIBTPU_INIT_ARGS'
# Of glibc's malloc.h: the compiler leaves holes in the heap of each of its threads. One heap, and
# large blocks outside it that go back when they are freed, take less of this machine's memory.
_ONE_HEAP = {-8: 1, -3: 2**16, -1: 2**17}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
_COMPUTED = ('remat', 'attention', 'dtype')
# Of OptimizerConfig: what bytes or operations depend on.
_OPTIMIZER = ('kind', 'mu_dtype', 'ema_dtype', 'ema_every', 'host', 'accumulate', 'groups', 'lora')
_STEP = ('rows', 'length', 'visual', 'images', 'frozen', 'masked', 'context_noise')
_SWITCHES = ('flow_coeff', 'ntp_coeff')  # 0, or any other number


def step_of(config: TrainConfig, topology: str, slices: int = 1) -> dict:
  """What the compiler's answer depends on, as JSON: the inverse of `config_of`. topology is
  CHIP:DIMS; raises UserError where the mesh has another number of devices."""
  model, m = config.model, config.mesh
  mesh = sharding.mesh_sizes(
    slices * count_of(topology), m.data, m.fsdp, m.context, m.tensor, num_slices=slices
  )
  plain = dataclasses.replace(model, **{n: TunaConfig.__dataclass_fields__[n].default
                                        for n in _COMPUTED})  # fmt: skip
  name = next((n for n in ('2b', '7b', *SIZES) if SIZES[n] == plain), None)
  step = {
    'model': name or to_dict(plain),
    **{n: getattr(model, n) for n in _COMPUTED},
    **{n: getattr(config, n) for n in _STEP},
    **{n: float(getattr(config, n) > 0) for n in _SWITCHES},
    'optimizer': {
      n: getattr(config.optimizer, n)
      for n in _OPTIMIZER
      if getattr(config.optimizer, n) != OptimizerConfig.__dataclass_fields__[n].default
    },
    'mesh': list(mesh.values()),
    'topology': topology,
    'slices': slices,
  }
  return json.loads(json.dumps(step))


def config_of(step: dict) -> TrainConfig:
  """A configuration whose step is this one."""
  model = SIZES[step['model']] if isinstance(step['model'], str) else step['model']
  model = from_dict(TunaConfig, model) if isinstance(model, dict) else model
  return TrainConfig(
    model=dataclasses.replace(model, **{n: step[n] for n in _COMPUTED}),
    stage='',
    steps=1,
    **{n: tuple(v) if isinstance(v := step[n], list) else v for n in (*_STEP, *_SWITCHES)},
    optimizer=from_dict(OptimizerConfig, step['optimizer']),
    mesh=MeshConfig(*step['mesh'], slices=step['slices']),
  )


def versions() -> dict[str, str]:
  """Of jax and libtpu, '' where it is not installed, and the flags that the compiler is given."""
  found = {'jax': importlib.metadata.version('jax')}
  try:
    found['libtpu'] = importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    found['libtpu'] = ''
  return {**found, 'flags': os.environ.get(FLAGS, '')}


def folder(asked: str = '') -> epath.Path:
  """The folder of answers."""
  return files.path(asked) if asked else files.cache() / 'plans'


def key(step: dict, of: dict[str, str]) -> str:
  """The name of an answer: equal steps, versions and flags have one."""
  return hashlib.sha256(json.dumps([step, of], sort_keys=True).encode()).hexdigest()[:20]


class Answers:
  """The answers of a folder and those of the project.

  exact: whether only those of this jax, libtpu and flags count; otherwise others stand in where
  there is none, which `find` says by their own versions.
  """

  def __init__(self, where: str = '', exact: bool = True):
    self.folder, self.of = folder(where), versions()
    found = [files.read_json(path) for path in sorted(self.folder.glob('*.json'))]
    found += json.loads(SHIPPED.read_text()) if SHIPPED.exists() else []
    ours = [record for record in found if self._ours(record)]
    others = [] if exact and self.of['libtpu'] else [r for r in found if not self._ours(r)]
    self.records: dict[str, dict] = {}
    for record in (*ours, *others):
      self.records.setdefault(json.dumps(record['step'], sort_keys=True), record)

  def _ours(self, record) -> bool:
    return all(record[name] == value for name, value in self.of.items())

  def find(self, step: dict) -> dict | None:
    """The answer to a step, if it was ever compiled."""
    return self.records.get(json.dumps(step, sort_keys=True))

  def all(self) -> list[dict]:
    """Every answer."""
    return list(self.records.values())

  def compile(self, step: dict, say=print) -> dict:
    """The answer to a step, compiled in a child process if there is none yet."""
    if found := self.find(step):
      return found
    if not self.of['libtpu']:
      raise UserError("the TPU compiler is not installed: pip install 'tuna_jax[tpu]'")
    target = self.folder / f'{key(step, self.of)}.json'
    say(f'compiling {shown(step)} ...')
    began = time.perf_counter()
    done = subprocess.run(
      [sys.executable, '-m', 'tuna_jax.tools.compiled', str(target)],
      input=json.dumps(step), text=True, capture_output=True, check=False,
      env={**os.environ, **ALONE},
    )  # fmt: skip
    if done.returncode:
      last = (done.stderr.strip() or f'it ended with {done.returncode}').splitlines()[-1]
      raise UserError(f'{shown(step)}: the compiler failed: {last}')
    record = files.read_json(target)
    self.records[json.dumps(step, sort_keys=True)] = record
    verdict = 'needs' if record['reason'] else 'takes'
    size = f'{(record["peak"] or 0) / 2**30:.2f} of {record["limit"] / 2**30:.2f} GiB'
    say(f'  {verdict} {size}, after {time.perf_counter() - began:.0f} s')
    return record


def shown(step: dict) -> str:
  """A step in a few words."""
  model = step['model'] if isinstance(step['model'], str) else 'the model'
  accumulate = step['optimizer'].get('accumulate', 1)
  mesh = ','.join(map(str, step['mesh']))
  return (
    f'{model} on {step["topology"]}, mesh {mesh}, {step["rows"]} rows of {step["length"]:,} in '
    f'{accumulate}, remat {step["remat"]}'
  )


def one_heap() -> None:
  """Keeps this process's memory small while the compiler runs in it."""
  if hasattr(ctypes.CDLL(None), 'mallopt'):
    for option, value in _ONE_HEAP.items():
      ctypes.CDLL(None).mallopt(option, value)


def record_of(step: dict, answer) -> dict:
  """What is remembered of an answer (`plan.Answer`)."""
  found = answer._asdict()
  if found['collectives'] is not None:
    found['collectives'] = [list(c) for c in found['collectives']]
  return {'step': step, **versions(), 'date': time.strftime('%Y-%m-%d', time.gmtime()), **found}


def answer_of(record: dict):
  """The `plan.Answer` of what is remembered."""
  from tuna_jax.tools import hlo, plan

  found = {name: record[name] for name in plan.Answer._fields}
  if found['collectives'] is not None:
    found['collectives'] = [hlo.Collective(k, tuple(a), *rest) for k, a, *rest in
                            found['collectives']]  # fmt: skip
  return plan.Answer(**found)


def main():
  """Compiles the step on stdin and writes the answer to the path of the argument."""
  from tuna_jax.tools import plan

  one_heap()
  step = json.load(sys.stdin)
  answer = plan.compile_step(config_of(step), step['topology'], step['slices'])
  target = files.path(sys.argv[1])
  target.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(target, record_of(step, answer))


if __name__ == '__main__':
  main()
