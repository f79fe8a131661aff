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

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tuna_jax.batch import check_frames, colours, to_cells, to_rows
from tuna_jax.config import TunaConfig, UserError, VaeConfig
from tuna_jax.data import media as media_lib
from tuna_jax.data import tasks as tasks_lib
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.segments import Image, Plan, Video
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.sample import asking, batches, requests, showo2, story
from tuna_jax.sample import image as drawing
from tuna_jax.sample import text as writing
from tuna_jax.sample.familiar import familiar
from tuna_jax.sample.image import Drawing, Guidance, Usual
from tuna_jax.sample.output import Clip, Picture
from tuna_jax.sample.prompt import Grid, collate, split, strides
from tuna_jax.sample.text import Choice
from tuna_jax.sharding import fetch, on_devices

Report = Callable[[int, int], None]


class Generator:
  """A trained model with its VAE and tokenizer.

  config, params: of `Tuna`. vae_params: of `WanVae`. vae_config: if it is not config.vae. tasks:
  how prompts are laid out, as in training. media: the default sizes. batch_size: how many pictures,
  clips or answers are made at once. max_length: positions of a prompt and its result together.
  pooled: (frames, side) where questions see a clip as so many pictures, each pooled to side x side
  tokens (`showo2.FRAMES`, `showo2.POOLED`); None: as the latents of a clip. usual: how it draws
  where nobody says otherwise. Raises UserError for a batch_size below 1.
  """

  @familiar
  def __init__(
    self, config: TunaConfig, params, vae_params, tokenizer: Tokenizer, *,
    vae_config: VaeConfig | None = None, tasks: TaskConfig | None = None,
    media: MediaConfig | None = None, batch_size: int = 16, max_length: int = 32_768,
    pooled: tuple[int, int] | None = None, usual: Usual | None = None,
  ):  # fmt: skip
    if batch_size < 1:
      raise UserError(f'batch_size={batch_size}: must be at least 1')
    self.config, self.params, self.tokenizer = config, on_devices(params), tokenizer
    self.vae_config, self.vae_params = vae_config or config.vae, on_devices(vae_params)
    if tasks is None and config.design == 'late_fusion':
      tasks = TaskConfig(system=showo2.SYSTEM)
    self.tasks, self.media = tasks or TaskConfig(), media or MediaConfig()
    self.batch_size, self.max_length, self.pooled = batch_size, max_length, pooled
    self.usual = usual or Usual()

  def __repr__(self):
    leaves = jax.tree.leaves(self.params)
    types = ' and '.join(sorted({str(a.dtype) for a in leaves}))
    model = f'design {self.config.design}, {sum(a.size for a in leaves):,} numbers in {types}'
    size = self.media.image_size
    talks = self.config.vae is not None and self.vae_params is None
    sees = 'text alone, without a VAE' if talks else f'pictures of {size}'
    return f'<Generator, {model}; {sees}, {self.batch_size} at once>'

  # ---- text

  @familiar
  def text(
    self, messages, images=(), *, max_new_tokens: int = 512, temperature: float = 0.0,
    top_k: int = 0, top_p: float = 1.0, seed: int | Sequence[int] = 42,
  ):  # fmt: skip
    """Answers -> a string, or a list of them for a list of requests.

    messages: a question; a conversation, [(role, content), ...] or [{'role', 'content'}, ...]; or a
    list of either. A content is text, or a list of texts and pictures in the order in which they
    are seen; a str in it is text, never a path.
    images: the pictures or clips of one request, which stand first or at its `<image>` marks; of a
    list of requests, one entry each: a picture or a list of them.
    max_new_tokens: of an answer. temperature: 0 takes the likeliest token; above, one is drawn from
    the top_k likeliest (0: all) that make up the share top_p.
    seed: used with a temperature; request i of a list uses seed + i, or seed[i].
    Raises UserError for what is no request or no picture, and for a prompt that leaves no room for
    max_new_tokens within `max_length` tokens.
    """
    choice = Choice(temperature, top_k, top_p)
    asked, many = requests.conversations(messages)
    entries = requests.per_request(images, len(asked), many)
    parsed = [requests.turns_of(request, entry) for request, entry in zip(asked, entries)]
    laid = asking.asked(self, parsed, max_new_tokens)
    seeds = requests.seeds_of(seed, len(asked))
    out: list[Any] = [None] * len(laid)
    shapes, lengths = zip(*((one.shape, one.example.length) for one in laid))
    for rows, count, length in batches.batches(shapes, lengths, self.batch_size):
      prompts, features = asking.collated(self, [laid[i] for i in rows], length)
      answers = writing.generate_text(
        self.config,
        self.params,
        prompts,
        features=features,
        eos=self.tokenizer.eos,
        max_new_tokens=max_new_tokens,
        choice=choice,
        seeds=[seeds[i] for i in rows],
        live=np.arange(len(rows)) < count,
      )
      for i, ids in zip(rows[:count], answers):
        out[i] = self.tokenizer.decode(ids)
    return out if many else out[0]

  @familiar
  def stream(
    self, messages, images=(), *, max_new_tokens: int = 512, temperature: float = 0.0,
    top_k: int = 0, top_p: float = 1.0, seed: int = 42,
  ) -> Iterator[str]:  # fmt: skip
    """The answer to one request, in pieces of text as its tokens are decoded; all else as in
    `text`. Raises UserError as it does, and for a list."""
    choice = Choice(temperature, top_k, top_p)
    _, ids = asking.answer(self, messages, images, max_new_tokens, choice, seed)
    yield from writing.pieces(map(self.tokenizer.decode, ids))

  # ---- pictures and clips

  @familiar
  def how(
    self, task: str, guidance: float | Guidance | None = None, points: int | None = None,
    shift: float | None = None, solver: str | None = None,
  ) -> Drawing:  # fmt: skip
    """What is given, and the rest as the run of this model says, or as published for its design.
    task: 't2i', 'edit' or 't2v'. points: of the time grid, one more than steps. Raises UserError
    for an unknown task and settings out of range."""
    return Drawing.of(self.config.design, task, guidance, points, shift, solver, self.usual)

  @familiar
  def image(
    self, prompt, *, size=None, negative: str | Sequence[str] = '',
    seed: int | Sequence[int] = 42, guidance: float | Guidance | None = None,
    points: int | None = None,
    shift: float | None = None, solver: str | None = None, report: Report | None = None,
  ):  # fmt: skip
    """Draws a prompt -> Picture, or a list of them for a list of prompts.

    prompt: what to draw; or a conversation as in `text` (a `Picture` may stand in its turns), whose
    next assistant turn becomes the picture; or a list of either. Guidance changes the text of the
    last user turn of a conversation and nothing else.
    size: 'HxW', 'N' or (height, width), multiples of 16; or a class of `media.BUCKETS`, whose first
    bucket is taken. negative: what guidance moves away from; one for all, or one each. seed:
    picture i uses seed + i, or seed[i]. guidance: its scale, or a whole `Guidance`. points, shift,
    solver: of `Drawing`. What is None is as the run of the model says (`how`).
    report: called with (velocity evaluations done, how many there are).
    The picture is uint8 [H, W, 3]. Raises UserError for what is no prompt, a size that is none, and
    settings out of range.
    """
    prompts, many = requests.conversations(prompt)
    how = self.how('t2i', guidance, points, shift, solver)
    target = self.target(Image, size or self.media.image_size, 1)
    drawn, infos = self._generate(prompts, negative, target, seed, how, report)
    made = [Picture(pixels[0], info) for pixels, info in zip(drawn, infos)]
    return made if many else made[0]

  @familiar
  def video(
    self, prompt, frames: int | None = None, *, size=None, negative: str | Sequence[str] = '',
    seed: int | Sequence[int] = 42, guidance: float | Guidance | None = None,
    points: int | None = None,
    shift: float | None = None, solver: str | None = None, fps: int = 16, images=(),
    report: Report | None = None,
  ):  # fmt: skip
    """Films a prompt -> Clip, uint8 [F, H, W, 3] of `frames` = 4k + 1 pictures at `fps` frames per
    second, or a list of them. images: the picture that a clip begins with; of a list of prompts,
    one each. The rest as in `image`. Raises UserError as it does, and for another number of frames
    or a model that has seen no clips."""
    prompts, many = requests.strings(prompt, 'prompt')
    how = self.how('t2v', guidance, points, shift, solver)
    frames = self.media.frames if frames is None else frames
    check_frames(self.config, frames)
    size = size or self.media.video_size
    target, firsts = self.target(Video, size, frames), None
    if any(entries := requests.per_request(images, len(prompts), many)):
      firsts = self.encode([requests.first(e, self.media, size) for e in entries])
    drawn, infos = self._generate(prompts, negative, target, seed, how, report, firsts)
    made = [Clip(pixels, fps, info) for pixels, info in zip(drawn, infos)]
    return made if many else made[0]

  @familiar
  def edit(
    self, images, instruction, *, size=None, negative: str | Sequence[str] = '',
    seed: int | Sequence[int] = 42, guidance: float | Guidance | None = None,
    points: int | None = None,
    shift: float | None = None, solver: str | None = None, report: Report | None = None,
  ):  # fmt: skip
    """Changes pictures as instructed -> Picture, or a list of them for a list of instructions.

    images: of one instruction, a picture or several; of a list, one entry each.
    size: of all sources and the result, their nearest bucket. By default the result has the size of
    its last source, each side rounded to a multiple of 16; a source with more pixels than
    `media.image_size`, or a quarter as many or fewer, is scaled to its area. The rest as in
    `image`; the result is uint8 [H, W, 3]. Raises UserError as it does, and for sources that cannot
    be read or are missing.
    """
    texts, many = requests.strings(instruction, 'instruction', '; edit takes (images, instruction)')
    how = self.how('edit', guidance, points, shift, solver)
    entries = requests.per_request(images, len(texts), many)
    if not all(entries):
      raise UserError('edit: no source picture')
    seeds = requests.seeds_of(seed, len(texts))
    size = None if size is None else requests.size_name(size)
    _, stride = strides(self.config)
    sources = [requests.read_source(s, self.media, size, stride) for e in entries for s in e]
    latents = iter(self.encode(sources))
    plans = []
    for entry, text, other in zip(entries, texts, requests.each(negative, len(texts), 'negative')):
      sources = [Image(next(latents)) for _ in entry]
      target = Image(np.zeros((*sources[-1].media.shape[:3], 0), np.float32), True)
      branches = ((sources, text), (sources, other), ([], other))[: how.guidance.branches]
      plans.append([tasks_lib.editing(self.tokenizer, s, t, target) for s, t in branches])
    drawn = self.decode(self.draw(plans, seeds, how, report))
    infos = [
      {**info, 'sources': [requests.name_of(s) for s in entry]}
      for info, entry in zip(requests.infos(texts, negative, seeds, how), entries)
    ]
    made = [Picture(pixels[0], info) for pixels, info in zip(drawn, infos)]
    return made if many else made[0]

  @familiar
  def story(
    self, prompt: str, pictures: int = 4, *, size=None, seed: int = 42,
    guidance: float | Guidance | None = None, points: int | None = None,
    shift: float | None = None, solver: str | None = None, max_new_tokens: int = 512,
    temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
  ) -> list[str | Picture]:  # fmt: skip
    """What follows a text: texts and at most `pictures` pictures in turn, as `story.tell` says; a
    text of at most `max_new_tokens` tokens, a picture of uint8 [H, W, 3]. Raises UserError as
    `image` does."""
    how = self.how('t2i', guidance, points, shift, solver)
    return story.tell(
      self, prompt, pictures, how, size=size or self.media.image_size, seed=seed,
      max_new_tokens=max_new_tokens, choice=Choice(temperature, top_k, top_p),
    )  # fmt: skip

  # ---- latents

  def draw(
    self, plans: Sequence[Sequence[Plan]], seeds: Sequence[int], how: Drawing,
    report: Report | None = None, firsts: Sequence[np.ndarray] | None = None,
  ) -> list[np.ndarray]:  # fmt: skip
    """Latents float32 [T, h, w, C] of each target. plans: of each picture, one plan per branch of
    `how.guidance`, all with the same target. firsts: tokens [1, h, w, C] that clips begin with.
    Raises UserError for a plan of more than `max_length` tokens."""
    part = lambda plan: split(plan, self.tokenizer, strides(self.config))
    split_plans = [[part(plan) for plan in branches] for branches in plans]
    grids = [branches[0][1] for branches in split_plans]
    prompts = [[example for example, _ in branches] for branches in split_plans]
    cells = [frames * height * width for frames, height, width in grids]
    for branches, n in zip(prompts, cells):
      for example in branches:
        asking.check_length(self, example, n + 1)
    channels, out, done = self.config.drawn_dim, [None] * len(plans), 0
    shapes = [(n, tuple(e.cells for e in branches)) for n, branches in zip(cells, prompts)]
    lengths = [max(e.length for e in branches) for branches in prompts]
    together = list(batches.batches(shapes, lengths, self.batch_size))
    total = len(together) * how.evaluations
    for rows, count, length in together:
      examples = [prompts[i][b] for b in range(how.guidance.branches) for i in rows]
      noise = drawing.noise([seeds[i] for i in rows], cells[rows[0]], channels)
      noise *= self.config.path.noise
      if firsts is not None:
        clean = np.stack([firsts[i].reshape(-1, channels) for i in rows])
        noise[:, : clean.shape[1]] = clean
      latents = drawing.sample_latents(
        self.config,
        self.params,
        collate(examples, self.config.token_dim, length),
        [grids[i] for i in rows],
        noise,
        how,
        held=firsts is not None,
        report=None if report is None else lambda n, done=done: report(done + n, total),
      )
      done += how.evaluations
      for i, x in zip(rows[:count], fetch(latents)):
        out[i] = x.reshape(*grids[i], channels)
    return out

  def encode(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
    """uint8 [F, H, W, 3] each -> visual tokens float32 [T, h, w, C]: of pixels, or of normalised
    latents that are posterior means, so nothing is random. Raises ValueError for sides that the
    VAE does not divide."""
    c = self.config
    if media:
      requests.need_vae(self)
    if c.vae is None:
      cells = [colours(x) for x in media]
    else:
      cells = batches.encode(self.vae_config, self.vae_params, media, self.batch_size)
    return [to_rows(c, x, pixels) for x, pixels in zip(cells, media)]

  def decode(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Visual tokens float32 [T, h, w, C] each -> uint8 [F, H, W, 3]. Raises ValueError for another
    number of channels."""
    c = self.config
    cells = [to_cells(x[..., -c.drawn_dim :], c.patch, c.layout) for x in latents]
    if c.vae is None:
      return [np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8) for x in cells]
    return batches.decode(self.vae_config, self.vae_params, cells, self.batch_size)

  # ---- prompts

  def _generate(self, prompts, negative, target, seed, how, report, firsts=None):
    """(pixels, infos) of prompts and conversations."""
    others = requests.each(negative, len(prompts), 'negative')
    plans = [asking.branches(self, *both, target, how.guidance) for both in zip(prompts, others)]
    seeds = requests.seeds_of(seed, len(prompts))
    drawn = self.draw(plans, seeds, how, report, firsts)
    return self.decode(drawn), requests.infos(prompts, negative, seeds, how)

  def target(self, kind, size, frames: int):
    """A target to draw: float32 [T, h, w, 0], its shape in latent cells without values. Raises
    UserError for a size or a number of `frames` that the model does not draw."""
    requests.need_vae(self)
    height, width = media_lib.buckets(requests.size_name(size))[0]
    temporal, spatial = strides(self.config)
    if frames < 1 or (frames - 1) % temporal:
      below = max(1, frames - (frames - 1) % temporal)
      raise UserError(
        f'frames={frames}: expected {temporal}k + 1, for example {below} or {below + temporal}'
      )
    grid: Grid = (1 + (frames - 1) // temporal, height // spatial, width // spatial)
    return kind(np.zeros((*grid, 0), np.float32), True)

  def read(self, visuals) -> list[Image | Video]:
    """Pictures and clips in their nearest buckets, as clean latents float32 [T, h, w, C]. Raises
    MediaError, a UserError, for what cannot be read."""
    temporal, _ = strides(self.config)
    latents = self.encode([requests.read(v, self.media, temporal) for v in visuals])
    return [(Video if len(x) > 1 else Image)(x) for x in latents]
