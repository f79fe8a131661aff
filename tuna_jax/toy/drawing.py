"""What a model draws, edits and films from held-out prompts of the rendered world."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from tuna_jax.evals.results import Result, Sample
from tuna_jax.sample.generate import Drawing, Generator
from tuna_jax.toy import captions, judge, scenes, world
from tuna_jax.toy import records as world_data
from tuna_jax.toy.understanding import held_out


def pictures(
  generator: Generator,
  n: int,
  how: Drawing,
  kinds: Sequence[str] = world_data.PROMPTS,
  seed: int = 0,
) -> dict[str, Result]:
  """`n` held-out prompts of each kind drawn: {kind: Result}.

  A picture is right when it holds exactly the things asked for, bound to their colours, in number
  and relation. Floor: each picture judged by another prompt of its kind. Ceiling: pictures rendered
  from the same prompts.
  """
  prompts = {kind: [world_data.prompt(kind, i)['prompt'] for i in range(n)] for kind in kinds}
  every = [p for kind in kinds for p in prompts[kind]]
  drawn = [p.pixels for p in generator.image(every, seed=seed, **vars(how))]
  real = [render(p, i) for i, p in enumerate(every)]
  rebuilt = [v[0] for v in generator.decode(generator.encode([x[None] for x in real]))]
  results = {}
  for k, kind in enumerate(kinds):
    own = slice(k * n, (k + 1) * n)
    found = [judge.detect(x) for x in drawn[own]]
    claims = [captions.parse_caption(p) for p in prompts[kind]]
    right = [claim.true_of(things) for claim, things in zip(claims, found)]
    results[kind] = Result(
      score=right,
      floor=[claim.true_of(things) for claim, things in zip(_others(claims), found)],
      ceiling=[claim.true_of(judge.detect(x)) for claim, x in zip(claims, real[own])],
      rebuilt=[claim.true_of(judge.detect(x)) for claim, x in zip(claims, rebuilt[own])],
      samples=[
        Sample(text, ok, {'drawn': x}) for text, ok, x in zip(prompts[kind], right, drawn[own])
      ],
    )
  return results


def edits(generator: Generator, n: int, how: Drawing, seed: int = 0) -> Result:
  """`n` held-out edits: the asked change made, everything else kept. Floor: the picture handed back
  unchanged.
  """
  records = held_out('edit', n)
  made = generator.edit(
    [r['raw_image'] for r in records], [r['instruction'] for r in records], seed=seed, **vars(how)
  )
  made = [p.pixels for p in made]
  rebuilt = generator.decode(generator.encode([r['out_image'][None] for r in records]))
  right = [judge.score_edit(x, r) for x, r in zip(made, records)]
  return Result(
    score=right,
    floor=[judge.score_edit(r['raw_image'], r) for r in records],
    ceiling=[judge.score_edit(r['out_image'], r) for r in records],
    rebuilt=[judge.score_edit(x[0], r) for x, r in zip(rebuilt, records)],
    samples=[
      Sample(r['instruction'], ok, {'before': r['raw_image'], 'after': x, 'wanted': r['out_image']})
      for r, ok, x in zip(records, right, made)
    ],
  )


def clips(generator: Generator, n: int, how: Drawing, seed: int = 0) -> Result:
  """`n` held-out prompts filmed: exactly the things asked for, moving as asked.

  Floor: each clip judged by another prompt. Ceiling: the rendered clips of the same prompts.
  """
  records = held_out('t2v', n)
  prompts = [r['caption'] for r in records]
  filmed = [c.pixels for c in generator.video(prompts, world.FRAMES, seed=seed, **vars(how))]
  rebuilt = generator.decode(generator.encode([r['video'] for r in records]))
  claims = [captions.parse_caption(p) for p in prompts]
  found = [judge.detect_clip(x) for x in filmed]
  right = [claim.true_of(things) for claim, things in zip(claims, found)]
  return Result(
    score=right,
    floor=[claim.true_of(things) for claim, things in zip(_others(claims), found)],
    ceiling=[judge.score_clip(r['video'], r) for r in records],
    rebuilt=[judge.score_clip(x, r) for x, r in zip(rebuilt, records)],
    samples=[
      Sample(text, ok, {'filmed': x, 'rendered': r['video']})
      for text, ok, x, r in zip(prompts, right, filmed, records)
    ],
  )


def render(prompt: str, number: int) -> np.ndarray:
  """A true picture of a prompt, uint8 [64, 64, 3]; what the prompt leaves open is drawn by
  `number`.
  """
  rng = random.Random(f'{prompt}/{number}')
  meaning = captions.parse_caption(prompt)
  while True:
    places = rng.sample(tuple(world.PLACES), len(meaning.phrases))
    sizes = rng.choices(world.SIZES, k=len(meaning.phrases))
    if len(set(meaning.phrases)) == 1:  # things that are counted are all alike
      sizes = sizes[:1] * len(sizes)
    things = tuple(
      scenes.random_thing(rng, (p.colour, p.shape), p.size or size, p.place or place)
      for p, size, place in zip(meaning.phrases, sizes, places)
    )
    if len({t.place for t in things}) == len(things) and meaning.true_of(things):
      return world.render(world.Scene(things))


def _others(claims: Sequence[captions.Meaning]) -> list[captions.Meaning]:
  """For each claim the next one that differs from it, round and round: shuffled prompts."""
  out = []
  for i, claim in enumerate(claims):
    rest = [*claims[i + 1 :], *claims[:i]]
    out.append(next((c for c in rest if c != claim), claim))
  return out
