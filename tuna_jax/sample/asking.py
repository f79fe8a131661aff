"""Conversations with pictures and clips as what a model answers: one laid out example each.

A clip is seen as its latents, or, as Show-o2's video checkpoints were tuned, as pictures of its own
that are pooled before the decoder (docs/showo2.md 8). The visual tokens of the latter are made here
and handed to the decoder as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tuna_jax.batch import Batch
from tuna_jax.config import UserError
from tuna_jax.data import tasks
from tuna_jax.data.segments import Example, Image, Plan, Video, layout
from tuna_jax.sample import requests, showo2
from tuna_jax.sample import text as writing
from tuna_jax.sample.prompt import collate


class Asked(NamedTuple):
  """features: float[V, D], its visual tokens, where they are made before the prompt is read."""

  example: Example
  features: np.ndarray | None = None

  @property
  def shape(self) -> tuple[int, int, bool]:
    """What runs together has it in common."""
    return self.example.cells, self.example.images, self.features is not None


def asked(generator, parsed: Sequence, room: int) -> list[Asked]:
  """parsed: (turns, visuals, marked roles) of each request. room: tokens that an answer may have.

  Raises UserError where a prompt and its answer exceed `generator.max_length`.
  """
  if generator.pooled:
    seen = [_pooled(generator, visuals) for _, visuals, _ in parsed]
  else:
    media = iter(generator.read([v for _, visuals, _ in parsed for v in visuals]))
    seen = [([next(media) for _ in visuals], None, 0) for _, visuals, _ in parsed]
  out = []
  for (turns, _, marked), (pieces, features, native) in zip(parsed, seen):
    example = _example(generator, turns, pieces, marked, native)
    check_length(generator, example, room)
    out.append(Asked(example, features))
  return out


def answer(
  generator, messages, images, max_new_tokens: int, choice: writing.Choice, seed: int
) -> tuple[int, Iterator[np.ndarray]]:
  """(tokens of the prompt, all ids of the answer so far after each of them) of one request, as
  `Generator.stream` takes it. UserError for a list of requests."""
  requested, many = requests.conversations(messages)
  if many:
    raise UserError('stream answers one request; use text for a list')
  parsed = [requests.turns_of(requested[0], requests.per_request(images, 1, False)[0])]
  laid = asked(generator, parsed, max_new_tokens)
  prompts, features = collated(generator, laid)
  rows = writing.stream_text(
    generator.config, generator.params, prompts, features=features, eos=generator.tokenizer.eos,
    max_new_tokens=max_new_tokens, choice=choice, seeds=requests.seeds_of(seed, 1),
  )  # fmt: skip
  return laid[0].example.length, (row[0] for row in rows)


def chat(generator, turns, pieces, marked, *reply) -> Plan:
  """A conversation with an open assistant turn, in which `reply` stands."""
  plan = tasks.conversation(
    generator.tokenizer, turns, pieces, system=generator.tasks.system, header=True, marked=marked
  )
  return [*plan, *reply]


def branches(generator, prompt, negative: str, target: Image | Video, guidance) -> list[Plan]:
  """The plans of one prompt or conversation to draw `target` from, one per branch of guidance: with
  its text, with `negative` instead, and without text and pictures."""
  if isinstance(prompt, str):
    if guidance.image_scale is not None:
      raise UserError('guidance image_scale is for edits: here are no source pictures')
    plans = [tasks.generation(generator.tokenizer, text, target) for text in (prompt, negative)]
  else:
    turns, visuals, marked = requests.turns_of(prompt, ())
    without = requests.replace_question(turns, negative)
    media = generator.read(visuals)
    plans = [chat(generator, t, media, marked, target) for t in (turns, without)]
    plans.append(chat(generator, requests.without_pictures(without), (), marked, target))
  return plans[: guidance.branches]


def check_length(generator, example: Example, room: int) -> None:
  """Raises UserError where the prompt and `room` more positions are too long."""
  if example.length + room > generator.max_length:
    raise UserError(
      f'the prompt has {example.length} tokens, {example.cells} of them of pictures, and the '
      f'result needs {room} more; max_length={generator.max_length} allows fewer'
    )


def collated(
  generator, rows: Sequence[Asked], length: int | None = None
) -> tuple[Batch, np.ndarray | None]:
  """(the prompts as one batch, the features of all rows)."""
  prompts = collate([row.example for row in rows], generator.config.token_dim, length)
  return prompts, None if rows[0].features is None else np.stack([row.features for row in rows])


def _example(generator, turns, pieces, marked, native: int) -> Example:
  """native: visual tokens of one frame of a pooled clip, else 0."""
  config, tokenizer = generator.config, generator.tokenizer
  once = len(pieces) == 1 and [role for role, _ in turns] == ['user']
  if not (once and config.design == 'late_fusion' and config.compat == 'official'):
    return layout(chat(generator, turns, pieces, marked), tokenizer, config.strides)
  text = turns[0][1].replace(tasks.PLACEHOLDER, '').strip('\n')
  plan = showo2.question(tokenizer, pieces[0], text)
  example = layout(plan, tokenizer, config.strides)
  return showo2.shift_span(example, native or example.cells)


def _pooled(generator, visuals) -> tuple[list[Image | Video], np.ndarray | None, int]:
  """(the visuals of one request, the features of all if one is a clip, the tokens of a frame)."""
  count, side = generator.pooled
  read = [requests.read_frames(v, generator.media, count) for v in visuals]
  pieces, features, native = [], [], 0
  for pixels in read:
    tokens = np.concatenate(generator.encode([frame[None] for frame in pixels]))
    clip = len(pixels) > 1
    if clip:
      pieces.append(Video(np.zeros((count, side, side, tokens.shape[-1]), np.float32)))
      native = tokens[0, ..., 0].size
    else:
      pieces.append(Image(tokens))
    if any(len(other) > 1 for other in read):
      how = {'config': generator.config, 'side': side if clip else 0}
      features.append(np.asarray(showo2.see(generator.params, tokens, **how)))
  return pieces, np.concatenate(features) if features else None, native
