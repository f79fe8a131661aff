"""Records of the rendered world, for every task, and the held-out prompts of its generation rows.

`record(task, split, seed, index)` makes one raw record from its four arguments and nothing else, so
a source of any length needs no file and no state.
"""

import dataclasses
import functools
import itertools

from tuna_jax.toy import captions, edits, questions, scenes, world
from tuna_jax.toy.scenes import make_rng
from tuna_jax.toy.world import PLACES, SIZES, check_name

# Questions about a picture before the one that gives the record its type, and the kinds they are
# drawn from: questions that need colour and shape together are over-sampled.
_MORE = {'train': 1, 'test': 0}
_ALSO = ('colour', *('count',) * 2, *('where',) * 3, *('yesno',) * 3)
# Scenes to ask about: train has single things, and things all alike, less often, since their
# questions need no finding.
_WEIGHTS = (10, 50, 16, 6, 7, 6, 5)
_ASKED = {
  'train': tuple((family, weight) for (family, _), weight in zip(scenes.FAMILIES, _WEIGHTS)),
  'test': scenes.FAMILIES,
}
_TOLD = 3  # questions about a scene in words
_WORDS = 90  # about the length of a conversation; what does not fit in is not asked
PROMPTS = ('one', 'two', 'count', 'position')


def record(task, split, seed, index):
  """One raw record; a pure function of (task, split, seed, index).

  Every record has `scene`, a JSON-able dict: the things of a picture (of the edited picture, with
  the picture before it under `before`), or of a clip, with motions.

      t2i, caption        image uint8 [64, 64, 3], caption. Captions of `caption` are the canonical
                          ones, those of `t2i` are of every style
      vqa                 image, conversations, type (of questions.QUESTIONS) of the last one
      text                conversations, type: the language of the other tasks without pictures
      edit                raw_image, out_image, instruction, type (one of edits.EDITS)
      t2v, video_caption  video uint8 [9, 64, 64, 3], caption
      video_vqa           video, conversations, type (one of questions.CLIP_QUESTIONS)

  Raises ValueError on a task or split that does not exist.
  """
  check_name('task', task, TASKS)
  check_name('split', split, scenes.SPLITS)
  return _MAKERS[task](make_rng(task, split, seed, index), split)


def _t2i(rng, split):
  while True:
    scene = scenes.random_scene(rng, split)
    caption = captions.describe(scene, 'any', rng)
    scene = _composed(scene, captions.parse_caption(caption))
    if scenes.held_out(scene) == (split == 'test'):
      return {'image': world.render(scene), 'caption': caption, 'scene': scene.to_dict()}


def _composed(scene, meaning):
  """The scene as it is drawn: where a caption says no places, things fill them in reading order, or
  the left column if one is above the other. So a prompt that leaves the layout open has one picture
  to learn, not six.
  """
  if any(p.place for p in meaning.phrases):
    return scene
  places = tuple(PLACES)[:: 2 if meaning.relation in ('above', 'below') else 1]
  return world.Scene(tuple(dataclasses.replace(t, place=p) for t, p in zip(scene.things, places)))


def _caption(rng, split):
  scene = scenes.random_scene(rng, split)
  caption = captions.describe(scene)
  return {'image': world.render(scene), 'caption': caption, 'scene': scene.to_dict()}


def _vqa(rng, split):
  kind = rng.choice(questions.QUESTIONS)
  families = [(f, weight) for f, weight in _ASKED[split] if not (f[1] and kind == 'where')]
  scene = scenes.random_scene(rng, split, families)
  return {'image': world.render(scene), **_asked(scene, questions.ask, _ALSO, kind, rng, split)}


def _asked(scene, ask, kinds, kind, rng, split):
  last = ask(scene, kind, rng)
  talk = _interview(scene, ask, kinds, rng, '<image>\n', _MORE[split], [last])
  return {'conversations': talk, 'type': kind, 'scene': scene.to_dict()}


def _interview(scene, ask, kinds, rng, opening, count, last=()):
  """At most `count` questions about one scene, then `last`, none twice: several questions per
  picture, since encoding is the cost.
  """
  apart = len({t.kind for t in scene.things}) == len(scene.things)
  kinds = [k for k in kinds if apart or k != 'where']
  asked = dict([*last, *(ask(scene, rng.choice(kinds), rng) for _ in range(count))])  # none twice
  lengths = itertools.accumulate(map(_length, asked.items()), initial=len(opening.split()))
  fitting = sum(1 for _ in itertools.takewhile(lambda words: words <= _WORDS, lengths)) - 1
  (first, said), *rest = list(asked.items())[: max(fitting, 1)][::-1]
  return sum(itertools.starmap(_talk, rest), _talk(opening + first, said))


def _length(pair):
  """Tokens of a question and its answer with the marks around them, about."""
  return sum(len(text.split()) for text in pair) + 10


def _talk(human, gpt):
  return [{'from': 'human', 'value': human}, {'from': 'gpt', 'value': gpt}]


_EDIT_SIZES = {kind: (2, 4) if kind == 'remove' else (1, 3) for kind in edits.EDITS}


def _edited(rng, split):
  """An edit whose two pictures are both of train, or of which at least one is of test."""
  kind = rng.choice(edits.EDITS)
  while True:
    origin = 'train' if split == 'train' else rng.choice(scenes.SPLITS)
    before = scenes.random_scene(rng, origin, scenes.distinct_families(*_EDIT_SIZES[kind]))
    instruction, after = edits.edit(before, kind, rng)
    if (scenes.held_out(before) or scenes.held_out(after)) == (split == 'test'):
      return before, after, instruction, kind


def _edit(rng, split):
  before, after, instruction, kind = _edited(rng, split)
  return {
    'raw_image': world.render(before),
    'out_image': world.render(after),
    'instruction': instruction,
    'type': kind,
    'scene': {**after.to_dict(), 'before': before.to_dict()},
  }


def _t2v(rng, split):
  scene = scenes.random_clip(rng, split)
  style = 'full' if split == 'test' or rng.random() < 0.75 else 'any'
  caption = captions.describe(scene, style, rng)
  return {'video': world.render_clip(scene), 'caption': caption, 'scene': scene.to_dict()}


def _video_caption(rng, split):
  scene = scenes.random_clip(rng, split)
  caption = captions.describe(scene)
  return {'video': world.render_clip(scene), 'caption': caption, 'scene': scene.to_dict()}


def _video_vqa(rng, split):
  scene = scenes.random_clip(rng, split)
  kind = rng.choice(questions.CLIP_QUESTIONS)
  talk = _asked(scene, questions.ask_clip, questions.CLIP_QUESTIONS, kind, rng, split)
  return {'video': world.render_clip(scene), **talk}


# What the decoder reads before it sees pictures: a scene in words in the place of a picture.
_TEXT = {'recall': 45, 'question': 20, 'restate': 10, 'edit': 10, 'clip': 5, 'clip_question': 10}
_PAIR = (((2, False), 1),)


def _text(rng, split):
  (kind,) = rng.choices(list(_TEXT), list(_TEXT.values()))
  if kind == 'edit':
    before, scene, instruction, _ = _edited(rng, split)
    talk = _talk(f'{captions.describe(before)}. {instruction}', captions.describe(scene))
    shown = {**scene.to_dict(), 'before': before.to_dict()}
    return {'conversations': talk, 'type': kind, 'scene': shown}
  if kind in ('clip', 'clip_question'):
    scene = scenes.random_clip(rng, split)
    ask, kinds, describe = questions.ask_clip, questions.CLIP_QUESTIONS, questions.DESCRIBE_CLIP
  else:
    scene = scenes.random_scene(rng, split, *([_PAIR] if kind == 'recall' else []))
    ask, kinds, describe = questions.ask, questions.QUESTIONS, questions.DESCRIBE
  things = list(scene.things)
  rng.shuffle(things)
  if kind == 'recall':
    told = ' and '.join(captions.phrase(t, size=False) for t in things)
    kinds = ('what', 'colour', 'where')
  else:
    told = captions.describe(world.Scene(tuple(things)))
  if kind in ('clip', 'restate'):
    talk = _talk(f'{told}. {describe}', captions.describe(scene))
  else:
    talk = _interview(scene, ask, kinds, rng, f'{told}. ', _TOLD)
  return {'conversations': talk, 'type': kind, 'scene': scene.to_dict()}


_MAKERS = {'t2i': _t2i, 'caption': _caption, 'vqa': _vqa, 'text': _text, 'edit': _edit}
_MAKERS |= {'t2v': _t2v, 'video_caption': _video_caption, 'video_vqa': _video_vqa}
TASKS = tuple(_MAKERS)


# ---- prompts of the generation rows


def prompt(kind, index):
  """The held-out prompt number `index` of a generation row: {'prompt', 'kind', 'want'}.

  Every prompt states a composition that no train record of any task shows or says. The prompts of a
  kind come in a fixed shuffled order and start again after the last (`len(prompts(kind))` differ):

      one       a large red circle; a red circle at the top left; a large red circle at the top left
      two       a red circle and a blue square           an unseen pair of kinds
      count     three (large) green circles              an unseen number of a kind
      position  a red circle left of a blue square       an unseen pair of kinds

  `want` is what a picture must hold: {'things': [{shape, colour, size, place, motion}],
  'relation'}, None where the prompt leaves it open.
  """
  known = prompts(kind)
  text = known[index % len(known)]
  meaning = captions.parse_caption(text)
  want = {'things': [dict(vars(p)) for p in meaning.phrases], 'relation': meaning.relation}
  return {'prompt': text, 'kind': kind, 'want': want}


@functools.cache
def prompts(kind):
  """All held-out prompts of a kind, in their order."""
  check_name('prompt kind', kind, PROMPTS)
  texts = sorted(_PROMPTS[kind]())
  make_rng('prompts', kind).shuffle(texts)
  return tuple(texts)


def _one():
  for size, colour, shape in scenes.UNSEEN_THINGS:
    for place in PLACES:
      thing = world.Thing(shape, colour, size, place)
      yield captions.phrase(thing)
    yield captions.phrase(thing, place=False)
  for colour, shape, place in scenes.UNSEEN_PLACES:
    for size in SIZES:
      thing = world.Thing(shape, colour, size, place)
      yield captions.phrase(thing)
    yield captions.phrase(thing, size=False)


def _two(joints=('and',)):
  for pair in scenes.UNSEEN_PAIRS:
    for a, b in (pair, pair[::-1]):
      for joint in joints:
        yield f'{_bare(a)} {joint} {_bare(b)}'


def _position():
  return _two(tuple(captions.RELATIONS))


def _bare(kind):
  return captions.phrase(world.Thing(kind[1], kind[0], 'large', 'top left'), False, False)


def _count():
  for n, colour, shape in scenes.UNSEEN_COUNTS:
    for size in ('', *(f'{s} ' for s in SIZES if (s, colour, shape) not in scenes.UNSEEN_THINGS)):
      yield f'{captions.NUMBERS[n]} {size}{colour} {captions.PLURAL[shape]}'


_PROMPTS = {'one': _one, 'two': _two, 'count': _count, 'position': _position}
