"""Adapters of a model that is there, fitted to own data: a few steps that are measured, then the
rest of the time, in one run OUT/lora."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tuna_jax import flow
from tuna_jax.config import TunaConfig, UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.mappings import from_dict
from tuna_jax.sample.image import Usual
from tuna_jax.small import recipe
from tuna_jax.train.config import ReportConfig, TrainConfig
from tuna_jax.weights import published, store

MEASURED = 20  # steps that tell how long one takes


@dataclasses.dataclass(frozen=True)
class Base:
  """A model whose adapters are trained, and what it was trained with."""

  path: str
  model: TunaConfig
  vae: str
  tokenizer: str
  media: MediaConfig
  tasks: TaskConfig
  time_shift: float
  sampling: Usual

  @classmethod
  def of(cls, path: str) -> Base:
    """Of a run, or of a weights directory. Raises UserError where it holds no model."""
    root = published.locate(path)
    stored = store.open_stored(root)
    if stored.config is None:
      raise UserError(f'{path}: holds a VAE alone; expected a run or the weights of a model')
    media, tasks, shift, sampling = MediaConfig(), TaskConfig(), flow.TRAIN_SHIFT, Usual()
    vae, words = root / 'vae', root
    if known := stored.run or stored.notes.get('run'):
      run = from_dict(TrainConfig, known)
      media, tasks, shift = run.data.media, run.data.tasks, run.time_shift
      sampling = run.sampling
    if stored.run:
      vae, words = store.located(run.vae, root), root / 'tokenizer'
    found = media, tasks, shift, sampling
    return cls(str(root), stored.config, str(vae), str(words), *found)


def parts(
  base: Base, data: DataConfig, held_out: str, vae: str, seed: int, rest: Callable[[], int]
) -> tuple[tuple[str, Callable[[], TrainConfig]], ...]:
  """(name, function that gives its config) of both parts. rest: the steps of the second."""
  tasks = dataclasses.replace(base.tasks, max_text=recipe.LONGEST)
  data = dataclasses.replace(data, tasks=tasks)
  sizes = recipe.rows(data, Tokenizer.from_dir(base.tokenizer), base.model.strides)

  def run(steps: int) -> TrainConfig:
    every = max(steps // 5, MEASURED)
    return recipe.adapters(
      data, sizes, steps, base.model, base.time_shift, vae=vae or base.vae, init_from=base.path,
      tokenizer=base.tokenizer, seed=seed, checkpoint_every=every,
      sampling=base.sampling, report=ReportConfig(held_out=held_out, held_out_every=every),
    )  # fmt: skip

  return ('lora', lambda: run(MEASURED)), ('lora, the rest', lambda: run(MEASURED + rest()))
