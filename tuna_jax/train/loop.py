"""`train`: from a config to a trained state. It may stop at any step; the next call continues."""

from __future__ import annotations

import contextlib
import functools
import logging
import pathlib
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax

from tuna_jax import files, sharding
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.stopping import Signals, Stopped
from tuna_jax.train import checkpoint, lock, provenance
from tuna_jax.train import report as report_lib
from tuna_jax.train import state as state_lib
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.feed import Feed
from tuna_jax.train.goodput import Goodput
from tuna_jax.train.guard import Diverged, Drawn, Guard
from tuna_jax.train.held_out import HeldOut
from tuna_jax.train.report import Log, summary
from tuna_jax.train.samples import Samples
from tuna_jax.train.state import TrainState
from tuna_jax.train.step import jit_step
from tuna_jax.train.watch import Watch

_log = logging.getLogger(__name__)


def train(
  config: TrainConfig,
  workdir: str,
  devices: Sequence[jax.Device] | None = None,
  allow_change: Collection[str] = (),
) -> TrainState:
  """Trains to `config.steps` on `devices` (default: all), from the newest checkpoint in `workdir`
  if there is one. A start that fails, or finds all steps done, leaves `workdir` as it was.
  allow_change: what may differ from what the run began with (provenance.FIELDS).

  SIGTERM or Ctrl-C saves after the running step and raises Stopped; the next call goes on with the
  identical batch. A second Ctrl-C is a KeyboardInterrupt, which waits only for a save that is being
  written. Raises lock.Held if another run works in `workdir`, UserError if a checkpoint, the VAE or
  the tokenizer does not fit the config, guard.Diverged if the numbers of the run mean nothing any
  more (the newest checkpoint is from before that), and the error of a save that failed.
  """
  report_lib.check(config)
  config = state_lib.sized(config, workdir)
  m, devices = config.mesh, devices or jax.devices()
  mesh = sharding.make_mesh(
    m.data, m.fsdp, m.context, m.tensor, devices=devices, num_slices=m.slices
  )
  with contextlib.ExitStack() as closing:
    # Entered first and so left last: a second SIGTERM must not cut a save short.
    stop = closing.enter_context(Signals(together=jax.process_count() > 1))
    held = closing.enter_context(lock.hold(workdir))
    goodput = Goodput(workdir)
    watch = Watch(workdir, config.guard.wait, goodput, bool(stop))
    closing.callback(watch.close)
    closing.enter_context(jax.set_mesh(mesh))
    checkpoints = checkpoint.Checkpoints(workdir, config)
    closing.callback(checkpoints.close)
    feed = Feed(config, mesh)
    pipeline = feed.pipeline(config.data, config.seed)
    closing.callback(pipeline.close)
    ground = provenance.ground(config, feed, pipeline)
    changed = provenance.check(workdir, config, ground, allow_change)
    state, start = _start(config, mesh, checkpoints, pipeline, changed)
    if int(state.step) >= config.steps:
      print(f'{workdir}: all {config.steps} steps are done', flush=True)
      return state
    guard = Guard(config, workdir, int(state.step))
    guard.check(state)
    checkpoints.begin(feed.tokenizer, ground)
    goodput.restored(int(state.step))
    log = Log(workdir, config, mesh.devices.flat, goodput)
    closing.callback(log.close)
    for line in summary(config, mesh, state, workdir, start):
      log.say(line)
    closing.callback(checkpoints.wait)  # which the report counts
    evaluations = _evaluations(config, feed, mesh, state, log)
    closing.callback(goodput, 'save')
    run = _Run(config, workdir, pipeline, checkpoints, log, goodput, stop, held, guard, evaluations)
    try:
      return _steps(run, state)
    except Diverged:
      if guard.suspect is not None and checkpoints.set_aside(guard.suspect):
        said = '%s: no loss was finite with the checkpoint of step %d: it is set aside'
        _log.warning(said, workdir, guard.suspect)
      raise


def _start(config: TrainConfig, mesh, checkpoints, pipeline, changed) -> tuple[TrainState, str]:
  """The newest checkpoint's state, with `pipeline` at its place; or the state at step 0, fresh or
  around the weights of `init_from`. And what it comes from, in words."""
  abstract = state_lib.abstract_state(config)
  placed = state_lib.shardings(abstract, mesh, config)
  abstract = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placed
  )
  found = checkpoints.restore_newest(abstract)
  if found is not None:
    step, state, position = found
    pipeline.restore(position, moved=bool(changed & provenance.MOVING))
    state = state_lib.with_base(state, config, abstract.params)
    return state, f'continued from the checkpoint of step {step}'
  params = state_lib.first_params(config, abstract.params)
  make = functools.partial(state_lib.from_params, config=config)
  source = f'around the weights of {config.init_from}' if config.init_from else 'fresh weights'
  return jax.jit(make, donate_argnums=0, out_shardings=placed)(params), source


def _evaluations(config: TrainConfig, feed: Feed, mesh, state: TrainState, log: Log):
  """What `config` asks for: [(steps between two calls, function of step and averages)]."""
  report, found = config.report, []
  if report.held_out_every:
    held_out = HeldOut(config, feed, mesh, state_lib.weights(state))
    found.append((report.held_out_every, lambda n, params: log.held_out(n, held_out(params))))
  if report.samples_every:
    samples = Samples(config, feed, mesh)
    found.append((report.samples_every, lambda n, params: log.pictures(n, samples(params))))
  return found


class _Run(NamedTuple):
  """What the steps of a run work with."""

  config: TrainConfig
  workdir: str
  pipeline: Pipeline
  checkpoints: checkpoint.Checkpoints
  log: Log
  goodput: Goodput
  stop: Signals
  held: lock.Lock
  guard: Guard
  evaluations: list[tuple[int, Callable[[int, Any], None]]]


def _steps(run: _Run, state: TrainState) -> TrainState:
  """Steps from `state` to the last one. While a step runs, the host reports the one before it and
  takes the next batch."""
  config, goodput, step = run.config, run.goodput, int(state.step)
  key, step_fn, arrivals = jax.random.key(config.seed), None, _Arrivals(run)
  stopped = '{}: stopped at step {} of {}; the same command continues'.format
  first, due = step, False
  if step == 0:
    _evaluate(run, state, step)
  run.stop.hold()
  while step < config.steps:
    position = run.pipeline.state()
    try:
      with run.stop.raising():  # the state in memory is that of a whole step
        goodput('data')
        batch = next(run.pipeline)
        if step_fn is None:  # compile apart from the first step's own time
          goodput('compile')
          placed = jax.tree.map(lambda a: a.sharding, state)
          step_fn = jit_step(config, placed).lower(state, batch, key).compile()
          arrivals.compiled()
    except Stopped:
      if step > first:
        _save(run, arrivals, state, position)
      raise Stopped(stopped(run.workdir, step, config.steps)) from None
    goodput('step')
    profiled = step in config.profile_steps
    if profiled:
      arrivals.fetch()  # so that the profile has this step alone
    with (
      _profile(run.workdir) if profiled else contextlib.nullcontext(),
      jax.profiler.StepTraceAnnotation('train', step_num=step),
    ):
      state, metrics = step_fn(state, batch, key)
      if profiled:
        jax.block_until_ready(metrics)
    step += 1
    arrivals.put(step, metrics, Drawn(batch, run.pipeline.drawn()))
    run.checkpoints.check()
    run.held.check()
    asked = run.stop.asked or run.checkpoints.reached_preemption(step)
    due |= step % config.checkpoint_every == 0
    if asked or due or step == config.steps:
      due = not _save(run, arrivals, state, run.pipeline.state())
    if asked:
      raise Stopped(stopped(run.workdir, step, config.steps))
    if any(step % every == 0 for every, _ in run.evaluations) or step == config.steps:
      arrivals.fetch()
      _evaluate(run, state, step)
  _log.info('%s: %s', run.workdir, run.pipeline.counts())
  return state


def _save(run: _Run, arrivals: _Arrivals, state: TrainState, position) -> bool:
  """Saves once the losses up to the state's step are known; whether it did. While updates are not
  kept it waits for the next that is, except at the end of the run."""
  arrivals.fetch()
  if run.guard.suspect is not None and int(state.step) < run.config.steps:
    return False
  run.goodput('save')
  run.log.flush()  # no later start reports these steps again
  run.guard.check(state)
  run.checkpoints.save(state, position)
  return True


def _evaluate(run: _Run, state: TrainState, step: int) -> None:
  """What is due after `step`."""
  run.goodput('evaluate')
  for every, evaluate in run.evaluations:
    if step % every == 0 or step == run.config.steps:
      evaluate(step, state_lib.weights(state))


@contextlib.contextmanager
def _profile(workdir: str):
  """Writes what happens in the block to RUN/profile; XLA writes to local disks alone."""
  where = files.path(workdir) / 'profile'
  if not files.is_remote(where):
    with jax.profiler.trace(str(where)):
      yield
    return
  with tempfile.TemporaryDirectory() as local:
    with jax.profiler.trace(local):
      yield
    for file in pathlib.Path(local).rglob('*'):
      if file.is_file():
        files.write_bytes(where / file.relative_to(local), file.read_bytes())


class _Arrivals:
  """The metrics of the newest step, which stay on the devices until the next step runs there."""

  def __init__(self, run: _Run):
    self._run, self._before = run, run.goodput.seconds()
    self._running: tuple[int, Any, Drawn] | None = None

  def compiled(self) -> None:
    """Tells how long the step took to compile."""
    before, self._before = self._before, self._run.goodput.seconds()
    self._run.log.say(f'compiled in {self._before["compile"] - before["compile"]:.1f} s')

  def put(self, step: int, metrics, drawn: Drawn) -> None:
    """Reports the step before, as soon as it is finished; `step` runs meanwhile."""
    self.fetch()
    self._running = step, metrics, drawn

  def fetch(self) -> None:
    """Waits for the newest step and reports it; then `Guard.judge`."""
    if self._running is None:
      return
    step, metrics, drawn = self._running
    self._running, metrics = None, jax.device_get(metrics)
    seconds = self._run.goodput.seconds()
    data, busy = (seconds[kind] - self._before[kind] for kind in ('data', 'step'))
    self._before, self._run.goodput.step = seconds, step
    shown = {name: value for name, value in metrics.items() if name not in ('kept', 'sane')}
    self._run.log.step(step, shown, data + busy, data)
    if not metrics['kept']:
      self._run.log.record(step, {'refused': self._run.guard.refused + 1})
    self._run.guard.judge(step, metrics, drawn)
