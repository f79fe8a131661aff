"""What a run writes while it trains: a line per step, TensorBoard, a progress bar, metrics."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import tqdm

from tuna_jax import files, tree
from tuna_jax.chips import peak_flops
from tuna_jax.config import UserError
from tuna_jax.mappings import to_dict
from tuna_jax.sample.output import Picture
from tuna_jax.train import flops, metrics
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.goodput import Goodput
from tuna_jax.train.state import TrainState

_log = logging.getLogger(__name__)
FLUSH_S = 15.0  # between two uploads; what a kill loses is at most this and one upload old
SAMPLES = 'samples'  # below a run: STEP/NUMBER.png, each with its prompt


class Log:
  """Writes `log.txt` (one line per step), `metrics.jsonl`, `samples`, TensorBoard and
  `goodput.json` under `workdir`, and to wandb, from process 0. A continued run appends.

  On a terminal the lines become one progress bar; elsewhere a line is printed every
  `config.report.line_s` seconds, and for the first and the last step.
  """

  def __init__(
    self, workdir: str, config: TrainConfig, devices: Sequence[jax.Device], goodput: Goodput
  ):
    self._on = jax.process_index() == 0
    self._config, self._devices, self._goodput = config, len(devices), goodput
    self._flops, self._peak = flops.train_flops(config).useful, peak_flops(devices[0])
    self._first, self._began, self._printed, self._bar = None, 0.0, 0.0, None
    if self._on:
      root = files.path(workdir)
      root.mkdir(parents=True, exist_ok=True)
      self._lines = files.Appending(root / 'log.txt')
      self._records = files.Appending(root / 'metrics.jsonl')
      self._board, self._samples = _board(root / 'tensorboard'), root / SAMPLES
      self._wandb = _wandb(workdir, config) if config.report.wandb else None
      self._flusher = Repeated(FLUSH_S, self._lines.flush, self._records.flush, goodput.write)

  def say(self, line: str) -> None:
    """Prints a line and writes it to log.txt."""
    if self._on:
      self._lines.write(f'{line}\n'.encode())
      tqdm.tqdm.write(line, file=sys.stdout)
      sys.stdout.flush()

  def step(self, step: int, found, seconds: float, waited: float) -> None:
    """Writes the metrics of a finished step.

    found: metrics of `train_step`. seconds: of this step. waited: those spent waiting for data.
    """
    if not self._on:
      return
    values = metrics.scalars(found) | self._speed(found['filled'], seconds)
    values |= {'seconds': seconds, 'data_wait': waited}
    now, steps = time.perf_counter(), self._config.steps
    if self._first is None:
      self._first, self._began = step - 1, now - seconds
    each = (now - self._began) / (step - self._first)
    line = metrics.line(step, steps, each * (steps - step), values)
    self._lines.write(f'{line}\n'.encode())
    self.record(step, values)
    if self._bar is None:  # a continued run counts on from where it stopped
      self._bar = tqdm.tqdm(
        total=steps, initial=step - 1, unit='step', file=sys.stdout, disable=None
      )
    self._bar.set_postfix(loss=f'{values["loss"]:.4f}', refresh=False)
    self._bar.update()
    due = now - self._printed >= self._config.report.line_s
    if self._bar.disable and (due or step in (self._first + 1, steps)):
      self._printed = now
      print(line, flush=True)

  def record(self, step: int, values: Mapping[str, float]) -> None:
    """Writes numbers of a step to metrics.jsonl and to TensorBoard."""
    if self._on:
      row = {'step': step, **{name: float(f'{v:.7g}') for name, v in values.items()}}
      self._records.write(f'{json.dumps(row)}\n'.encode())
      for name, value in values.items():
        self._board.add_scalar(name, value, step)
      if self._wandb:
        self._wandb.log(row)

  def held_out(self, step: int, values: Mapping[str, float]) -> None:
    """Writes losses of `HeldOut`, and a line of them in the shape of MaxText's."""
    rest = ', '.join(f'{name}: {v:.4f}' for name, v in values.items() if name != 'held_loss')
    self.say(f'eval metrics after step: {step}, loss={values["held_loss"]:.4f}, {rest}')
    self.record(step, values)

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Shows pictures, uint8[H, W, 3] by prompt, in TensorBoard and wandb, and keeps their files."""
    if not self._on:
      return
    folder = self._samples / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (prompt, pixels) in enumerate(pictures.items()):
      self._board.add_image(f'samples/{prompt}', pixels, step, dataformats='HWC')
      Picture(pixels, {'prompt': prompt, 'seed': number}).save(folder / f'{number}.png')
    if self._wandb:
      image = importlib.import_module('wandb').Image
      shown = [image(pixels, caption=prompt) for prompt, pixels in pictures.items()]
      self._wandb.log({'step': step, 'samples': shown})

  def _speed(self, filled, seconds: float) -> dict[str, float]:
    """Of each device, for filled positions alone: padding is no work."""
    share = float(filled) / max(seconds, 1e-9) / self._devices
    done = self._flops * share
    speed = {
      'tokens_per_second_per_device': self._config.rows * self._config.length * share,
      'tflops_per_second_per_device': done / 1e12,
    }
    return speed | ({'mfu': done / self._peak} if self._peak else {})

  def flush(self) -> None:
    """Uploads the lines and records so far, where they are not in files yet."""
    if self._on:
      self._lines.flush()
      self._records.flush()

  def close(self) -> None:
    """Says where the time went, and writes out what is buffered."""
    if self._bar is not None:
      self._bar.close()
    if self._on:
      self.say(str(self._goodput))
      self._flusher.close()
      self._goodput.write()
      if self._wandb:
        self._wandb.finish()
      for file in (self._lines, self._records, self._board):
        file.close()


def summary(config: TrainConfig, mesh, state: TrainState, workdir: str, start: str) -> list[str]:
  """What is trained, on what, from where. start: what the state comes from."""
  sizes = {name: leaf.size for name, leaf in tree.flatten(state.params).items()}
  local = lambda leaf: leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
  device = mesh.devices.flat[0]
  axes = ' x '.join(f'{name} {n}' for name, n in mesh.shape.items())
  o = config.optimizer
  return [
    f'{config.stage} in {workdir}: step {int(state.step)} of {config.steps}, {start}',
    f'parameters: {sum(sizes.values()):,}, {sum(sizes[name] for name in state.ema):,} of them '
    f'train; state {sum(map(local, jax.tree.leaves(state))) / 2**30:.3f} GiB per device',
    f'devices: {mesh.size} x {device.device_kind} of {jax.process_count()} processes, mesh {axes}',
    f'batch: {config.rows} rows x {config.length} positions, {config.visual} latent tokens and '
    f'{config.images} pictures or clips a row; {flops.train_flops(config).useful:.3e} FLOPs a step',
    f'optimizer: {o.kind}, lr {o.lr:g} {o.schedule} after {o.warmup} steps, ema {o.ema:g}; '
    f'all fields: {files.path(workdir) / "config.json"}',
  ]


def _board(folder):
  """A SummaryWriter of TensorBoard's files into `folder`, on object storage in parts."""
  # It would load PyTorch wherever that is installed, which takes as long as all other imports.
  torch = sys.modules.setdefault('torch', None)
  import tensorboardX

  if torch is None:
    del sys.modules['torch']
  if files.is_remote(folder):
    tensorboardX.record_writer.register_writer_factory(str(folder).partition(':')[0], _Parts)
  # Its own name has the second and the host alone, so a quick restart would write over it. Its
  # thread waits for uploads, and beyond the queue's size the run would wait for the thread.
  return tensorboardX.SummaryWriter(
    str(folder), max_queue=10_000, flush_secs=FLUSH_S, filename_suffix=f'.{uuid.uuid4().hex[:8]}'
  )


class _Parts:
  """Opens files on object storage for tensorboardX."""

  open = files.Appending

  @staticmethod
  def directory_check(path: str) -> None:
    """Object storage needs no folders."""


def check(config: TrainConfig) -> None:
  """Raises UserError where the config asks for wandb, which is not installed."""
  if config.report.wandb and importlib.util.find_spec('wandb') is None:
    raise UserError(
      f"report.wandb={config.report.wandb!r}: no package wandb; pip install 'tuna_jax[wandb]'"
    )


def _wandb(workdir: str, config: TrainConfig):
  """The run of Weights & Biases: of one workdir always the same, so that a start goes on in it."""
  root = files.absolute(workdir)
  run = importlib.import_module('wandb').init(
    project=config.report.wandb, name=root.name, config=to_dict(config), resume='allow',
    id=hashlib.sha256(str(root).encode()).hexdigest()[:16],
    dir=None if files.is_remote(root) else str(root),
  )  # fmt: skip
  run.define_metric('*', step_metric='step')  # steps that run twice are no error then
  return run


class Repeated:
  """Calls functions every `seconds` from a thread of its own, until it is closed. What one raises
  is a warning, since a report must not end a run."""

  def __init__(self, seconds: float, *calls: Callable[[], object]):
    self._seconds, self._calls, self._stop = seconds, calls, threading.Event()
    self._thread = threading.Thread(target=self._run, name='tuna-report', daemon=True)
    self._thread.start()

  def _run(self):
    while not self._stop.wait(self._seconds):
      self._call(*self._calls)

  def _call(self, *calls: Callable[[], object]):
    for call in calls:
      try:
        call()
      except Exception as error:  # of any client of object storage
        _log.warning('reports are not written yet, it is tried again: %r', error)

  def close(self, *last: Callable[[], object]) -> None:
    """Ends the thread and calls what is to happen once after it."""
    self._stop.set()
    self._thread.join()
    self._call(*last)
