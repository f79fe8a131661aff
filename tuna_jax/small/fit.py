"""`fit`: from own data to a small model and its report, within a time; the same call continues.

    data       training and held-out mixtures                 OUT/data
    tokenizer  the words of the training data                 OUT/tokenizer
    vae        trained on the pictures, or the one given      OUT/vae
    decoder    a short text-only start                        OUT/decoder
    stage1     everything trains; its steps are measured      OUT/stage1
    stage2     the same for most of the time                  OUT/stage2
    stage3     the same at a low rate, while time is left     OUT/stage3
    report     scores and samples                             OUT/report

With `lora`, the adapters of a model that is there are trained instead: data, lora, report.

OUT/fit.json says what is done, how many seconds each part took, and the steps that were chosen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import texts
from tuna_jax.data.sources import read_mixture
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.evals import curves
from tuna_jax.mappings import from_dict
from tuna_jax.ranges import Count, Range, Whole
from tuna_jax.small import adapt, prepare, recipe, watch
from tuna_jax.toy import train_vae
from tuna_jax.train import loop
from tuna_jax.train.config import ReportConfig
from tuna_jax.weights import store


@dataclasses.dataclass
class Progress:
  """What OUT/fit.json holds. data: what is fitted. minutes: of all parts. seconds: each part took,
  over all starts. steps: that were chosen for a part. done: the parts that are complete.
  """

  path: str
  data: str
  minutes: float
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  steps: dict[str, int] = dataclasses.field(default_factory=dict)
  done: list[str] = dataclasses.field(default_factory=list)
  running: tuple[str, float] = ('', 0.0)  # the part, and since when

  @classmethod
  def open(cls, path: str, data: str, minutes: float) -> Progress:
    """Of an earlier start, or new. Raises UserError where the earlier one had other data."""
    if not files.path(path).exists():
      return cls(path, data, minutes)
    own = {'path': str(path), 'minutes': minutes}
    known = from_dict(cls, files.read_object(path) | own, str(path))
    if known.done and known.data != data:
      raise UserError(f'{path}: begun with {known.data}, not with {data}; choose another --out')
    return known

  @property
  def left(self) -> float:
    """Seconds of the time that no part has taken yet."""
    return 60 * self.minutes - sum(self.spent.values())

  @property
  def spent(self) -> dict[str, float]:
    """Seconds by part, the running one included."""
    name, since = self.running
    if not name:
      return self.seconds
    return self.seconds | {name: self.seconds.get(name, 0.0) + time.perf_counter() - since}

  def save(self) -> None:
    """Writes fit.json; the part that runs counts up to now, so that a kill loses little of it."""
    values = {k: v for k, v in vars(self).items() if k not in ('path', 'running')}
    seconds = {name: round(taken, 1) for name, taken in self.spent.items()}
    files.write_json(self.path, values | {'seconds': seconds})

  @contextlib.contextmanager
  def part(self, name: str, say):
    """Counts the seconds of a part, and that it is complete if the block ends well."""
    say(f'== {name}')
    began, before = time.perf_counter(), self.seconds.get(name, 0.0)
    self.running = (name, began)
    try:
      yield
      self.done = [*dict.fromkeys([*self.done, name])]
    finally:
      self.running = ('', 0.0)
      self.seconds[name] = round(before + time.perf_counter() - began, 1)
      self.save()
    say(f'== {name}: {self.seconds[name]:.0f} s, {max(self.left, 0):.0f} s are left')

  def choose(self, name: str, steps: Callable[[], float], low: int = 5) -> int:
    """The steps of a part: as chosen at an earlier start, or those of `steps`, at least `low`."""
    if name not in self.steps:
      self.steps[name] = max(low, int(steps()))
      self.save()
    return self.steps[name]


@dataclasses.dataclass(frozen=True)
class _Asked:
  """The arguments of `fit`, by type and range."""

  data: str
  out: str
  test: str
  vae: str
  lora: str
  minutes: Annotated[float, Range(0.1, 1e6)]
  held_out: Annotated[float, Range(0, 0.9)]
  most: Annotated[int, Range(2, 2**31 - 1)]
  frames: Count
  seed: Whole
  n: Count


def fit(
  data: str, out: str, *, minutes: float = 15.0, test: str = '', vae: str = '',
  lora: str = '', held_out: float = 0.1, most: int = 10_000, image_size: str = '', frames: int = 9,
  seed: int = 0, n: int = 200, say: Callable[[str], None] = print,
) -> str:  # fmt: skip
  """Trains a small model on own data, or adapters of a model, and returns the path of its report.

  data: a mixture file or a folder (`prepare.py`). out: the directory of all that is written; the
  same call continues there. minutes: what everything together should take. test: records that are
  held out, a mixture or folder; otherwise the share `held_out` of the pictures. most: pictures that
  are used. vae: a weights directory to use instead of training one. lora: a run or weights whose
  adapters are trained instead of a model. image_size: 'N' or 'HxW' in pixels; by default 64, or
  what that model was trained on. n: items to judge per row of the report. Raises UserError for data
  that cannot be used, and Stopped once SIGTERM or Ctrl-C has saved.
  """
  plain = lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value
  data, out, test, vae, lora = map(plain, (data, out, test, vae, lora))
  asked = dict(minutes=minutes, held_out=held_out, most=most, frames=frames, seed=seed, n=n)
  from_dict(_Asked, dict(data=data, out=out, test=test, vae=vae, lora=lora, **asked))
  base = adapt.Base.of(lora) if lora else None
  size = str(image_size or (base.media.image_size if base else 64))
  media = MediaConfig(image_size=size, video_size=size, frames=frames)
  root = files.absolute(out)
  for what, given in (('data', data), ('test', test), ('vae', vae)):
    if given and not files.absolute(given).exists():
      raise UserError(f'{what}: {given}: no such file or folder')
  if root.exists() and not root.is_dir():
    raise UserError(f'out: {out}: is a file; expected a folder to write or to continue')
  root.mkdir(parents=True, exist_ok=True)
  progress = Progress.open(str(root / 'fit.json'), str(files.absolute(data)), minutes)
  with progress.part('data', say):
    mixtures = [str(root / 'data' / name) for name in prepare.NAMES.values()]
    if 'data' not in progress.done:
      prepare.prepare(data, str(root / 'data'), test, held_out, most, say)
  tasks = [row.task for row in read_mixture(mixtures[0])]
  config = recipe.data_config(mixtures[0], media, tasks, str(root / 'latents'))
  tokenizer = None
  if not base:
    with progress.part('tokenizer', say):
      tokenizer = _tokenizer(root / 'tokenizer', config)
  with watch.Page(root, progress, mixtures[1], say) as page:
    visual = any(task != 'text' for task in tasks)
    where, vae_config = (vae or base.vae) if base else '', recipe.TINY.vae
    if visual and not base:
      with progress.part('vae', say):
        where, vae_config = _vae(root, config, vae, seed, progress)
    if visual and not (base and base.model.vae is None):
      page.check_vae(where, config)
    if base:
      rest = lambda: progress.choose('lora', lambda: _after(root, progress, 'lora', 0.9, say))
      parts = adapt.parts(base, config, mixtures[1], vae, seed, rest)
    else:
      model = recipe.model(tokenizer, vae_config)
      parts = _stages(root, progress, config, mixtures[1], model, tokenizer, where, seed, say)
    for name, part in parts:
      with progress.part(name, say):
        loop.train(part(), str(root / name.partition(',')[0]))
    with progress.part('report', say):
      return page.report(str(root / ('lora' if base else 'stage3')), mixtures, n)


def _tokenizer(folder, config) -> Tokenizer:
  """The one in `folder`, learned from the texts of the training data where there is none."""
  if not folder.exists():
    Tokenizer.train(texts(config, 20_000), recipe.VOCABULARY).save(str(folder))
  return Tokenizer.from_dir(str(folder))


def _vae(root, config, given: str, seed: int, progress: Progress):
  """(directory, VaeConfig) of the VAE given, or of one trained for its share of the time."""
  if given:
    return given, store.load_vae(given)[0]
  train = recipe.vae(config, seed)

  def steps():
    each = train_vae.step_seconds(train)
    return (60 * progress.minutes * recipe.SHARES['vae'] - progress.spent['vae']) / each

  train = dataclasses.replace(train, steps=progress.choose('vae', steps))
  return str(root / 'vae'), train_vae.train_vae(train, str(root / 'vae'))[0]


def _after(root, progress, before: str, share: float, say) -> float:
  """Steps of a part that takes a share of what is left, at the speed of the one before it."""
  records = curves.read(root / before / 'metrics.jsonl')
  taken = [r['seconds'] for r in records if 'seconds' in r]
  each = statistics.mean(taken[len(taken) // 2 :])
  left = progress.left - 60 * progress.minutes * recipe.SHARES['report']
  free = share * max(left, 0.0)
  say(f'a step of {before} took {each:.3f} s: {free:.0f} s are for the next stage')
  return free / each


def _stages(root, progress, config, held_out, model, tokenizer, vae, seed, say):
  """(name, function that gives its config) of the decoder and the stages."""
  strides = model.strides
  words = dataclasses.replace(config, phases=((0.0, (('text', 1.0),)),))
  common = dict(tokenizer=str(root / 'tokenizer'), seed=seed)
  budget = lambda name: 60 * progress.minutes * recipe.SHARES[name]

  def decoder():
    tasks = dataclasses.replace(config.tasks, learn='everything')
    data = dataclasses.replace(words, tasks=tasks)
    sizes = recipe.rows(data, tokenizer, strides)
    steps = progress.choose('decoder', lambda: min(recipe.FIRST, budget('decoder') / 0.05))
    return recipe.stage('decoder', data, sizes, steps, model, **common)

  sizes = functools.cache(lambda: recipe.rows(config, tokenizer, strides))

  def stage(name, steps, start):
    every = max(steps // 5, 50)
    more = dict(vae=vae, init_from=str(root / start), checkpoint_every=every)
    # A stage that is shorter than that is not measured on what is held out.
    report = dict(held_out=held_out, held_out_every=every) if steps >= every else {}
    more['report'] = ReportConfig(**report)
    return recipe.stage(name, config, sizes(), steps, model, **more, **common)

  after = lambda before, share: _after(root, progress, before, share, say)

  def first():
    most = min(recipe.FIRST, 20 * progress.minutes)
    fit_in = lambda: after('decoder', 0.3) / recipe.COSTLIER
    return stage('stage1', progress.choose('stage1', lambda: min(most, fit_in())), 'decoder')

  def second():
    return stage('stage2', progress.choose('stage2', lambda: after('stage1', 0.65)), 'stage1')

  def third():
    return stage('stage3', progress.choose('stage3', lambda: after('stage2', 0.9)), 'stage2')

  return ('decoder', decoder), ('stage1', first), ('stage2', second), ('stage3', third)
