"""`Generator`: strings, pictures and arrays in; text, pictures and clips out.

    generator = open_generator('runs/stage3')
    generator.image('a red ball').save('ball.png')
    generator.text('What is this?', images=['ball.png'])
    generator.edit('ball.png', 'make it blue')
    generator.video('a ball rolls', frames=13).save('ball.mp4')

Each takes one request or a list of them. A list runs in batches of equal shape, so 200 prompts
compile once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from tuna_jax import flow
from tuna_jax.config import TunaConfig, UserError, VaeConfig
from tuna_jax.data import media as media_lib
from tuna_jax.data import tasks as tasks_lib
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.segments import Example, Image, Plan, Video, layout
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models.vae import decode_pixels, encode_pixels
from tuna_jax.models.vae_stream import decode_stream
from tuna_jax.sample import image as drawing
from tuna_jax.sample import requests
from tuna_jax.sample import text as writing
from tuna_jax.sample.image import FILM_SCALE, SCALE, Guidance
from tuna_jax.sample.output import Clip, Picture
from tuna_jax.sample.prompt import Grid, bucket, collate, split, strides
from tuna_jax.sample.text import Choice
from tuna_jax.sharding import anchor

Report = Callable[[int, int], None]

PIXELS = (
  1 << 19
)  # that the VAE encodes or decodes at once: its activations take hundreds of bytes a pixel


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How pictures and clips are drawn.

  points: of the official time grid, points - 1 steps. shift: of that grid towards noise. solver: of
  `flow.SOLVERS`.
  """

  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  points: int = 50
  shift: float = flow.SAMPLE_SHIFT
  solver: str = 'euler'

  def __post_init__(self):
    if self.solver not in flow.SOLVERS:
      raise UserError(f'solver {self.solver!r}: expected one of {", ".join(flow.SOLVERS)}')
    if self.points < 2:
      raise UserError(f'points={self.points}: at least 2 are needed (points - 1 steps)')
    if not self.shift > 0:
      raise UserError(f'shift={self.shift}: must be above 0; 1 leaves times as they are')

  @property
  def evaluations(self) -> int:
    """Velocity evaluations of one picture."""
    return self.points - 1 if self.solver == 'euler' else 2 * (self.points - 1) - 1


class Generator:
  """A trained model with its VAE and tokenizer.

  config, params: of `Tuna`. vae_params: of `WanVae`; vae_config where it is not config.vae. tasks:
  how prompts are laid out, as in training. media: the default sizes. batch_size: pictures, clips or
  answers at once. max_length: positions of a prompt and what follows it.
  """

  def __init__(
    self,
    config: TunaConfig,
    params,
    vae_params,
    tokenizer: Tokenizer,
    *,
    vae_config: VaeConfig | None = None,
    tasks: TaskConfig | None = None,
    media: MediaConfig | None = None,
    batch_size: int = 16,
    max_length: int = 32_768,
  ):
    if batch_size < 1:
      raise UserError(f'batch_size={batch_size}: must be at least 1')
    self.config, self.params, self.tokenizer = config, jax.device_put(params), tokenizer
    self.vae_config, self.vae_params = vae_config or config.vae, jax.device_put(vae_params)
    self.tasks, self.media = tasks or TaskConfig(), media or MediaConfig()
    self.batch_size, self.max_length = batch_size, max_length

  # ---- text

  def text(
    self,
    messages,
    images=(),
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 42,
  ):
    """Answers -> a string, or a list of them for a list of requests.

    messages: a question; a conversation, [(role, content), ...] or [{'role', 'content'}, ...]; or a
    list of either.
      content: text, or a list of texts and pictures in the order they are seen. A str in it is
      text, never a path.
    images: of one request, the pictures or clips it is about (they stand first, or at `<image>`
    marks); of a list of
      requests, one entry each: a picture or a list of them.
    seed: with temperature; request i of a list uses seed + i, or seed[i].
    """
    choice = Choice(temperature, top_k, top_p)
    asked, many = requests.conversations(messages)
    examples = self._conversations(
      asked, requests.per_request(images, len(asked), many), max_new_tokens
    )
    seeds = requests.seeds_of(seed, len(asked))
    out: list[Any] = [None] * len(examples)
    for rows, count, length in self._batches(
      [(e.cells, e.images) for e in examples], [e.length for e in examples]
    ):
      answers = writing.generate_text(
        self.config,
        self.params,
        self._collate([examples[i] for i in rows], length),
        eos=self.tokenizer.eos,
        max_new_tokens=max_new_tokens,
        choice=choice,
        seeds=[seeds[i] for i in rows],
        live=np.arange(len(rows)) < count,
      )
      for i, ids in zip(rows[:count], answers):
        out[i] = self.tokenizer.decode(ids)
    return out if many else out[0]

  def stream(
    self,
    messages,
    images=(),
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 42,
  ) -> Iterator[str]:
    """The answer to one request, in pieces as they are decoded."""
    asked, many = requests.conversations(messages)
    if many:
      raise UserError('stream answers one request; use text for a list')
    examples = self._conversations(asked, requests.per_request(images, 1, False), max_new_tokens)
    shown = now = ''
    for ids in writing.stream_text(
      self.config,
      self.params,
      self._collate(examples),
      eos=self.tokenizer.eos,
      max_new_tokens=max_new_tokens,
      choice=Choice(temperature, top_k, top_p),
      seeds=[seed],
    ):
      now = self.tokenizer.decode(ids[0])
      if len(now) > len(shown) and not now.endswith(
        '\N{REPLACEMENT CHARACTER}'
      ):  # half a letter waits for the rest
        yield now[len(shown) :]
        shown = now
    if len(now) > len(shown):
      yield now[len(shown) :]

  # ---- pictures and clips

  def image(
    self,
    prompt,
    *,
    size=None,
    negative: str | Sequence[str] = '',
    seed: int | Sequence[int] = 42,
    guidance: float | Guidance = SCALE,
    points: int = 50,
    shift: float = flow.SAMPLE_SHIFT,
    solver: str = 'euler',
    report: Report | None = None,
  ):
    """Draws a prompt -> Picture, or a list of them for a list of prompts.

    prompt: what to draw; or a conversation as in `text`, whose next assistant turn becomes the
    picture (a `Picture` may
      stand in its turns); or a list of either. Guidance then changes the text of the last user turn
      alone.
    size: 'HxW', 'N' or (height, width), multiples of 16; or a class of `media.BUCKETS`, whose first
    bucket is taken. negative: what guidance moves away from; one for all or one each. seed: picture
    i uses seed + i, or seed[i]. guidance: its scale, or a whole `Guidance`. points: of the official
    grid, points - 1 steps. report: called with (velocity evaluations done, how many there are).
    """
    prompts, many = requests.conversations(prompt)
    how = _drawing(guidance, points, shift, solver)
    target = self._target(Image, size or self.media.image_size, 1)
    drawn, infos = self._generate(prompts, negative, target, seed, how, report)
    return _one_or_all([Picture(pixels[0], info) for pixels, info in zip(drawn, infos)], many)

  def video(
    self,
    prompt,
    frames: int | None = None,
    *,
    size=None,
    negative: str | Sequence[str] = '',
    seed: int | Sequence[int] = 42,
    guidance: float | Guidance = FILM_SCALE,
    points: int = 50,
    shift: float = flow.SAMPLE_SHIFT,
    solver: str = 'euler',
    fps: int = 16,
    report: Report | None = None,
  ):
    """Films a prompt -> Clip of `frames` = 4k + 1 pictures, or a list of them. The rest as in
    `image`.
    """
    prompts, many = requests.strings(prompt, 'prompt')
    how = _drawing(guidance, points, shift, solver)
    target = self._target(
      Video, size or self.media.video_size, self.media.frames if frames is None else frames
    )
    drawn, infos = self._generate(prompts, negative, target, seed, how, report)
    return _one_or_all([Clip(pixels, fps, info) for pixels, info in zip(drawn, infos)], many)

  def edit(
    self,
    images,
    instruction,
    *,
    size=None,
    negative: str | Sequence[str] = '',
    seed: int | Sequence[int] = 42,
    guidance: float | Guidance = SCALE,
    points: int = 50,
    shift: float = flow.SAMPLE_SHIFT,
    solver: str = 'euler',
    report: Report | None = None,
  ):
    """Changes pictures as instructed -> Picture, or a list of them for a list of instructions.

    images: of one instruction, a picture or several; of a list, one entry each. The result has the
    size of its last
      source: that source's own, each side rounded to a multiple of 16, scaled down to the area of
      `media.image_size` where it is larger.
    size: all sources and the result in the nearest bucket of this size instead. The rest as in
    `image`.
    """
    texts, many = requests.strings(instruction, 'instruction')
    how = _drawing(guidance, points, shift, solver)
    entries = requests.per_request(images, len(texts), many)
    if not all(entries):
      raise UserError('edit: no source picture')
    size = None if size is None else requests.size_name(size)
    stride = self.vae_config.spatial_stride
    latents = iter(
      self.encode([requests.read_source(s, self.media, size, stride) for e in entries for s in e])
    )
    plans = []
    for entry, text, other in zip(entries, texts, requests.each(negative, len(texts), 'negative')):
      sources = [Image(next(latents)) for _ in entry]
      target = Image(np.zeros((*sources[-1].media.shape[:3], 0), np.float32), True)
      branches = ((sources, text), (sources, other), ([], other))[: how.guidance.branches]
      plans.append([tasks_lib.editing(self.tokenizer, s, t, target) for s, t in branches])
    seeds = requests.seeds_of(seed, len(texts))
    drawn = self.decode(self.draw(plans, seeds, how, report))
    infos = [
      {**info, 'sources': [requests.name_of(s) for s in entry]}
      for info, entry in zip(_infos(texts, negative, seeds, how), entries)
    ]
    return _one_or_all([Picture(pixels[0], info) for pixels, info in zip(drawn, infos)], many)

  # ---- latents

  def draw(
    self,
    plans: Sequence[Sequence[Plan]],
    seeds: Sequence[int],
    how: Drawing,
    report: Report | None = None,
  ) -> list[np.ndarray]:
    """Latents float32 [T, h, w, C] of each target.

    plans: for each picture one plan a branch of `how.guidance`, all with the same target.
    """
    split_plans = [
      [split(plan, self.tokenizer, strides(self.config)) for plan in branches] for branches in plans
    ]
    grids = [branches[0][1] for branches in split_plans]
    prompts = [[example for example, _ in branches] for branches in split_plans]
    cells = [frames * height * width for frames, height, width in grids]
    for branches, n in zip(prompts, cells):
      for example in branches:
        self._check_length(example, n + 1)
    channels, out, done = self.config.vae.latent_channels, [None] * len(plans), 0
    shapes = [(n, tuple(e.cells for e in branches)) for n, branches in zip(cells, prompts)]
    batches = list(self._batches(shapes, [max(e.length for e in branches) for branches in prompts]))
    total = len(batches) * how.evaluations
    for rows, count, length in batches:
      batch = self._collate(
        [prompts[i][b] for b in range(how.guidance.branches) for i in rows], length
      )
      latents = drawing.sample_latents(
        self.config,
        self.params,
        batch,
        [grids[i] for i in rows],
        drawing.noise([seeds[i] for i in rows], cells[rows[0]], channels),
        guidance=how.guidance,
        points=how.points,
        shift=how.shift,
        solver=how.solver,
        report=None if report is None else lambda n, done=done: report(done + n, total),
      )
      done += how.evaluations
      for i, x in zip(rows[:count], np.asarray(latents)):
        out[i] = x.reshape(*grids[i], channels)
    return out

  def encode(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
    """uint8 [F, H, W, 3] each -> normalised latents float32 [T, h, w, C]: posterior means, so
    nothing is random.
    """
    return self._by_shape(media, _encode, [x[..., 0].size for x in media])

  def decode(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Normalised latents float32 [T, h, w, C] each -> uint8 [F, H, W, 3]. Clips a latent frame at a
    time.
    """
    area = self.vae_config.spatial_stride**2
    return self._by_shape(latents, _decode, [x[0, ..., 0].size * area for x in latents])

  def _by_shape(self, arrays, fn, pixels):
    """`fn` of the arrays in batches of one shape, of PIXELS at most (a power of two of them);
    pixels: of each array.
    """
    out: list[Any] = [None] * len(arrays)
    shapes = [a.shape for a in arrays]
    most = {shape: 1 << max(0, (PIXELS // n).bit_length() - 1) for shape, n in zip(shapes, pixels)}
    for rows, count, _ in self._batches(shapes, [0] * len(arrays), most):
      results = np.asarray(
        fn(self.vae_params, np.stack([arrays[i] for i in rows]), config=self.vae_config)
      )
      for i, result in zip(rows[:count], results):
        out[i] = result
    return out

  # ---- prompts

  def _generate(self, prompts, negative, target, seed, how, report):
    """(pixels, infos) of prompts and conversations."""
    plans = []
    for prompt, other in zip(prompts, requests.each(negative, len(prompts), 'negative')):
      if isinstance(prompt, str):
        if how.guidance.image_scale is not None:
          raise UserError('guidance image_scale is for edits: here are no source pictures')
        branches = [tasks_lib.generation(self.tokenizer, text, target) for text in (prompt, other)]
      else:
        turns, visuals, marked = requests.turns_of(prompt, ())
        without = requests.replace_question(turns, other)
        media = self._media(visuals)
        branches = [self._chat(t, v, marked, target) for t, v in ((turns, media), (without, media))]
        branches.append(self._chat(requests.without_pictures(without), (), marked, target))
      plans.append(branches[: how.guidance.branches])
    seeds = requests.seeds_of(seed, len(prompts))
    return self.decode(self.draw(plans, seeds, how, report)), _infos(prompts, negative, seeds, how)

  def _target(self, kind, size, frames: int):
    """A target to draw: its shape in latent cells, without values."""
    height, width = media_lib.buckets(requests.size_name(size))[0]
    temporal, spatial = strides(self.config)
    if frames < 1 or (frames - 1) % temporal:
      below = max(1, frames - (frames - 1) % temporal)
      raise UserError(
        f'frames={frames}: expected {temporal}k + 1, for example {below} or {below + temporal}'
      )
    grid: Grid = (1 + (frames - 1) // temporal, height // spatial, width // spatial)
    return kind(np.zeros((*grid, 0), np.float32), True)

  def _chat(self, turns, pieces, marked, *reply) -> Plan:
    """A conversation with an open assistant turn, in which `reply` stands."""
    return [
      *tasks_lib.conversation(
        self.tokenizer, turns, pieces, system=self.tasks.system, header=True, marked=marked
      ),
      *reply,
    ]

  def _media(self, visuals) -> list[Image | Video]:
    """Pictures and clips in their nearest buckets, as clean latents."""
    temporal, _ = strides(self.config)
    latents = self.encode([requests.read(v, self.media, temporal) for v in visuals])
    return [(Video if len(x) > 1 else Image)(x) for x in latents]

  def _conversations(self, asked, images, room: int) -> list[Example]:
    parsed = [requests.turns_of(request, entry) for request, entry in zip(asked, images)]
    media = iter(self._media([v for _, visuals, _ in parsed for v in visuals]))
    plans = [
      self._chat(turns, [next(media) for _ in visuals], marked) for turns, visuals, marked in parsed
    ]
    return [
      self._check_length(layout(plan, self.tokenizer, strides(self.config)), room) for plan in plans
    ]

  def _check_length(self, example: Example, room: int) -> Example:
    if example.length + room > self.max_length:
      raise UserError(
        f'a prompt of {example.length} tokens ({example.cells} of them pictures) and {room} for the '
        f'result: max_length is {self.max_length}'
      )
    return example

  def _collate(self, examples, length=None):
    return collate(examples, self.config.vae.latent_channels, length)

  def _batches(
    self, shapes: Sequence, lengths: Sequence[int], most: Mapping[Any, int] = MappingProxyType({})
  ):
    """(indices, how many of them are real, padded length) for batches of items that share a shape.

    All batches of a shape have the same number of rows: full ones near `batch_size` (or `most` of
    that shape, if less), or a power of two where there is only one. The last repeats its first
    item.
    """
    for shape in dict.fromkeys(shapes):
      group = [i for i, s in enumerate(shapes) if s == shape]
      length = bucket(max(lengths[i] for i in group))
      limit = min(self.batch_size, most.get(shape, self.batch_size))
      count = -(-len(group) // limit)
      rows = -(-len(group) // count)
      if count == 1:
        rows = min(limit, 1 << (rows - 1).bit_length())
      for at in range(0, len(group), rows):
        chunk = group[at : at + rows]
        yield chunk + chunk[:1] * (rows - len(chunk)), len(chunk), length


@jax.jit(static_argnames='config')
def _encode(params, pixels, *, config):
  return encode_pixels(config, params, anchor(pixels, 'rows'))


def _decode(params, latents, *, config):
  """uint8 [B, F, H, W, 3] of latents [B, T, h, w, C]."""
  if latents.shape[1] == 1:
    return _decode_stills(params, latents, config=config)
  latents = anchor(latents, 'rows')
  return np.concatenate(
    [np.asarray(pixels) for pixels in decode_stream(config, params, latents)], axis=1
  )


@jax.jit(static_argnames='config')
def _decode_stills(params, latents, *, config):
  return decode_pixels(config, params, anchor(latents, 'rows'))


def _drawing(guidance, points, shift, solver) -> Drawing:
  if not isinstance(guidance, Guidance):
    guidance = Guidance(float(guidance))
  return Drawing(guidance, points, shift, solver)


def _infos(prompts, negative, seeds, how: Drawing) -> list[dict[str, Any]]:
  """What the file of each picture remembers."""
  negatives = requests.each(negative, len(prompts), 'negative')
  return [
    {
      'prompt': p if isinstance(p, str) else requests.transcript(p),
      'negative': n,
      'seed': s,
      **dataclasses.asdict(how),
    }
    for p, n, s in zip(prompts, negatives, seeds)
  ]


def _one_or_all(results, many):
  return results if many else results[0]
