"""`TrainConfig`: all settings of a run. `configs/` builds it from a stage and a size."""

from __future__ import annotations

import dataclasses

from tuna_jax.config import TunaConfig, UserError, nearest
from tuna_jax.data.mixture import DataConfig
from tuna_jax.flow import TRAIN_SHIFT

KINDS = ('adamw', 'muon')
SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with global-norm clipping and an exponential moving average.

  kind: 'adamw', or 'muon' for the kernels with AdamW for the rest (`optimizer.scale_by`). groups:
  (name pattern, multiple of lr), first match wins; 0 means no gradient and no optimizer state.
  schedule: what follows `warmup` steps of linear rise: constant, or down to `final_lr` x lr at the
  last step. decay: patterns of the leaves that weight decay touches. ema: the decay d of the
  average, warmed up as min(d, (1 + n) / (10 + n)). accumulate: micro-batches per step; the
  result equals one batch of all of them.
  """

  kind: str = 'adamw'
  lr: float = 1e-4
  warmup: int = 1000
  schedule: str = 'constant'
  final_lr: float = 0.0
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.01
  decay: tuple[str, ...] = ('.*/kernel', '.*/embedding')
  clip: float = 1.0
  ema: float = 0.9999
  accumulate: int = 1
  groups: tuple[tuple[str, float], ...] = (('.*', 1.0),)

  def __post_init__(self):
    for name, value, known in (
      ('kind', self.kind, KINDS), ('schedule', self.schedule, SCHEDULES)
    ):  # fmt: skip
      if value not in known:
        near = nearest(value, known)
        raise UserError(f'optimizer.{name} {value!r}: expected one of {known}{near}')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes. -1 is inferred; fsdp is filled before data. `slices` of a pod lie along
  the data axis."""

  data: int = -1
  fsdp: int = -1
  context: int = 1
  tensor: int = 1
  slices: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One stage of one size.

  rows, length, visual, images: B (of the whole pod), L, V and M of `Batch`.
  ntp_coeff, flow_coeff: weights of the two losses; flow_coeff 0 leaves the flow head out.
  time_shift: shift of the training times towards noise (docs/architecture.md 8.2).
  init_from: run or weights directory this stage starts from, strictly by name; '' starts fresh.
  initial: 'module:function' that changes the values of a fresh start; '' changes nothing.
  vae, tokenizer: directories of the frozen parts.
  profile_steps: numbers of steps, from 0, whose profile is written to profile/ of the run.
  """

  model: TunaConfig
  stage: str
  steps: int
  rows: int
  length: int
  visual: int
  images: int
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  ntp_coeff: float = 0.2
  flow_coeff: float = 1.0
  time_shift: float = TRAIN_SHIFT
  seed: int = 0
  init_from: str = ''
  initial: str = ''
  vae: str = ''
  tokenizer: str = ''
  checkpoint_every: int = 500
  keep: int = 3
  profile_steps: tuple[int, ...] = ()

  def __post_init__(self):
    if self.rows % self.optimizer.accumulate:
      raise UserError(
        f'rows={self.rows} does not divide into optimizer.accumulate={self.optimizer.accumulate}'
      )
    if min(self.ntp_coeff, self.flow_coeff) < 0:
      found = f'ntp_coeff={self.ntp_coeff}, flow_coeff={self.flow_coeff}'
      raise UserError(f'weights of the losses must not be negative: {found}')

  @property
  def sizes(self) -> tuple[int, int, int, int, int]:
    """(B, L, V, M, C)."""
    return self.rows, self.length, self.visual, self.images, self.model.token_dim
