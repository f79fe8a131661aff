"""`train`: from a config to a trained state. It may stop at any step; the next call continues."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import time
from collections.abc import Sequence

import jax
import numpy as np

from tuna_jax import sharding
from tuna_jax.train import checkpoint, feed, lock
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.metrics import Log
from tuna_jax.train.state import TrainState
from tuna_jax.train.step import jit_step
from tuna_jax.weights import store

_log = logging.getLogger(__name__)
_nothing = contextlib.nullcontext()


class Stopped(Exception):
  """The run was asked to stop, saved its state and can be continued by the same command."""


def train(
  config: TrainConfig, workdir: str, devices: Sequence[jax.Device] | None = None
) -> TrainState:
  """Trains to `config.steps` on `devices` (default: all), from the newest checkpoint in `workdir`
  if there is one.

  SIGTERM or Ctrl-C saves after the running step and raises Stopped; the next call goes on with the
  identical batch. A second Ctrl-C is a KeyboardInterrupt, which waits only for a save that is being
  written. Raises lock.Held if another run works in `workdir`, UserError if a checkpoint, the VAE or
  the tokenizer does not fit the config, FloatingPointError if the loss or its gradient is no longer
  finite (the newest checkpoint is from before that), and the error of a save that failed.
  """
  m, devices = config.mesh, devices or jax.devices()
  mesh = sharding.make_mesh(
    m.data, m.fsdp, m.context, m.tensor, devices=devices, num_slices=m.slices
  )
  with contextlib.ExitStack() as closing:
    # Entered first and so left last: a second SIGTERM must not cut a save short.
    stop = closing.enter_context(StopSignals())
    held = closing.enter_context(lock.hold(workdir))
    closing.enter_context(jax.set_mesh(mesh))
    checkpoints = checkpoint.Checkpoints(workdir, config)
    closing.callback(checkpoints.close)
    pipeline = feed.open_pipeline(config, workdir, mesh)
    closing.callback(pipeline.close)
    state = _start(config, mesh, checkpoints, pipeline)
    checkpoints.write_config()
    log = Log(workdir, config.steps, mesh.size)
    closing.callback(log.close)
    return _run(config, workdir, state, pipeline, checkpoints, log, stop, held)


def _start(config: TrainConfig, mesh, checkpoints, pipeline) -> TrainState:
  """The newest checkpoint's state, with `pipeline` at its place; or the state at step 0, fresh or
  around the weights of `init_from`."""
  abstract = state_lib.abstract_state(config)
  placed = sharding.shardings(abstract, mesh)
  abstract = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placed
  )
  found = checkpoints.restore_newest(abstract)
  if found is not None:
    step, state, position = found
    pipeline.restore(position)
    _log.info('continuing from step %d', step)
    return state
  if config.init_from:
    params = store.load_weights(config.init_from, abstract.params)
  else:
    params = state_lib.init_params(config, placed.params)
  make = functools.partial(state_lib.from_params, config=config)
  return jax.jit(make, out_shardings=placed)(params)


def _run(config, workdir, state, pipeline, checkpoints, log, stop, held) -> TrainState:
  """Steps from `state` to the last one."""
  key, step = jax.random.key(config.seed), int(state.step)
  tokens = config.rows * config.length
  stopped = '{}: stopped at step {} of {}; the same command continues'.format
  step_fn = None
  while step < config.steps:
    began = time.perf_counter()
    batch = next(pipeline)
    if step_fn is None:  # compile apart from the first step's own time
      placed = jax.tree.map(lambda a: a.sharding, state)
      step_fn = jit_step(config, placed).lower(state, batch, key).compile()
      log.compiled(time.perf_counter() - began)
      if stop.asked:  # there is nothing new to save
        raise Stopped(stopped(workdir, step, config.steps))
      began = time.perf_counter()
    profile = jax.profiler.trace(f'{workdir}/profile') if step in config.profile_steps else _nothing
    with profile, jax.profiler.StepTraceAnnotation('train', step_num=step):
      state, metrics = step_fn(state, batch, key)
      metrics = jax.device_get(metrics)
    step += 1
    log.step(step, metrics, time.perf_counter() - began, tokens)
    if not np.isfinite([metrics['loss'], metrics['grad_norm']]).all():
      raise FloatingPointError(
        f'{workdir}: step {step} has loss {metrics["loss"]} and gradient norm '
        f'{metrics["grad_norm"]}; the newest checkpoint is of step {checkpoints.latest() or 0}'
      )
    checkpoints.check()
    held.check()
    asked = stop.asked or checkpoints.reached_preemption(step)
    if asked or step % config.checkpoint_every == 0 or step == config.steps:
      checkpoints.save(state, pipeline.state())
    if asked and step < config.steps:
      raise Stopped(stopped(workdir, step, config.steps))
  _log.info('%s: %s', workdir, pipeline.counts())
  return state


class StopSignals:
  """Records SIGTERM and Ctrl-C in `asked`; a second Ctrl-C is a KeyboardInterrupt.

  In a run of several processes it does nothing: one that stops alone would leave the others waiting
  in a collective. There jax's own handler tells all of them, and `reached_preemption` is true for
  all at the same step.
  """

  def __init__(self):
    self.asked = False
    self._old = {}

  def __enter__(self):
    # Python takes signals in the main thread only; elsewhere the caller handles them.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    del frame
    if self.asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.asked = True

  def __exit__(self, *_):
    for number, handler in self._old.items():
      signal.signal(number, handler)
