"""`TrainConfig`: all settings of a run. `configs/` builds it from a stage and a size."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from tuna_jax.config import DESIGNS, TunaConfig, UserError, nearest
from tuna_jax.data.mixture import DataConfig
from tuna_jax.flow import TRAIN_SHIFT
from tuna_jax.ranges import (
  Count,
  Decay,
  Few,
  NotNegative,
  Positive,
  Range,
  Rate,
  Share,
  Whole,
  Width,
)
from tuna_jax.sample.image import Usual

DTYPES = ('float32', 'bfloat16')  # of the encoder, of first moments and of averages
FROZEN = ('float32', 'bfloat16', 'int8')  # of what does not train
KINDS = ('adamw', 'muon', 'adafactor')
HOST = ('moments', 'ema')  # what may lie in host memory
Part = Annotated[float, Range(-1, 1)]
SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with global-norm clipping and an exponential moving average.

  kind: 'adamw'; 'muon' for the kernels with AdamW for the rest; or 'adafactor', whose second moment
  of a matrix is a row and a column (`optimizer.scale_by`). mu_dtype: of first moments. groups:
  (name pattern, multiple of lr), first match wins; 0 means no gradient and no optimizer state.
  schedule: what follows `warmup` steps of linear rise: constant, or down to `final_lr` x lr at the
  last step. decay: patterns of the leaves that weight decay touches. ema: the decay d of the
  average, warmed up as min(d, (1 + n) / (10 + n)); ema_dtype: of the average, which bfloat16 holds
  with stochastic rounding; ema_every: steps between two updates of it, by d ** ema_every. host:
  which of HOST lie in host memory between two steps (docs/advice.md 1). accumulate: micro-batches
  per step; the result equals one batch of all of them.
  lora: (pattern of kernels, rank, alpha), first match wins: low-rank adapters, which are leaves
  `lora_a` and `lora_b` beside their kernels (weights/lora.py). `groups` says what trains, as ever:
  (('.*/lora_[ab]', 1.0), ('.*', 0.0)) for nothing but adapters.
  """

  kind: str = 'adamw'
  lr: Rate = 1e-4
  warmup: Whole = 1000
  schedule: str = 'constant'
  final_lr: Share = 0.0
  b1: Decay = 0.9
  b2: Decay = 0.95
  eps: Positive = 1e-8
  weight_decay: Share = 0.01
  decay: tuple[str, ...] = ('.*/kernel', '.*/embedding')
  clip: Positive = 1.0
  mu_dtype: str = 'float32'
  ema: Decay = 0.9999
  ema_dtype: str = 'float32'
  ema_every: Few = 1
  host: tuple[str, ...] = ()
  accumulate: Few = 1
  groups: tuple[tuple[str, NotNegative], ...] = (('.*', 1.0),)
  lora: tuple[tuple[str, Few, Positive], ...] = ()

  def __post_init__(self):
    for name, value, known in (
      ('kind', self.kind, KINDS), ('schedule', self.schedule, SCHEDULES),
      ('mu_dtype', self.mu_dtype, DTYPES), ('ema_dtype', self.ema_dtype, DTYPES),
      *(('host', name, HOST) for name in self.host),
    ):  # fmt: skip
      if value not in known:
        near = nearest(value, known)
        raise UserError(f'optimizer.{name} {value!r}: expected one of {known}{near}')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes. -1 is inferred; fsdp is filled before data. `slices` of a pod lie along
  the data axis."""

  data: Annotated[int, Range(-1, 2**20)] = -1
  fsdp: Annotated[int, Range(-1, 2**20)] = -1
  context: Few = 1
  tensor: Few = 1
  slices: Few = 1


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """How the frozen VAE encodes.

  online: latents are made while training; without, the mixture holds latents (`tuna-jax data
  encode`) and no VAE is loaded. dtype: of its parameters and its arithmetic. group_mb: 2**20 bytes
  of pixels that one device encodes at once; of a clip, four frames are counted. One picture or clip
  is always taken.
  """

  online: bool = True
  dtype: str = 'float32'
  group_mb: Positive = 3.0

  def __post_init__(self):
    if self.dtype not in DTYPES:
      near = nearest(self.dtype, DTYPES)
      raise UserError(f'encoder.dtype {self.dtype!r}: expected one of {DTYPES}{near}')


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What a run says while it trains.

  line_s: seconds between two printed lines where the output is no terminal; log.txt has a line for
  every step.
  held_out: mixture whose loss is measured on `held_out_batches` batches before the first step and
  every `held_out_every` steps; 0 is never. samples_every: steps between two drawings of `prompts`,
  before the first step too; 0 is never. sample_points: of their time grid. Both use the averages.
  wandb: a project of Weights & Biases that is told all of it as well; '' is none.
  """

  line_s: NotNegative = 10.0
  held_out: str = ''
  held_out_every: Whole = 0
  held_out_batches: Few = 8
  samples_every: Whole = 0
  sample_points: Annotated[int, Range(2, 1000)] = 20
  prompts: tuple[str, ...] = (
    'a red circle',
    'a cat asleep on a windowsill',
    'a bowl of fruit on a wooden table',
    'the word HELLO on a sign',
  )
  wandb: str = ''

  def __post_init__(self):
    if bool(self.held_out) != bool(self.held_out_every):
      raise UserError(
        f'report.held_out={self.held_out!r} and report.held_out_every={self.held_out_every}: '
        'expected a mixture and a number of steps, or neither'
      )
    if self.samples_every and not self.prompts:
      raise UserError('report.samples_every: report.prompts is empty, so there is nothing to draw')


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """What ends a run, and what it notices (docs/reliability.md).

  updates: in a row that are not finite, and therefore not kept, after which the run stops. spike: a
  loss above this multiple of the median of the last `window` losses is logged with its records.
  wait: seconds without a step, a batch or a save, after which all stacks are logged and the run
  saves what it can and ends with code 75; a start, a compilation or an evaluation may take four
  times as long.
  """

  updates: Few = 10
  wait: Annotated[float, Range(1, 10**6)] = 900.0
  spike: Annotated[float, Range(1, above=True)] = 3.0
  window: Annotated[int, Range(10, 10_000)] = 100


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One stage of one size.

  rows, length, visual, images: B (of the whole pod), L, V and M of `Batch`.
  ntp_coeff, flow_coeff: weights of the two losses; flow_coeff 0 leaves the flow head out.
  time_shift: shift of the training times towards noise (docs/architecture.md 8.2).
  sampling: how the trained model draws where nobody says otherwise.
  context_noise: (share, level): so many pictures of examples that draw nothing are a little noisy,
  t = 1 - U(0, level). masked: (low, high): of the patches of each picture, a share U(low, high) is
  replaced by the mask token of the design 'pixel'; below 0 means none (docs/pixel.md 2 and 4).
  init_from: run or weights directory this stage starts from, strictly by name; '' starts fresh.
  initial: 'module:function' that changes the values of a fresh start; '' changes nothing.
  frozen: how leaves that do not train are held: float32, bfloat16, or int8 (weights/storage.py).
  vae, tokenizer: directories of the frozen parts.
  verify: whether a checkpoint is compared with the digests it was saved with when it is read.
  profile_steps: numbers of steps, from 0, whose profile is written to profile/ of the run.
  """

  model: TunaConfig
  stage: str
  steps: Count
  rows: Width
  length: Width
  visual: Annotated[int, Range(0, 2**20)]
  images: Annotated[int, Range(0, 10_000)]
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  optimizer: OptimizerConfig = OptimizerConfig()
  encoder: EncoderConfig = EncoderConfig()
  guard: GuardConfig = GuardConfig()
  mesh: MeshConfig = MeshConfig()
  report: ReportConfig = ReportConfig()
  ntp_coeff: NotNegative = 0.2
  flow_coeff: NotNegative = 1.0
  time_shift: Positive = TRAIN_SHIFT
  sampling: Usual = Usual()
  context_noise: tuple[Share, Share] = (0.0, 0.0)
  masked: tuple[Part, Part] = (0.0, 0.0)
  seed: Whole = 0
  init_from: str = ''
  initial: str = ''
  frozen: str = 'float32'
  vae: str = ''
  tokenizer: str = ''
  checkpoint_every: Count = 500
  keep: Count = 3
  verify: bool = True
  profile_steps: tuple[Whole, ...] = ()

  def __post_init__(self):
    if self.rows % self.optimizer.accumulate:
      raise UserError(
        f'rows={self.rows} does not divide into optimizer.accumulate={self.optimizer.accumulate}'
      )
    low, high = self.masked
    if low > high or (high > 0 and 'patches' not in DESIGNS[self.model.design].paths):
      raise UserError(
        f'masked={self.masked}: expected (low, high) in order, and above 0 only for a design with '
        f'a mask token; {self.model.design!r} has none'
      )
    if self.report.samples_every and not (self.visual and self.flow_coeff):
      raise UserError('report.samples_every: the run trains nothing that draws; set it to 0')
    if self.frozen not in FROZEN:
      near = nearest(self.frozen, FROZEN)
      raise UserError(f'frozen={self.frozen!r}: expected one of {FROZEN}{near}')

  @property
  def apart(self) -> bool:
    """Whether checkpoints hold what trains alone; the rest is in `init_from`, as it was."""
    return bool(self.optimizer.lora) or self.frozen != 'float32'

  @property
  def sizes(self) -> tuple[int, int, int, int, int]:
    """(B, L, V, M, C)."""
    return self.rows, self.length, self.visual, self.images, self.model.token_dim
