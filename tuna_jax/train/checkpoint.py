"""Checkpoints of runs, and weights directories.

    RUN/config.json                   kind, the TrainConfig
    RUN/checkpoints/STEP/params       all parameters
    RUN/checkpoints/STEP/ema          averages of the trainable ones
    RUN/checkpoints/STEP/optimizer    moments and the step
    RUN/checkpoints/STEP/data         data position, by process

    WEIGHTS/config.json               kind 'tuna' or 'vae', the model's config, where it came from
    WEIGHTS/params                    all parameters; orbax, or safetensors if `tuna-jax convert` wrote them

Restoring always goes to an abstract tree built from the config with this run's shardings; what a
checkpoint says of shardings is ignored, so it restores on any mesh. `load_weights` reads either
kind of directory.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from tuna_jax import tree
from tuna_jax.config import TunaConfig, UserError, VaeConfig, from_dict, nearest, to_dict
from tuna_jax.data.pipeline import merge_states
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.state import TrainState
from tuna_jax.weights import store

# orbax warns so of every item that is read apart from its checkpoint, which is how weights are read
# here.
logging.getLogger('absl').addFilter(
  lambda record: 'Metadata file does not exist' not in record.getMessage()
)


class Checkpoints:
  """The checkpoints of one run; saving is asynchronous, a failure surfaces at `check`, `save` or
  `close`.
  """

  def __init__(self, workdir: str, config: TrainConfig):
    self._root, self._config = epath.Path(workdir), config
    self._root.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      (self._root / 'checkpoints').absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        create=True,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
      ),  # what a killed process left half written
      item_names=('params', 'ema', 'optimizer', 'data'),
    )

  def write_config(self) -> None:
    """Writes RUN/config.json; once the config is known to fit what the run holds."""
    if jax.process_index() == 0:
      write_json(self._root / 'config.json', {'kind': 'run', 'config': to_dict(self._config)})

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState, data: dict[str, Any]) -> None:
    """Saves in the background; the step is the state's. Does nothing if that step is saved."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        ema=ocp.args.StandardSave(tree.unflatten(state.ema)),
        optimizer=ocp.args.StandardSave(
          {'step': state.step, 'opt_state': tree.flatten(state.opt_state)}
        ),
        data=ocp.args.JsonSave(_gather(data)),
      ),
    )

  def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """(state, data position) of `step`; `abstract` gives shapes, types and shardings.

    Raises ValueError listing every leaf that is missing, unexpected or of another shape.
    """
    wanted = {
      'params': abstract.params,
      'ema': tree.unflatten(abstract.ema),
      'optimizer': {'step': abstract.step, 'opt_state': tree.flatten(abstract.opt_state)},
    }
    for item, leaves in wanted.items():
      _check_fits(self._root / 'checkpoints' / str(step) / item, leaves)
    got = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{item: ocp.args.StandardRestore(leaves) for item, leaves in wanted.items()},
        data=ocp.args.JsonRestore(),
      ),
    )
    leaves = got['optimizer']['opt_state']
    opt_state = jax.tree_util.tree_map_with_path(
      lambda path, _: leaves[tree.name_of(path)], abstract.opt_state
    )
    ema = {name: tree.flatten(got['ema'])[name] for name in abstract.ema}
    return TrainState(got['optimizer']['step'], got['params'], ema, opt_state), got['data']

  def reached_preemption(self, step: int) -> bool:
    """Whether the cluster announced to all processes that they will be stopped."""
    return self._manager.reached_preemption(step)

  def check(self) -> None:
    """Raises what went wrong with a save in the background, if anything has."""
    self._manager.check_for_errors()

  def close(self) -> None:
    """Waits for what is being saved; raises what went wrong with it."""
    self._manager.wait_until_finished()
    self._manager.close()


def save_tree(path: epath.Path, value) -> None:
  """Writes a tree of arrays and numbers, whole or not at all."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path.absolute(), tree.flatten(value), force=True)


def restore_tree(path: epath.Path, default):
  """What `save_tree` wrote, with the structure, shapes and types of `default`; `default` itself if
  nothing is there.
  """
  if not path.exists():
    return default
  with ocp.StandardCheckpointer() as checkpointer:
    leaves = checkpointer.restore(path.absolute(), tree.flatten(default))
  return jax.tree_util.tree_map_with_path(lambda at, _: leaves[tree.name_of(at)], default)


def save_weights(
  directory: str, params, config: TunaConfig | VaeConfig, notes: dict[str, Any] | None = None
) -> None:
  """Writes a weights directory; `notes` (JSON-able) says where the weights come from."""
  root = epath.Path(directory)
  root.mkdir(parents=True, exist_ok=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((root / 'params').absolute(), params, force=True)
  kind = 'vae' if isinstance(config, VaeConfig) else 'tuna'
  if jax.process_index() == 0:
    write_json(
      root / 'config.json', {'kind': kind, 'config': to_dict(config), 'notes': notes or {}}
    )


def read_config(directory: str) -> TunaConfig | VaeConfig | TrainConfig:
  """The config a run or weights directory was written with. ValueError where there is none."""
  path = epath.Path(directory) / 'config.json'
  if not path.exists():
    raise UserError(f'{directory}: no config.json there; expected a run or a weights directory')
  found = json.loads(path.read_text())
  kinds = {'run': TrainConfig, 'tuna': TunaConfig, 'vae': VaeConfig}
  if found.get('kind') not in kinds:
    raise UserError(
      f'{path}: kind {found.get("kind")!r}, expected one of {sorted(kinds)}'
      f'{nearest(found.get("kind"), kinds)}'
    )
  return from_dict(kinds[found['kind']], found['config'])


def load_weights(directory: str, abstract, *, step: int | None = None, ema: bool = True):
  """Parameters from a run (its averages, unless `ema` is False) or a weights directory.

  Args:
    abstract: tree of ShapeDtypeStruct, with shardings where there is a mesh; its names and shapes
    must be found. step: of a run; default the latest.
  Raises ValueError listing every leaf that is missing, unexpected or of another shape.
  """
  root = epath.Path(directory)
  if isinstance(read_config(directory), TrainConfig):
    steps = sorted(ocp.utils.checkpoint_steps(root / 'checkpoints'))  # the complete ones
    if not steps or (step is not None and step not in steps):
      raise UserError(
        f'{directory}: no checkpoint{"" if step is None else f" of step {step}"}; it has {steps}'
      )
    here = root / 'checkpoints' / str(steps[-1] if step is None else step)
    params = _restore_item(here / 'params', abstract)
    if ema:
      found = tree.flatten(_metadata(here / 'ema'))
      flat = tree.flatten(abstract)
      params = state_lib.merge(
        params,
        tree.flatten(
          _restore_item(here / 'ema', tree.unflatten({name: flat[name] for name in found}))
        ),
      )
    return params
  return _restore_item(root / 'params', abstract)


def load_vae(directory: str):
  """(VaeConfig, parameters) of a VAE's weights directory, on one local device."""
  config = read_config(directory)
  if not isinstance(config, VaeConfig):
    raise UserError(f'{directory}: holds a {type(config).__name__}, not a VAE')
  return config, load_weights(directory, vae_shapes(config))


def write_json(path: epath.Path, value) -> None:
  """Writes atomically: a reader sees the old file or the new one."""
  part = path.parent / (path.name + '.part')
  part.write_text(json.dumps(value, indent=1))
  part.replace(path)


def _metadata(path: epath.Path):
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.metadata(path.absolute()).item_metadata.tree


def _restore_item(path: epath.Path, abstract):
  if (
    not (path / '_METADATA').exists() and path.is_dir()
  ):  # written by `tuna-jax convert`: safetensors
    return store.load(store.read_params(path), abstract)
  _check_fits(path, abstract)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or device), abstract
  )
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path.absolute(), abstract)


def _check_fits(path: epath.Path, abstract) -> None:
  found, wanted = tree.flatten(_metadata(path)), tree.flatten(abstract)
  faults = [f'{n}: missing in the checkpoint{nearest(n, found)}' for n in wanted if n not in found]
  faults += [f'{n}: not in this model{nearest(n, wanted)}' for n in found if n not in wanted]
  faults += [
    f'{n}: shape {tuple(found[n].shape)}, this model has {tuple(wanted[n].shape)}'
    for n in wanted
    if n in found and tuple(found[n].shape) != tuple(wanted[n].shape)
  ]
  if faults:
    raise UserError(f'{path}: {len(faults)} leaves do not fit\n' + '\n'.join(faults))


def _gather(data: dict[str, Any]) -> dict[str, Any]:
  """The data position of all rows, from every process's own."""
  if jax.process_count() == 1:
    return data
  import numpy as np
  from jax.experimental import multihost_utils

  blob = np.frombuffer(json.dumps(data).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(blob)))
  room = np.zeros(int(sizes.max()), np.uint8)
  room[: len(blob)] = blob
  gathered = multihost_utils.process_allgather(room)
  states = [json.loads(bytes(row[:n]).decode()) for row, n in zip(gathered, sizes)]
  return merge_states(states)
