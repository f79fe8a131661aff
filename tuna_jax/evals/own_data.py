"""Scores on one's own data: records of the training mixture, and of a held-out one.

There is no exact judge of such data. Captions and answers are compared word for word; a drawn
picture is right if the judge, learned from true pictures, takes it for one of its caption
(`nearest.py`). The score of the judge on true pictures is the ceiling.
"""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord, usable
from tuna_jax.data.sources import Source, open_source, read_mixture
from tuna_jax.data.tasks import PLACEHOLDER, TASKS, turns_of
from tuna_jax.evals import results
from tuna_jax.evals.nearest import Judge, group, nearest_own
from tuna_jax.evals.results import KNOWN, Evaluation, Result, Sample
from tuna_jax.mappings import kind
from tuna_jax.sample.generate import Drawing, Generator

CAPTION_TOKENS = 64
ANSWER_TOKENS = 160
GALLERY = 2000  # true pictures that the judge learns from, beside those of the judged items

SPLITS = {'test': 'held out', 'train': 'training items'}
_ROWS = {
  'captions': 'captions, {}: every word',
  'caption_words': 'captions, {}: words in common (F1)',
  'questions': 'questions, {}',
  'pictures': 'pictures drawn, {}: taken for their caption',
  'edits': 'pictures edited, {}: taken for their instruction',
  'edits_own': 'pictures edited, {}: nearest to what their own source becomes',
  'clips': 'clips filmed, {}: taken for their caption',
  'clip_captions': 'captions of clips, {}: every word',
  'clip_caption_words': 'captions of clips, {}: words in common (F1)',
  'clip_questions': 'questions about clips, {}',
  'talk': 'conversations without pictures, {}',
}
TITLES = {f'{r}_{s}': t.format(name) for r, t in _ROWS.items() for s, name in SPLITS.items()}


def evaluate(
  generator: Generator,
  train: str,
  test: str,
  n: int = 200,
  how: Drawing | None = None,
  say: Callable[[str], None] = print,
  splits: Sequence[str] = tuple(SPLITS),
) -> Evaluation:
  """Scores every task of both mixture files; no targets are set.

  train, test: mixture files; floors and the judge of pictures are learned from the first. n: items
  per row, fewer where there are fewer records. how: what is drawn is drawn; None is as the run of
  the model says (`Generator.how`). say: is told the scores of each part as it ends.
  splits: those that are scored, 'train' and 'test'. Raises UserError for a mixture that cannot be
  read; a record that cannot is passed over.
  """
  if generator is None or isinstance(generator, (str, os.PathLike)):
    raise UserError(f'evaluate: expected a Generator of open_generator, found {kind(generator)}')
  opened = {'train': _sources(train, generator.media), 'test': _sources(test, generator.media)}

  def part(split, task):
    records = list(first(opened[split][task], n))
    known = opened['train'].get(task, [])
    if not records:
      say(f'{opened[split][task][0].name}: no record can be used')
      return {}
    row, judge = _JUDGES[task]
    found = judge(generator, records, known, how, row, task)
    return {f'{name}_{split}': result for name, result in found.items()}

  parts = {
    f'{task} {SPLITS[split]}': lambda split=split, task=task: part(split, task)
    for split in splits
    for task in _JUDGES
    if task in opened[split]
  }
  training = [name for name in TITLES if name.endswith('_train')]
  return results.evaluate(parts, TITLES, {}, say, training)


def first(sources: Sequence[Source], n: int) -> list[dict]:
  """Up to `n` records drawn at random from all sources; those that cannot be used, or ask nothing,
  are passed over.
  """
  records: list[dict] = []
  ends = np.cumsum([len(source) for source in sources])
  for i in np.random.default_rng(0).permutation(ends[-1]):
    if len(records) == n:
      break
    number = int(np.searchsorted(ends, i, 'right'))
    source = sources[number]
    try:
      record = source[int(i - (ends[number] - len(source)))]
    except BadRecord:  # named and counted when the data were trained on
      continue
    if 'conversations' not in TASKS[source.task].fields or pairs_of(record):
      records.append(record)
  return records


def _known(sources: Iterable[Source]) -> list[dict]:
  """Raw training records that floors are learned from."""
  return [record for source in sources for record in usable(source, KNOWN)]


def captions(generator, records, known, how, row, task) -> dict[str, Result]:
  """Every word right, and the words in common. Floor: the most frequent caption, and the words most
  often said.
  """
  del how
  field, asked = _medium(task), generator.tasks
  question = (asked.questions if field == 'image' else asked.video_questions)[0]
  said = generator.text(
    [question] * len(records), [r[field] for r in records], max_new_tokens=CAPTION_TOKENS
  )
  seen = collections.Counter(record['caption'] for record in _known(known))
  usual = seen.most_common(1)[0][0] if seen else ''
  common = max(
    (text for text, _ in seen.most_common(50)),
    key=lambda t: np.mean([f1(t, r['caption']) for r in records]),
    default='',
  )
  right = [same(text, r['caption']) for text, r in zip(said, records)]
  samples = [
    Sample(question, ok, {'picture': r[field]}, text, r['caption'], same(usual, r['caption']))
    for text, r, ok in zip(said, records, right)
  ]
  ones = [1.0] * len(records)
  return {
    row: Result(right, [same(usual, r['caption']) for r in records], ones, None, samples),
    f'{row[:-1]}_words': Result(
      [f1(text, r['caption']) for text, r in zip(said, records)],
      [f1(common, r['caption']) for r in records],
      ones,
      None,
      (),
    ),
  }


def questions(generator, records, known, how, row, task) -> dict[str, Result]:
  """Whole conversations, the model's own answers standing in them. Floor: the usual answer to the
  same question.
  """
  del how
  usual: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  for record in _known(known):
    for asked, answer in pairs_of(record):
      usual[asked][answer] += 1
  answers = sum(usual.values(), collections.Counter()).most_common(1)
  anything = answers[0][0] if answers else ''
  pairs = [pairs_of(r) for r in records]
  history: list[list[tuple[str, str]]] = [[] for _ in records]
  right, floor, samples = [], [], []
  for turn in range(max(map(len, pairs))):
    live = [i for i, p in enumerate(pairs) if len(p) > turn]
    for i in live:
      history[i].append(('user', pairs[i][turn][0]))
    said = generator.text(
      [history[i] for i in live],
      [records[i].get(_medium(task), ()) for i in live],
      max_new_tokens=ANSWER_TOKENS,
    )
    for i, text in zip(live, said):
      asked, wanted = pairs[i][turn]
      history[i].append(('assistant', text))
      right.append(same(text, wanted))
      floor.append(same(usual[asked].most_common(1)[0][0] if asked in usual else anything, wanted))
      shown = records[i].get(_medium(task))
      shown = shown[0] if isinstance(shown, list) else shown
      pictures = {} if shown is None else {'picture': shown}
      samples.append(Sample(asked, right[-1], pictures, text, wanted, floor[-1]))
  return {row: Result(right, floor, [1.0] * len(right), None, samples)}


def pictures(generator, records, known, how, row, task) -> dict[str, Result]:
  """Each record drawn (edited, filmed) from its text; right when the judge takes it for its text.

  Floor: the same pictures, prompts shuffled. Ceiling: true pictures, each judged by all the others.
  An edit is also compared with what all sources of the same instruction become, and its own should
  be the nearest; the floor is chance.
  """
  text, field = _DRAWN[task]
  prompts = [r[text] for r in records]
  given = vars(how) if how else {}  # the generator knows what the run says
  shown: list[dict] = [{} for _ in records]
  if task == 'edit':
    sources = [r['raw_image'] for r in records]
    shown = [{'before': x[0] if isinstance(x, list) else x} for x in sources]
    drawn = [p.pixels for p in generator.edit(sources, prompts, seed=0, **given)]
  else:
    make = generator.image if task == 't2i' else generator.video
    drawn = [p.pixels for p in make(prompts, seed=0, **given)]
  real = [r[field] for r in records]
  others = _others(known, prompts, text, field)
  judge = Judge([*real, *(r[field] for r in others)], [*prompts, *(r[text] for r in others)])
  wanted = [group(prompt) for prompt in prompts]
  agree = lambda seen, names: [a == b for a, b in zip(seen, names)]
  frames = [x if x.ndim == 4 else x[None] for x in real]
  decoded = generator.decode(generator.encode(frames))
  rebuilt = [y if x.ndim == 4 else y[0] for x, y in zip(real, decoded)]
  seen = judge(drawn)
  right = agree(seen, wanted)
  ceiling = agree(judge.of_own(), wanted)
  shuffled = agree(seen, np.random.default_rng(0).permutation(wanted))
  samples = [
    Sample(prompt, ok, {**before, 'drawn': x, 'true': y}, took, want, prior)
    for prompt, ok, before, x, y, took, want, prior in zip(
      prompts, right, shown, drawn, real, seen, wanted, shuffled
    )
  ]
  found = {row: Result(right, shuffled, ceiling, agree(judge(rebuilt), wanted), samples)}
  if task == 'edit':
    chance, ones = [1 / wanted.count(name) for name in wanted], [1.0] * len(wanted)
    own = (nearest_own(x, real, wanted) for x in (drawn, rebuilt))
    found[f'{row}_own'] = Result(next(own), chance, ones, next(own), ())
  return found


def _others(known: Sequence[Source], prompts, text: str, field: str) -> list[dict]:
  """Training records with the same texts: their pictures belong to the judged groups too."""
  asked, found = {group(prompt) for prompt in prompts}, []
  for source in known:
    order = np.random.default_rng(1).permutation(len(source))[:GALLERY]
    for i in order:
      try:
        words = source.raw(int(i)).get(text)
        if isinstance(words, str) and group(words) in asked:
          found.append(source[int(i)])
      except BadRecord:
        continue
  return found


_DRAWN = {
  't2i': ('caption', 'image'),
  'edit': ('instruction', 'out_image'),
  't2v': ('caption', 'video'),
}
_JUDGES: Mapping[str, tuple[str, Callable]] = {
  'caption': ('captions', captions),
  'vqa': ('questions', questions),
  't2i': ('pictures', pictures),
  'edit': ('edits', pictures),
  't2v': ('clips', pictures),
  'video_caption': ('clip_captions', captions),
  'video_vqa': ('clip_questions', questions),
  'text': ('talk', questions),
}


def _medium(task: str) -> str:
  """The field of what a question is about."""
  return 'video' if task.startswith('video') else 'image'


def same(text: str, wanted: str) -> bool:
  """Whether two texts are the same words, but for case and spaces."""
  return text.lower().split() == wanted.lower().split()


def f1(text: str, wanted: str) -> float:
  """The harmonic mean of precision and recall of words."""
  a, b = (collections.Counter(t.lower().split()) for t in (text, wanted))
  common = (a & b).total()
  return 2 * common / (a.total() + b.total()) if common else 0.0


def pairs_of(record: Mapping) -> list[tuple[str, str]]:
  """(question, answer) of each exchange of a conversation, without the picture's mark."""
  turns = turns_of(record)
  return [
    (asked.replace(PLACEHOLDER, '').replace('<video>', '').strip(), answer)
    for (role, asked), (other, answer) in itertools.pairwise(turns)
    if (role, other) == ('user', 'assistant')
  ]


def _sources(mixture: str, media: MediaConfig) -> dict[str, list[Source]]:
  """The sources of each task of a mixture file."""
  found: dict[str, list[Source]] = collections.defaultdict(list)
  for row in read_mixture(mixture):
    found[row.task].append(open_source(row, media))
  return dict(found)
