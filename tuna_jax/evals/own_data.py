"""Scores on one's own data: records of the training mixture, and of a held-out one.

There is no exact judge of such pictures. Captions and answers are compared word for word; a drawn
picture is compared with the true pictures of all prompts, and is right if its own is the nearest.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord, usable
from tuna_jax.data.sources import Source, open_source, read_mixture
from tuna_jax.data.tasks import PLACEHOLDER, TASKS, turns_of
from tuna_jax.evals import results
from tuna_jax.evals.results import KNOWN, Evaluation, Result, Sample
from tuna_jax.sample.generate import Drawing, Generator

CAPTION_TOKENS = 64
ANSWER_TOKENS = 160
COARSE = 16  # pictures are compared as averages over a grid of 16 x 16

SPLITS = {'train': 'in training', 'test': 'held out'}
_ROWS = {
  'captions': 'captions, {}: every word',
  'caption_words': 'captions, {}: words in common (F1)',
  'questions': 'questions, {}',
  'pictures': 'pictures drawn, {}: nearest to their own',
}
TITLES = {f'{r}_{s}': t.format(name) for r, t in _ROWS.items() for s, name in SPLITS.items()}


def evaluate(
  generator: Generator,
  train: str,
  test: str,
  n: int = 200,
  how: Drawing = Drawing(),  # noqa: B008
  say: Callable[[str], None] = print,
) -> Evaluation:
  """Scores captions, answers and drawn pictures of both mixture files, as far as they have the
  tasks; no targets are set.

  train, test: mixture files; floors are learned from the first. n: items per row, fewer where there
  are fewer records. say: is told the scores of each part as it ends.
  """
  opened = {'train': _sources(train, generator.media), 'test': _sources(test, generator.media)}

  def part(split, task):
    records, known = first(opened[split][task], n), opened['train'][task]
    if not records:
      say(f'{opened[split][task].name}: no record can be used')
      return {}
    found = _JUDGES[task](generator, records, known, how)
    return {f'{name}_{split}': result for name, result in found.items()}

  parts = {
    f'{task} {SPLITS[split]}': lambda split=split, task=task: part(split, task)
    for split in SPLITS
    for task in _JUDGES
    if task in opened[split] and task in opened['train']
  }
  return results.evaluate(parts, TITLES, {}, say)


def first(source: Source, n: int) -> list[dict]:
  """Up to `n` records spread over a source; those that cannot be used, or ask nothing, are passed
  over.
  """
  records = []
  order = np.random.default_rng(0).permutation(len(source))
  for i in order:
    if len(records) == n:
      break
    try:
      record = source[int(i)]
    except BadRecord:  # named and counted when the data were trained on
      continue
    if 'conversations' not in TASKS[source.task].fields or _pairs(record):
      records.append(record)
  return records


def captions(
  generator: Generator, records: Sequence[dict], known: Source, how: Drawing
) -> dict[str, Result]:
  """Every word right, and the words in common. Floor: the most frequent caption, and the words most
  often said.
  """
  del how
  question = generator.tasks.questions[0]
  said = generator.text(
    [question] * len(records), [r['image'] for r in records], max_new_tokens=CAPTION_TOKENS
  )
  seen = collections.Counter(record['caption'] for record in usable(known, KNOWN))
  usual = seen.most_common(1)[0][0] if seen else ''
  common = max(
    (text for text, _ in seen.most_common(50)),
    key=lambda t: np.mean([f1(t, r['caption']) for r in records]),
    default='',
  )
  right = [same(text, r['caption']) for text, r in zip(said, records)]
  samples = [
    Sample(question, ok, {'picture': r['image']}, text, r['caption'])
    for text, r, ok in zip(said, records, right)
  ]
  ones = [1.0] * len(records)
  return {
    'captions': Result(right, [same(usual, r['caption']) for r in records], ones, None, samples),
    'caption_words': Result(
      [f1(text, r['caption']) for text, r in zip(said, records)],
      [f1(common, r['caption']) for r in records],
      ones,
      None,
      (),
    ),
  }


def questions(
  generator: Generator, records: Sequence[dict], known: Source, how: Drawing
) -> dict[str, Result]:
  """Whole conversations, the model's own answers standing in them. Floor: the usual answer to the
  same question.
  """
  del how
  usual: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  for record in usable(known, KNOWN):
    for asked, answer in _pairs(record):
      usual[asked][answer] += 1
  answers = sum(usual.values(), collections.Counter()).most_common(1)
  anything = answers[0][0] if answers else ''
  pairs = [_pairs(r) for r in records]
  history: list[list[tuple[str, str]]] = [[] for _ in records]
  right, floor, samples = [], [], []
  for turn in range(max(map(len, pairs))):
    live = [i for i, p in enumerate(pairs) if len(p) > turn]
    for i in live:
      history[i].append(('user', pairs[i][turn][0]))
    said = generator.text(
      [history[i] for i in live], [records[i]['image'] for i in live], max_new_tokens=ANSWER_TOKENS
    )
    for i, text in zip(live, said):
      asked, wanted = pairs[i][turn]
      history[i].append(('assistant', text))
      right.append(same(text, wanted))
      floor.append(same(usual[asked].most_common(1)[0][0] if asked in usual else anything, wanted))
      image = records[i]['image']
      samples.append(
        Sample(
          asked,
          right[-1],
          {'picture': image[0] if isinstance(image, list) else image},
          text,
          wanted,
        )
      )
  samples.sort(key=lambda s: s.text)
  return {'questions': Result(right, floor, [1.0] * len(right), None, samples)}


def pictures(
  generator: Generator, records: Sequence[dict], known: Source, how: Drawing
) -> dict[str, Result]:
  """Each record drawn from its caption; right when its own true picture is the nearest of all of
  them.

  Floor: the same pictures, prompts shuffled. Ceiling: the true pictures themselves.
  """
  del known
  prompts = [r['caption'] for r in records]
  drawn = [p.pixels for p in generator.image(prompts, seed=0, **vars(how))]
  real = [r['image'] for r in records]
  rebuilt = [v[0] for v in generator.decode(generator.encode([x[None] for x in real]))]
  right = [k == i for i, k in enumerate(nearest_of(drawn, real))]
  shuffled = [k == (i + 1) % len(real) for i, k in enumerate(nearest_of(drawn, real))]
  return {
    'pictures': Result(
      right,
      shuffled,
      [k == i for i, k in enumerate(nearest_of(real, real))],
      [k == i for i, k in enumerate(nearest_of(rebuilt, real))],
      [
        Sample(text, ok, {'drawn': x, 'true': y})
        for text, ok, x, y in zip(prompts, right, drawn, real)
      ],
    )
  }


_JUDGES: Mapping[str, Callable] = {'caption': captions, 'vqa': questions, 't2i': pictures}


def same(text: str, wanted: str) -> bool:
  """Whether two texts are the same words, but for case and spaces."""
  return text.lower().split() == wanted.lower().split()


def f1(text: str, wanted: str) -> float:
  """The harmonic mean of precision and recall of words."""
  a, b = (collections.Counter(t.lower().split()) for t in (text, wanted))
  common = (a & b).total()
  return 2 * common / (a.total() + b.total()) if common else 0.0


def nearest_of(found: Sequence[np.ndarray], gallery: Sequence[np.ndarray]) -> list[int]:
  """For each picture uint8 [H, W, 3] the number of the nearest in the gallery, by squared error of
  the coarse grid.
  """
  a, b = _coarse(found), _coarse(gallery)
  return [int(np.argmin(np.square(b - x).sum(-1))) for x in a]


def _coarse(pixels: Sequence[np.ndarray]) -> np.ndarray:
  out = []
  for x in pixels:
    height, width = (side // COARSE * COARSE for side in x.shape[:2])
    x = x[:height, :width].astype(np.float64)
    out.append(x.reshape(COARSE, height // COARSE, COARSE, width // COARSE, 3).mean((1, 3)).ravel())
  return np.stack(out)


def _pairs(record: Mapping) -> list[tuple[str, str]]:
  """(question, answer) of each exchange of a conversation, without the picture's mark."""
  turns = turns_of(record)
  return [
    (asked.replace(PLACEHOLDER, '').strip(), answer)
    for (role, asked), (other, answer) in itertools.pairwise(turns)
    if (role, other) == ('user', 'assistant')
  ]


def _sources(mixture: str, media: MediaConfig) -> dict[str, Source]:
  """The first source of each task of a mixture file."""
  found: dict[str, Source] = {}
  for row in read_mixture(mixture):
    if row.task in _JUDGES:
      found.setdefault(row.task, open_source(row, media))
  return found
