"""`train`: from a config to a trained state, stoppable at any step and continued by the same call."""

from __future__ import annotations

import functools
import logging
import signal
import time

import jax
import numpy as np
from etils import epath

from tuna_jax import batch as batch_lib
from tuna_jax import sharding, tree
from tuna_jax.config import VaeConfig
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.vae import WanVae, normalize, to_float
from tuna_jax.train import checkpoint, state as state_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.metrics import Log
from tuna_jax.train.state import TrainState
from tuna_jax.train.step import train_step

_log = logging.getLogger(__name__)


class Stopped(Exception):
  """The run was asked to stop, saved its state and can be continued by the same command."""


def encoder(config: VaeConfig, params):
  """uint8[n, F, H, W, 3] -> float32[n, T, h, w, C], normalised posterior means, on one local device."""
  @jax.jit
  def run(params, pixels):
    return normalize(config, WanVae(config).apply({'params': params}, to_float(pixels), method='encode').mean)

  device = jax.local_devices()[0]
  params = jax.device_put(params, device)
  return lambda pixels: np.asarray(run(params, jax.device_put(pixels, device)))


def train(config: TrainConfig, workdir: str) -> TrainState:
  """Trains to `config.steps`, continuing from the newest checkpoint in `workdir` if there is one.

  SIGTERM or Ctrl-C saves after the running step and raises Stopped; the next call goes on with the identical batch.
  Raises ValueError where a checkpoint, the VAE or the tokenizer does not fit the config.
  """
  devices = jax.devices()
  m = config.mesh
  mesh = sharding.make_mesh(m.data, m.fsdp, m.context, m.tensor, devices=devices, num_slices=m.slices)
  with jax.set_mesh(mesh):
    return _train(config, workdir, mesh)


def _train(config, workdir, mesh):
  checkpoints = checkpoint.Checkpoints(workdir, config)
  abstract = state_lib.abstract_state(config)
  placed = sharding.shardings(abstract, mesh)
  abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placed)
  pipeline = _pipeline(config, workdir, mesh)
  latest = checkpoints.latest()
  if latest is not None:
    state, position = checkpoints.restore(latest, abstract)
    pipeline.restore(position)
    _log.info('continuing %s from step %d', workdir, latest)
  else:
    state = _start(config, abstract, placed)
  step_fn = jax.jit(functools.partial(train_step, config=config), donate_argnums=0,
                    out_shardings=(placed, None))
  key = jax.random.key(config.seed)
  log = Log(workdir, config.steps, mesh.size)
  stop = _StopSignals()
  tokens = config.rows * config.length
  step = int(state.step)
  first = True
  try:
    while step < config.steps:
      began = time.perf_counter()
      batch = next(pipeline)
      if first:  # compile apart from the first step's own time
        step_fn = step_fn.lower(state, batch, key).compile()
        log.compiled(time.perf_counter() - began)
        began, first = time.perf_counter(), False
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, metrics = step_fn(state, batch, key)
        metrics = jax.device_get(metrics)
      step += 1
      log.step(step, metrics, time.perf_counter() - began, tokens)
      if not np.isfinite(metrics['loss']):
        raise FloatingPointError(f'{workdir}: the loss of step {step} is {metrics["loss"]}')
      asked = stop.asked or checkpoints.reached_preemption(step)
      if asked or step % config.checkpoint_every == 0 or step == config.steps:
        checkpoints.save(state, pipeline.state())
      if asked and step < config.steps:
        raise Stopped(f'{workdir}: stopped at step {step} of {config.steps}; the same command continues')
  finally:
    stop.close()
    pipeline.close()
    checkpoints.close()
    log.close()
  counts = pipeline.counts()
  _log.info('%s: %s', workdir, counts)
  return state


def _start(config: TrainConfig, abstract: TrainState, placed) -> TrainState:
  """The state at step 0: fresh, or around the weights of `init_from`."""
  if not config.init_from:
    init = lambda key: state_lib.from_params(state_lib.init_params(config.model, key), config)
    return jax.jit(init, out_shardings=placed)(jax.random.key(config.seed))
  params = checkpoint.load_weights(config.init_from, abstract.params)
  return jax.jit(functools.partial(state_lib.from_params, config=config), out_shardings=placed)(params)


def _pipeline(config: TrainConfig, workdir: str, mesh) -> Pipeline:
  """The data of the run, placed on the mesh; each process builds the rows its devices hold."""
  if not config.tokenizer:
    raise ValueError('tokenizer: no directory given')
  tokenizer = Tokenizer.from_dir(config.tokenizer)
  if tokenizer.vocab_size > config.model.decoder.vocab_size:
    raise ValueError(f'{config.tokenizer}: {tokenizer.vocab_size} tokens, the model has '
                     f'{config.model.decoder.vocab_size} (model.decoder.vocab_size)')
  if jax.process_index() == 0 and not (epath.Path(workdir) / 'tokenizer').exists():
    tokenizer.save(str(epath.Path(workdir) / 'tokenizer'))
  vae = config.model.vae
  encode = None
  if config.visual:
    if not config.vae:
      raise ValueError('vae: no directory given, and the run has pictures')
    found, params = checkpoint.load_vae(config.vae)
    vae = found
    encode = encoder(found, params)
  placed = sharding.batch_sharding(mesh)
  rows = local_rows(mesh, config.rows)

  def put(batch: batch_lib.Batch) -> batch_lib.Batch:
    def one(array, where):
      shape = (config.rows, *array.shape[1:])
      return jax.make_array_from_callback(
          shape, where, lambda index: array[_shift(index[0], rows.start, config.rows), *index[1:]])
    return batch_lib.Batch(*(one(a, s) for a, s in zip(batch, placed)))

  return Pipeline(
      config.data, tokenizer, encode=encode, strides=(vae.temporal_stride, vae.spatial_stride), sizes=config.sizes,
      seed=config.seed, rows=rows, steps=config.steps, put=put, encoder_name=config.vae)


def local_rows(mesh, rows: int) -> range:
  """The rows of a batch of `rows` that this process's devices hold. ValueError where they do not divide."""
  where = sharding.batch_sharding(mesh).segment
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % ways:
    raise ValueError(f'rows={rows} does not divide over data x fsdp = {ways}')
  held = [i[0].indices(rows) for i in where.addressable_devices_indices_map((rows, mesh.shape['context'])).values()]
  return range(min(h[0] for h in held), max(h[1] for h in held))


def _shift(index: slice, start: int, rows: int) -> slice:
  low, high, _ = index.indices(rows)
  return slice(low - start, high - start)


class _StopSignals:
  """Remembers SIGTERM and SIGINT instead of dying of them; a second Ctrl-C dies."""

  def __init__(self):
    self.asked = False
    self._old = {}
    try:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._note)
    except ValueError:  # not the main thread (a notebook's executor): the caller handles signals
      pass

  def _note(self, number, frame):
    del frame
    if self.asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.asked = True

  def close(self):
    for number, handler in self._old.items():
      signal.signal(number, handler)
