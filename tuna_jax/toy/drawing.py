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
  rebuilt = [v[0] for v in rebuild(generator, [x[None] for x in real])]
  results = {}
  for k, kind in enumerate(kinds):
    own = slice(k * n, (k + 1) * n)
    claims = [captions.parse_caption(p) for p in prompts[kind]]
    samples = [(p, {'drawn': x}) for p, x in zip(prompts[kind], drawn[own])]
    found, true, again = (list(map(judge.detect, x[own])) for x in (drawn, real, rebuilt))
    results[kind] = _result(claims, found, true, again, samples)
  return results


def _result(claims, found, true, rebuilt, samples) -> Result:
  """The things found in drawn, true and rebuilt media held against what was asked; samples: (text,
  pictures) of each. Floor: each drawing against another prompt.
  """
  judged = lambda things, claims=claims: [c.true_of(t) for c, t in zip(claims, things)]
  score = judged(found)
  samples = [
    Sample(text, ok, shown, seen(things))
    for (text, shown), ok, things in zip(samples, score, found)
  ]
  return Result(score, judged(found, others(claims)), judged(true), judged(rebuilt), samples)


def edits(generator: Generator, n: int, how: Drawing, seed: int = 0) -> Result:
  """`n` held-out edits: the asked change made, everything else kept. Floor: the picture handed back
  unchanged.
  """
  records = held_out('edit', n)
  before, wanted, asked = (
    [r[field] for r in records] for field in ('raw_image', 'out_image', 'instruction')
  )
  made = [p.pixels for p in generator.edit(before, asked, seed=seed, **vars(how))]
  rebuilt = [v[0] for v in rebuild(generator, [x[None] for x in wanted])]
  score, floor, ceiling, again = (
    [judge.score_edit(x, r) for x, r in zip(pictures, records)]
    for pictures in (made, before, wanted, rebuilt)
  )
  shown = [dict(before=b, after=x, wanted=w) for b, x, w in zip(before, made, wanted)]
  seen_in = [seen(judge.detect(x)) for x in made]
  return Result(score, floor, ceiling, again, list(map(Sample, asked, score, shown, seen_in)))


def clips(generator: Generator, n: int, how: Drawing, seed: int = 0) -> Result:
  """`n` held-out prompts filmed: exactly the things asked for, moving as asked.

  Floor: each clip judged by another prompt. Ceiling: the rendered clips of the same prompts.
  """
  records = held_out('t2v', n)
  prompts, real = [r['caption'] for r in records], [r['video'] for r in records]
  filmed = [c.pixels for c in generator.video(prompts, world.FRAMES, seed=seed, **vars(how))]
  found, true, again = (
    list(map(judge.detect_clip, x)) for x in (filmed, real, rebuild(generator, real))
  )
  samples = [(p, {'filmed': x, 'rendered': y}) for p, x, y in zip(prompts, filmed, real)]
  return _result(list(map(captions.parse_caption, prompts)), found, true, again, samples)


def seen(things: Sequence[world.Thing]) -> str:
  """What the judge saw, in words; 'nothing' where it found no thing."""
  return captions.describe(world.Scene(tuple(things))) or 'nothing'


def rebuild(generator: Generator, media: Sequence[np.ndarray]) -> list[np.ndarray]:
  """uint8 [F, H, W, 3] each, through the VAE and back: the best that a drawing can look like."""
  return generator.decode(generator.encode(media))


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


def others(claims: Sequence[captions.Meaning]) -> list[captions.Meaning]:
  """For each claim the next one that differs from it, round and round: shuffled prompts."""
  out = []
  for i, claim in enumerate(claims):
    rest = [*claims[i + 1 :], *claims[:i]]
    out.append(next((c for c in rest if c != claim), claim))
  return out
