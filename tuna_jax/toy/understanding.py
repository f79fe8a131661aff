"""What a model says of held-out pictures and clips of the rendered world: captions and answers."""

from __future__ import annotations

from collections.abc import Sequence

from tuna_jax.data.tasks import PLACEHOLDER
from tuna_jax.evals.results import KNOWN, Result, Sample
from tuna_jax.sample.generate import Generator
from tuna_jax.toy import judge
from tuna_jax.toy import records as world_data

CAPTION_TOKENS = 64  # four things, fully described, are 47 words
ANSWER_TOKENS = 40  # four places and what follows


def captions(generator: Generator, n: int) -> Result:
  """`n` held-out pictures described: every size, colour, shape and place right and nothing else.

  Floor: the most frequent caption of the train split, said of every picture.
  """
  records = held_out('caption', n)
  question = generator.tasks.questions[0]
  pictures = [r['image'] for r in records]
  said = generator.text([question] * n, pictures, max_new_tokens=CAPTION_TOKENS)
  usual = judge.most_frequent_caption(known('caption'))
  right = [judge.score_caption(text, r['scene']) for text, r in zip(said, records)]
  floor = [judge.score_caption(usual, r['scene']) for r in records]
  ceiling = [judge.score_caption(r['caption'], r['scene']) for r in records]
  samples = [
    Sample(question, ok, {'picture': r['image']}, text, r['caption'])
    for text, r, ok in zip(said, records, right)
  ]
  return Result(right, floor, ceiling, None, samples)


def questions(generator: Generator, n: int, task: str = 'vqa') -> Result:
  """`n` questions about held-out pictures (`vqa`) or clips (`video_vqa`) answered.

  Floor: the most frequent answer to a question of that type in the train split.
  """
  records = held_out(task, n)
  media = 'video' if task == 'video_vqa' else 'image'
  asked = [r['conversations'][0]['value'].replace(PLACEHOLDER, '').strip() for r in records]
  said = generator.text(asked, [r[media] for r in records], max_new_tokens=ANSWER_TOKENS)
  prior = judge.answer_prior(known(task))
  true = [r['conversations'][-1]['value'] for r in records]
  right = [judge.score_answer(text, r) for text, r in zip(said, records)]
  floor = [judge.score_answer(prior[r['type']], r) for r in records]
  ceiling = [judge.score_answer(text, r) for text, r in zip(true, records)]
  samples = [
    Sample(question, ok, {media: r[media]}, text, wanted)
    for question, ok, r, text, wanted in zip(asked, right, records, said, true)
  ]
  return Result(right, floor, ceiling, None, samples)


def held_out(task: str, n: int) -> Sequence[dict]:
  """The first `n` test records of a task; each holds a composition that no train record shows."""
  return [world_data.record(task, 'test', 0, i) for i in range(n)]


def known(task: str, count: int = KNOWN) -> Sequence[dict]:
  """The first train records of a task: what a floor may know."""
  return [world_data.record(task, 'train', 0, i) for i in range(count)]
