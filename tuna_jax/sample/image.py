"""Pictures and clips from noise: prompts and sources enter the caches once, then each step computes
the target span only.

    prefill   [prompt, source pictures, boi] --> keys and values of decoder and flow head    once
    step      [time][x_0] ... [x_N-1] ---------> velocity                        points - 1 times

The branches of guidance are rows of one batch; the vision tower sees x once for all of them. This
is exact: nothing before the target attends to it, and nothing after it changes it
(docs/architecture.md 10.6).

Axes:  R pictures   G branches of guidance   B = G R rows   P prompt   C channels
       N latent cells of the target
Rows are branch-major: R conditional ones first, then the negative ones.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import numbers
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import flow
from tuna_jax.batch import Batch
from tuna_jax.config import TunaConfig, UserError, nearest
from tuna_jax.models.tuna import Cache, Tuna, init_cache
from tuna_jax.ranges import NotNegative, Range
from tuna_jax.sample.prompt import lengths
from tuna_jax.weights import storage

SCALE = 7.5  # the official scale of guidance for pictures (docs/architecture.md 10)


TASKS = ('t2i', 'edit', 't2v')


class Published(NamedTuple):
  """How the authors of a design sample. scales: of guidance, for each of TASKS."""

  scales: tuple[float, float, float]
  points: int = 50
  shift: float = flow.SAMPLE_SHIFT
  solver: str = 'euler'


# docs/architecture.md 10, docs/showo2.md 8 and docs/pixel.md 6. Clips of pixels were not published,
# nor was a model of 'decoupled'.
PUBLISHED = {
  'cascade': Published((SCALE, SCALE, 6.0)),
  'late_fusion': Published((SCALE, SCALE, 6.0)),
  'pixel_encoder': Published((4.0, 5.0, 4.0), 51, 1.0, 'heun'),
  'pixel': Published((3.0, 2.0, 3.0), 51, 1.0),
  'decoupled': Published((SCALE, SCALE, SCALE)),
}


@dataclasses.dataclass(frozen=True)
class Usual:
  """How a model of one's own is sampled where nobody says otherwise: scale of guidance, points and
  shift of `Drawing`. 0 is as published for its design."""

  guidance: NotNegative = 0.0
  points: Annotated[int, Range(0, 1000)] = 0
  shift: NotNegative = 0.0


@dataclasses.dataclass(frozen=True)
class Guidance:
  """How the velocities of the branches become one.

  scale: of the text: negative + scale (conditional - negative); 1 is no guidance.
  image_scale: of the source pictures of an edit, with a third branch that has neither text nor
  pictures: nothing + image_scale (pictures - nothing) + scale (all - pictures). None: the sources
  are in both branches.
  interval: (from, to) of t; outside it the conditional velocity is used, which costs one branch.
  rescale: in [0, 1], how far the guided velocity gets the conditional one's standard deviation.
  Raises UserError for numbers out of these ranges.
  """

  scale: float = SCALE
  image_scale: float | None = None
  interval: tuple[float, float] = (0.0, 1.0)
  rescale: float = 0.0

  def __post_init__(self):
    for name in ('scale', 'image_scale'):
      value = getattr(self, name)
      if value is None and name == 'image_scale':
        continue
      if not isinstance(value, numbers.Real) or not value > 0:
        raise UserError(f'guidance {name}={value!r}: expected a number above 0; 1 is none')
    low, high = self.interval
    if not 0 <= low < high <= 1:
      raise UserError(f'guidance interval={self.interval}: expected 0 <= from < to <= 1')
    if not 0 <= self.rescale <= 1:
      raise UserError(f'guidance rescale={self.rescale}: expected 0 to 1')

  @property
  def branches(self) -> int:
    """Rows that each picture needs."""
    if self.image_scale is not None:
      return 3
    return 1 if self.scale == 1 else 2

  @property
  def numbers(self) -> np.ndarray:
    """float32[5] for `velocity_field`."""
    return np.float32([self.scale, self.image_scale or 1.0, *self.interval, self.rescale])

  @property
  def limited(self) -> bool:
    """Whether some times are not guided."""
    return self.branches > 1 and self.interval != (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How pictures and clips are drawn. points: of the official time grid, of points - 1 steps.
  shift: of that grid towards noise. solver: one of `flow.SOLVERS`."""

  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  points: int = 50
  shift: float = flow.SAMPLE_SHIFT
  solver: str = 'euler'

  def __post_init__(self):
    if self.solver not in flow.SOLVERS:
      raise UserError(f'solver {self.solver!r}: expected one of {", ".join(flow.SOLVERS)}')
    if self.points < 2:
      raise UserError(f'points={self.points}: at least 2 are needed, for one step')
    if not self.shift > 0:
      raise UserError(f'shift={self.shift}: must be above 0; 1 leaves the grid as it is')

  @classmethod
  def of(
    cls, design: str, task: str, guidance: float | Guidance | None = None,
    points: int | None = None, shift: float | None = None, solver: str | None = None,
    own: Usual = Usual(),
  ) -> Drawing:  # fmt: skip
    """What is given, and the rest of `own`, or as published for the design. A guidance that is a
    number is its scale. task: 't2i', 'edit' or 't2v'."""
    usual = PUBLISHED[design]
    if task not in TASKS:
      raise UserError(f'task {task!r}: expected one of {", ".join(TASKS)}{nearest(task, TASKS)}')
    if guidance is None:
      guidance = own.guidance or usual.scales[TASKS.index(task)]
    if not isinstance(guidance, Guidance):
      real = isinstance(guidance, numbers.Real)
      guidance = Guidance(float(guidance) if real else guidance)
    return cls(
      guidance,
      (own.points or usual.points) if points is None else points,
      (own.shift or usual.shift) if shift is None else shift,
      usual.solver if solver is None else solver,
    )

  @property
  def evaluations(self) -> int:
    """Velocity evaluations of one picture."""
    return self.points - 1 if self.solver == 'euler' else 2 * (self.points - 1) - 1


def noise(seeds: Sequence[int], cells: int, channels: int) -> np.ndarray:
  """float32[R, N, C]; row r depends on `seeds[r]` alone."""
  return np.stack(
    [np.random.default_rng(seed).standard_normal((cells, channels), np.float32) for seed in seeds]
  )


def sample_latents(
  config: TunaConfig, params, prompts: Batch, grid, noise, how: Drawing, *, held=False, report=None
):
  """Solves the ODE from `noise` -> float32[R, N, C] latents.

  params: of `Tuna`. prompts: how.guidance.branches * R prefix rows, from `prompt.collate`; source
  pictures are clean latents in it. grid: int[R, 3] (frames, rows, columns) of each target; a
  picture of fewer cells than N is padded at the end. noise: float32[R, N, C]. held: the first
  latent frame of `noise` is a clean picture, which stays. report: called with the number of
  velocity evaluations so far, once after each.

  Everything is one compiled program, reused for every prompt of the same padded shape.
  """
  guidance = how.guidance
  if len(prompts.tokens) != guidance.branches * len(noise):
    found, wanted = len(prompts.tokens), f'{len(noise)} pictures of {guidance.branches} branches'
    raise UserError(f'{found} prompt rows for {wanted}')
  run = next(_runs)
  if report is not None:
    _reports[run] = functools.partial(_count, report, itertools.count(1))
  try:
    out = sampler(
      params, prompts, np.asarray(grid, np.int32), noise, flow.times(how.points, how.shift),
      guidance.numbers, np.int32(run), config=config, branches=guidance.branches,
      limited=guidance.limited, rescaled=guidance.rescale > 0, solver=how.solver,
      held=held, reported=report is not None,
    )  # fmt: skip
    if report is not None:
      jax.effects_barrier()
  finally:
    _reports.pop(run, None)
  return out


def prefill(config: TunaConfig, params, prompts: Batch, room: int) -> Cache:
  """Caches of decoder and flow head holding `prompts`, with `room` free keys."""
  rows, length, _, images, _ = prompts.sizes
  cache = init_cache(config, rows, length + room, flow=True)
  ones = jnp.ones((rows, images), jnp.float32)
  return Tuna(config).apply({'params': params}, prompts, prompts.latents, ones, cache).cache


def target_batch(prompts: Batch, grid, cells: int) -> Batch:
  """The Batch of one step: in each row a time token and `cells` latent tokens, behind `prompts` in
  the cache. grid: int32[B, 3]."""
  rows, length = prompts.tokens.shape
  place = jnp.broadcast_to(jnp.arange(1, cells + 1), (rows, cells))
  index = jnp.arange(cells)
  frames, height, width = (grid[:, i, None] for i in range(3))
  coords = jnp.stack([index // (height * width), index // width % height, index % width], axis=-1)
  # [B, N]; 0 where a smaller picture is padded
  image = (index < frames * height * width).astype(jnp.int32)
  real = jnp.concatenate([jnp.ones((rows, 1), jnp.int32), image], axis=1)
  sequence = jnp.broadcast_to(jnp.arange(cells + 1), (rows, cells + 1))
  unused = jnp.zeros_like(sequence)
  return Batch(
    tokens=unused, labels=unused, label_weight=unused.astype(jnp.float32), segment=real,
    position=lengths(prompts)[:, None] + sequence,
    kv_limit=jnp.full_like(sequence, length + cells), slot=sequence, task=unused,
    latents=jnp.zeros((rows, cells, 0)), coords=coords * image[..., None], image=image,
    grid=grid[:, None], place=place, target=jnp.ones((rows, 1), bool),
  )  # fmt: skip


def hold(velocity, coords):
  """`velocity`, zero in the first latent frame: the clean picture that a clip continues."""
  return jnp.where(coords[..., :1] == 0, 0.0, velocity)


def combine(branches: Sequence[jax.Array], scale, image_scale, rescale=None):
  """The guided velocity [R, N, C] of (conditional, negative) or (all, pictures only, nothing)."""
  cond = branches[0]
  if len(branches) == 2:
    out = flow.guide(cond, branches[1], scale)
  else:
    _, pictures, nothing = branches
    out = nothing + image_scale * (pictures - nothing) + scale * (cond - pictures)
  if rescale is None:
    return out
  ratio = jnp.std(cond, axis=(1, 2), keepdims=True) / (
    jnp.std(out, axis=(1, 2), keepdims=True) + 1e-8
  )
  return out * (rescale * ratio + 1 - rescale)


def velocity_field(
  config,
  params,
  prompts: Batch,
  grid,
  cells: int,
  numbers,
  *,
  branches,
  limited=False,
  rescaled=False,
):
  """velocity(x [R, N, C], t) of the pictures behind `prompts`, which are read once, here.

  grid: int[R, 3]. cells: N. numbers, branches, limited: of `Guidance`. rescaled: its rescale is
  above 0.
  """
  scale, image_scale, low, high, rescale = numbers
  pictures = len(grid)
  model = Tuna(config)
  cache = prefill(config, params, prompts, cells + 1)
  target = target_batch(prompts, jnp.tile(grid, (branches, 1)), cells)

  def evaluate(x, t, branches):
    rows = branches * pictures
    here = jax.tree.map(lambda a: a[:rows], target)
    kept = cache._replace(
      decoder=jax.tree.map(lambda a: a[:, :rows], cache.decoder),
      flow=jax.tree.map(lambda a: a[:, :rows], cache.flow),
      segment=cache.segment[:rows],
    )
    time = jnp.full((rows, 1), t, jnp.float32)
    return model.apply({'params': params}, here, x, time, kept).velocity

  def guided(x, t):
    return combine(
      jnp.split(evaluate(x, t, branches), branches),
      scale,
      image_scale,
      rescale if rescaled else None,
    )

  def velocity(x, t):
    if branches == 1:
      return evaluate(x, t, 1)
    if not limited:
      return guided(x, t)
    return jax.lax.cond((t >= low) & (t <= high), guided, lambda x, t: evaluate(x, t, 1), x, t)

  return velocity


# The compiled program is the same for all runs, so it names its run to the callback.
_runs = itertools.count()
_reports: dict[int, Callable[[], None]] = {}


def _count(report, numbers):
  report(next(numbers))


def _tell(run, _):
  if report := _reports.get(int(run)):
    report()


@storage.program(
  static_argnames=('config', 'branches', 'limited', 'rescaled', 'solver', 'held', 'reported')
)
def sampler(
  params, prompts, grid, noise, times, numbers, run,
  *, config, branches, limited, rescaled, solver, held, reported,
):  # fmt: skip
  field = velocity_field(
    config, params, prompts, grid, noise.shape[1], numbers,
    branches=branches, limited=limited, rescaled=rescaled,
  )  # fmt: skip

  def velocity(x, t):
    if reported:
      jax.debug.callback(_tell, run, t)
    v = field(x, t)
    if held:
      frame = jnp.arange(x.shape[1]) // (grid[:, 1] * grid[:, 2])[:, None]
      v = hold(v, frame[..., None])
    return v

  return flow.solve(velocity, noise, times, solver)
