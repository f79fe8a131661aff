"""The page of a small run, OUT/index.html: it grows while the run trains and ends as the report."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable

import numpy as np

from tuna_jax import files
from tuna_jax.data.mixture import DataConfig
from tuna_jax.evals import own_data, reconstruct, report
from tuna_jax.evals.results import NOTHING, Evaluation, Sample
from tuna_jax.sample.open import open_generator
from tuna_jax.toy import train_vae
from tuna_jax.train.report import Repeated
from tuna_jax.weights import steps, store

REFRESH = 15.0  # seconds between two writings of the page
SHOWN = 6  # fixed held-out items of each task


class Page:
  """Writes the page from a thread of its own while its block runs: curves and the time of each part
  every REFRESH seconds, samples of fixed held-out items from every new checkpoint as long as time
  is left. The seconds of the running part are saved as often."""

  def __init__(self, root, progress, held_out: str, say: Callable[[str], None]):
    self._root, self._progress, self._held_out, self._say = root, progress, held_out, say
    self._rebuilt: reconstruct.Rebuilt | None = None
    self._samples: list[tuple[str, list[Sample]]] = []
    self._seen: tuple[str, int] | None = None

  def __enter__(self) -> Page:
    self._repeated = Repeated(REFRESH, self._progress.save, self._look, self._grow)
    return self

  def __exit__(self, *_):
    self._repeated.close()

  def check_vae(self, where: str, config: DataConfig) -> None:
    """Rebuilds pictures of the data with the VAE; a bad one is a loud warning."""
    vae_config, params = store.load_vae(where)
    pictures = train_vae.Media(dataclasses.replace(config, mixture=self._held_out), 1).batch(
      0, 12, False
    )[:, 0]
    pictures = np.unique(pictures, axis=0)  # of few that are held out, each is drawn several times
    self._rebuilt = reconstruct.rebuild(vae_config, params, pictures)
    self._say(f'VAE: {self._rebuilt.psnr:.1f} dB on {len(pictures)} pictures of these data')
    if self._rebuilt.warning:
      line = '!' * 78
      self._say(f'{line}\n{self._rebuilt.warning}\n{line}')

  def report(self, run: str, mixtures: list[str], n: int) -> str:
    """Scores the run on held-out and training items; the page becomes the report."""
    self._repeated.close()
    began = time.perf_counter()
    generator = open_generator(run, batch_size=50)
    found = own_data.evaluate(generator, *mixtures, n, say=self._say)
    return self._write(found, seconds=time.perf_counter() - began)

  def _grow(self):
    self._write(NOTHING, refresh=int(REFRESH))

  def _look(self):
    """Samples of the newest checkpoint, if it is a new one and time is left."""
    if self._progress.left <= 0:
      return
    found = {
      name: steps.committed(self._root / name)
      for name in ('lora', 'stage3', 'stage2', 'stage1')
      if (self._root / name / 'checkpoints').exists()
      and (self._root / name / 'config.json').exists()
    }
    newest = next(((name, max(s)) for name, s in found.items() if s), None)
    if not newest or newest == self._seen:
      return
    self._seen = name, step = newest
    generator = open_generator(str(self._root / name), batch_size=SHOWN)
    judged = own_data.evaluate(
      generator, self._held_out, self._held_out, SHOWN, say=lambda _: None, splits=('test',)
    )
    samples = [s for result in judged.results.values() for s in result.samples]
    self._samples = [*self._samples, (f'Held out, at {name}, step {step}', samples)]

  def _write(self, evaluation: Evaluation, seconds: float = 0.0, refresh: int = 0) -> str:
    lines = [
      json.dumps({'step': name, 'seconds': taken}) for name, taken in self._progress.spent.items()
    ]
    files.write_text(self._root / 'steps.jsonl', '\n'.join(lines))
    return report.write(
      str(self._root),
      evaluation,
      str(self._root),
      title='Your own data',
      facts={
        'data': self._progress.data,
        'minutes': f'{self._progress.minutes:g}',
        **({'now': now} if refresh and (now := self._progress.running[0]) else {}),
        'steps': ', '.join(f'{name} {n}' for name, n in self._progress.steps.items()),
        'processor seconds of this start': round(time.process_time()),
      },
      command='tuna-jax fit' if seconds else '',
      seconds=seconds,
      growing=self._samples,
      rebuilt=self._rebuilt,
      refresh=refresh,
    )
