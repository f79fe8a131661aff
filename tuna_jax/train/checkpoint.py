"""Checkpoints of runs: sharded, saved in the background, with moments and data position.

    RUN/config.json                   kind 'run', the TrainConfig
    RUN/checkpoints/STEP/params       all parameters; of adapters and what else trains beside a base
                                      that lies apart (`TrainConfig.apart`), these alone
    RUN/checkpoints/STEP/ema          averages of the trainable ones
    RUN/checkpoints/STEP/optimizer    moments and the step
    RUN/checkpoints/STEP/data         data position, by process
    RUN/checkpoints/STEP/digests      the digest of every leaf and of the data position
    RUN/damaged/STEP-ID               a checkpoint that was damaged, out of the way

Restoring always goes to an abstract tree built from the config with this run's shardings; what a
checkpoint says of shardings is ignored, so it restores on any mesh. weights/steps.py reads
checkpoints without knowing training.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import uuid
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from tuna_jax import files, tree
from tuna_jax.config import UserError
from tuna_jax.data.pipeline import merge_states
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.mappings import from_dict
from tuna_jax.train import provenance
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.state import TrainState, own
from tuna_jax.weights import steps, store
from tuna_jax.weights.convert import place

# What goes wrong in threads of orbax is raised by `check`, `save` or `close`. They log it as well,
# each with its trace.
logging.getLogger('absl').addFilter(
  lambda record: not (record.exc_info and f'{os.sep}orbax{os.sep}' in record.pathname)
)


def _quiet_after_failure() -> None:
  """Of a save that failed, TensorStore's other writes end after the event loop that awaited them is
  closed, and each would print the same trace; the failure itself is raised, as said above."""
  shown = sys.excepthook

  def hook(kind, error, trace):
    if not (kind is RuntimeError and str(error) == 'Event loop is closed'):
      shown(kind, error, trace)

  sys.excepthook = hook


_quiet_after_failure()


class Checkpoints:
  """The checkpoints of one run. A failure of saving surfaces at `check`, `save` or `close`.

  Nothing is written, apart from what `set_aside` moves, before `begin` or the first save.
  """

  def __init__(self, workdir: str, config: TrainConfig):
    self._root, self._config = files.absolute(workdir), config
    if (self._root / 'config.json').exists():
      read_config(self._root)  # refuses a weights directory, which a run would overwrite

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    config = self._config
    self._root.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(
      self._root / 'checkpoints',
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        create=True,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # what a killed process left half written
      ),
      item_names=(*steps.ARRAYS, 'data', 'digests'),
    )

  @property
  def _begun(self) -> bool:
    return '_manager' in self.__dict__

  def begin(self, tokenizer: Tokenizer, ground: dict[str, Any]) -> None:
    """Makes the folder that of a run, with its config, its tokenizer and what it stands on; once
    they are known to fit what the run holds."""
    if jax.process_index() == 0:
      own = self._root / 'tokenizer'
      known = (own / 'tokenizer.json').exists() and Tokenizer.from_dir(own).digest
      if known != tokenizer.digest:
        if (self._root / 'config.json').exists():
          self.write_config(ground, tokenizer=False)  # without the digest of the old one
        tokenizer.save(own)
    self.write_config(ground)
    self._manager.all_steps()

  def write_config(self, ground: dict[str, Any] | None = None, tokenizer: bool = True) -> None:
    """Writes RUN/config.json, with the digests of the tokenizer's files."""
    if jax.process_index() == 0:
      notes = {'ground': ground} if ground else {}
      if self._config.apart:
        if not (base := self._config.init_from):
          raise UserError('init_from: needed where frozen leaves are in no checkpoint of the run')
        notes['base'] = store.identity(base)
      about = {'kind': 'run', 'config': provenance.as_kept(self._config), 'notes': notes}
      self._root.mkdir(parents=True, exist_ok=True)
      beside = [self._root / 'tokenizer' / name for name in store.TOKENIZER_FILES]
      store.write_config(self._root, about, beside if tokenizer else ())

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return max(steps.committed(self._root), default=None)

  def save(self, state: TrainState, data: dict[str, Any]) -> None:
    """Saves in the background; the step is the state's. Does nothing if that step is saved."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    data = _gather(data)
    items = {
      'params': own(state.params, self._config),
      'ema': tree.unflatten(state.ema),
      'optimizer': {'step': state.step, 'opt_state': tree.flatten(state.opt_state)},
    }
    known = steps.make_record({item: tree.flatten(value) for item, value in items.items()}, data)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **{item: ocp.args.StandardSave(value) for item, value in items.items()},
        data=ocp.args.JsonSave(data),
        digests=ocp.args.JsonSave(known),
      ),
    )

  def restore_newest(self, abstract: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
    """(step, state, data position) of the newest checkpoint that is not damaged; None without any.

    Those that are damaged are named in the log and moved to RUN/damaged; on object storage they
    lose the mark that makes them complete. Raises Damaged if none is left, and as `restore` does.
    """
    if self.latest() is None:
      return None
    attempt = lambda step: (step, *self.restore(step, abstract))
    step, state, data = steps.newest_good(self._root, attempt)
    self.set_aside(step + 1)
    return step, state, data

  def set_aside(self, first: int) -> list[int]:
    """Takes the checkpoints from step `first` on out of the way, if there are older ones; which."""
    self.wait()
    complete = steps.committed(self._root)
    found = [n for n in complete if n >= first] if complete and complete[0] < first else []
    if found:
      if jax.process_count() > 1:  # until all have listed them
        multihost_utils.sync_global_devices('checkpoints to be set aside')
      if jax.process_index() == 0:
        for number in found:
          _set_aside(self._root, number)
      if jax.process_count() > 1:
        multihost_utils.sync_global_devices('checkpoints are set aside')
      if self._begun:
        self._manager.reload()
    return found

  def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """(state, data position) of `step`; `abstract` gives shapes, types and shardings. The state's
    parameters are those that the checkpoint holds (`state.own`).

    Raises Damaged if it is not what was saved, and CheckpointError listing every leaf that is
    missing, unexpected or of another shape than the run's.
    """
    wanted = {
      'params': own(abstract.params, self._config),
      'ema': tree.unflatten(abstract.ema),
      'optimizer': {'step': abstract.step, 'opt_state': tree.flatten(abstract.opt_state)},
    }
    verify, got = self._config.verify, {}
    known = steps.record(self._root, step) if verify else None
    data = steps.read_data(self._root, step, known)
    found = {item: steps.read_item(self._root, step, item, known) for item in wanted}
    for item, leaves in wanted.items():
      store.check(steps.at(self._root, step) / item, found[item], leaves)
    for item, leaves in wanted.items():
      got[item] = place(found[item], leaves, verify=verify)
    leaves = got['optimizer']['opt_state']
    opt_state = jax.tree_util.tree_map_with_path(
      lambda path, _: leaves[tree.name_of(path)], abstract.opt_state
    )
    ema = {name: tree.flatten(got['ema'])[name] for name in abstract.ema}
    return TrainState(got['optimizer']['step'], got['params'], ema, opt_state), data

  def reached_preemption(self, step: int) -> bool:
    """Whether the cluster announced to all processes that they will be stopped."""
    return self._manager.reached_preemption(step)

  def check(self) -> None:
    """Raises what went wrong with a save in the background, if anything has."""
    self._manager.check_for_errors()

  def wait(self) -> None:
    """Waits for what is being saved; raises what went wrong with it."""
    if self._begun:
      self._manager.wait_until_finished()

  def close(self) -> None:
    """As `wait`, and ends the threads that save."""
    if self._begun:
      self.wait()
      self._manager.close()


def read_config(workdir) -> TrainConfig:
  """The config of a run."""
  about = store.read_config(workdir)
  if about['kind'] != 'run':
    raise UserError(
      f'{workdir}: its config.json is of kind {about["kind"]!r}; expected a run or a new directory'
    )
  return from_dict(TrainConfig, about['config'])


def _set_aside(root, step: int) -> None:
  """Takes a checkpoint out of the way of those to come."""
  folder = steps.at(root, step)
  if files.is_remote(root):
    (folder / 'commit_success.txt').unlink()
  else:
    (root / 'damaged').mkdir(exist_ok=True)
    folder.rename(root / 'damaged' / f'{step}-{uuid.uuid4().hex[:6]}')


def _gather(data: dict[str, Any]) -> dict[str, Any]:
  """The data position of all rows, from every process's own."""
  if jax.process_count() == 1:
    return data
  blob = np.frombuffer(json.dumps(data).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(blob)))
  room = np.zeros(int(sizes.max()), np.uint8)
  room[: len(blob)] = blob
  gathered = multihost_utils.process_allgather(room)
  states = [json.loads(bytes(row[:n]).decode()) for row, n in zip(gathered, sizes)]
  return merge_states(states)
