"""Checkpoints of runs: sharded, saved in the background, with moments and data position.

    RUN/config.json                   kind 'run', the TrainConfig
    RUN/checkpoints/STEP/params       all parameters
    RUN/checkpoints/STEP/ema          averages of the trainable ones
    RUN/checkpoints/STEP/optimizer    moments and the step
    RUN/checkpoints/STEP/data         data position, by process

Restoring always goes to an abstract tree built from the config with this run's shardings; what a
checkpoint says of shardings is ignored, so it restores on any mesh. weights/store.py reads the
weights of a run without knowing training.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import jax
import orbax.checkpoint as ocp

from tuna_jax import files, tree
from tuna_jax.config import UserError, from_dict, to_dict
from tuna_jax.data.pipeline import merge_states
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.state import TrainState
from tuna_jax.weights import store

# orbax warns so of every item that is read apart from its checkpoint, as weights are here.
logging.getLogger('absl').addFilter(
  lambda record: 'Metadata file does not exist' not in record.getMessage()
)


class Checkpoints:
  """The checkpoints of one run. A failure of saving surfaces at `check`, `save` or `close`."""

  def __init__(self, workdir: str, config: TrainConfig):
    self._root, self._config = files.absolute(workdir), config
    if (self._root / 'config.json').exists():
      read_config(self._root)  # refuses a weights directory, which a run would overwrite
    self._root.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      self._root / 'checkpoints',
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        create=True,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # what a killed process left half written
      ),
      item_names=('params', 'ema', 'optimizer', 'data'),
    )

  def write_config(self) -> None:
    """Writes RUN/config.json; once the config is known to fit what the run holds."""
    if jax.process_index() == 0:
      about = {'kind': 'run', 'config': to_dict(self._config)}
      files.write_json(self._root / 'config.json', about)

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return max(store.committed_steps(self._root), default=None)

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
      path = self._root / 'checkpoints' / str(step) / item
      store.check(path, store.read_params(path), leaves)
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


def read_config(workdir) -> TrainConfig:
  """The config of a run."""
  about = store.read_config(workdir)
  if about['kind'] != 'run':
    raise UserError(
      f'{workdir}: its config.json is of kind {about["kind"]!r}; expected a run or a new directory'
    )
  return from_dict(TrainConfig, about['config'])


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
