"""RUN/index.html while a run trains: losses by task, pictures of fixed prompts, what the time went
to."""

from __future__ import annotations

import time

import jax
import numpy as np
from PIL import Image

from tuna_jax import files
from tuna_jax.evals import report
from tuna_jax.evals.results import NOTHING, Sample
from tuna_jax.sample.output import read_info
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.report import SAMPLES, Repeated

REFRESH = 30.0  # seconds between two writings
SHARE = 20  # times as long as a writing took is the wait for the next, at least
DRAWN = 6  # the newest samples, which the page shows


class Running:
  """Writes the page from a thread of its own while its block runs, and once more at its end: from
  process 0, and as soon as this start has taken a step."""

  def __init__(self, config: TrainConfig, workdir: str):
    self._config, self._root = config, files.absolute(workdir)
    self._before: int | None = self._written()
    self._due = 0.0

  def __enter__(self) -> Running:
    self._repeated = Repeated(REFRESH, lambda: self._write(int(REFRESH)))
    return self

  def __exit__(self, *_):
    self._repeated.close(lambda: self._write(0))

  def _written(self) -> int:
    """Bytes of metrics: a start may take steps again, so their number may stay."""
    return len(files.read_appended(self._root / 'metrics.jsonl'))

  def _write(self, refresh: int) -> None:
    began, config = time.perf_counter(), self._config
    if jax.process_index() or (refresh and began < self._due):
      return
    if self._before is not None and self._written() == self._before:
      return
    self._before = None
    report.write(
      str(self._root),
      NOTHING,
      str(self._root),
      title=f'{config.stage}: {self._root.name}',
      facts={
        'data': config.data.mixture,
        'begins with': config.init_from or 'fresh weights',
        'steps': f'{config.steps} of {config.rows} rows x {config.length} positions',
        'design': config.model.design,
        'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}',
      },
      growing=[(f'Drawn after step {step}', self._drawn(step)) for step in self._steps()],
      refresh=refresh,
    )
    self._due = began + SHARE * (time.perf_counter() - began)

  def _steps(self) -> list[int]:
    """The steps of the newest samples."""
    folder = self._root / SAMPLES
    found = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in found if name.isdigit())[-DRAWN:]

  def _drawn(self, step: int) -> list[Sample]:
    found = sorted((self._root / SAMPLES / str(step)).glob('*.png'), key=lambda p: int(p.stem))
    samples = []
    for path in found:
      with path.open('rb') as file:
        pixels = np.asarray(Image.open(file))
      samples.append(Sample(read_info(path)['prompt'], None, {'drawn': pixels}))
    return samples
