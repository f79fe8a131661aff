"""Records of the rendered world, for every task; the same ones as a TensorFlow Datasets builder.

`record(task, split, seed, index)` makes one raw record from its four arguments and nothing else, so
a source of any length needs no file and no state. `prompt(kind, index)` gives the held-out prompts
of the generation rows. The scenes, their pictures and the held-out compositions are in `world`, the
sentences in `speech`; `Shapes` (loaded on first use, it needs tensorflow_datasets but not
TensorFlow) is in `shapes_builder`.
"""

import dataclasses
import functools
import itertools

from tuna_jax.toy import speech, world
from tuna_jax.toy.world import COLOURS, PLACES, SIZES, check_name, make_rng

_MORE = {
  'train': 1,
  'test': 0,
}  # a question about a picture before the one that gives the record its type
# The kinds it is drawn from: what takes a thing's colour and shape together to find is asked more.
_ALSO = ('colour', 'count', 'count', 'where', 'where', 'where', 'yesno', 'yesno', 'yesno')
# Scenes to ask about: train sees one thing, or things all alike, less often, for they teach nothing
# of which is which.
_ASKED = {
  'train': (
    ((1, False), 10),
    ((2, False), 50),
    ((3, False), 16),
    ((4, False), 6),
    ((2, True), 7),
    ((3, True), 6),
    ((4, True), 5),
  ),
  'test': world.FAMILIES,
}
_TOLD = 3  # questions about a scene in words
_WORDS = 90  # of a conversation, about; what does not fit in is not asked
PROMPTS = ('one', 'two', 'count', 'position')


def record(task, split, seed, index):
  """One raw record; a pure function of (task, split, seed, index).

  Every record has `scene`, a JSON-able dict: the things of a picture (of the edited picture, with
  the picture before it under `before`), or of a clip, with motions.

      t2i, caption        image uint8 [64, 64, 3], caption. Captions of `caption` are the canonical
                          ones, those of `t2i` are of every style
      vqa                 image, conversations, type (one of speech.QUESTIONS) of the last question
      text                conversations, type: the language of the other tasks without pictures
      edit                raw_image, out_image, instruction, type (one of speech.EDITS)
      t2v, video_caption  video uint8 [9, 64, 64, 3], caption
      video_vqa           video, conversations, type (one of speech.CLIP_QUESTIONS)

  Raises ValueError on a task or split that does not exist.
  """
  check_name('task', task, TASKS)
  check_name('split', split, world.SPLITS)
  return _MAKERS[task](make_rng(task, split, seed, index), split)


def _t2i(rng, split):
  while True:
    scene = world.random_scene(rng, split)
    caption = speech.describe(scene, 'any', rng)
    scene = _composed(scene, speech.parse_caption(caption))
    if world.held_out(scene) == (split == 'test'):
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
  scene = world.random_scene(rng, split)
  return {'image': world.render(scene), 'caption': speech.describe(scene), 'scene': scene.to_dict()}


def _vqa(rng, split):
  kind = rng.choice(speech.QUESTIONS)
  families = [
    (family, weight) for family, weight in _ASKED[split] if not (family[1] and kind == 'where')
  ]
  scene = world.random_scene(rng, split, families)
  return {'image': world.render(scene), **_asked(scene, speech.ask, _ALSO, kind, rng, split)}


def _asked(scene, ask, kinds, kind, rng, split):
  last = ask(scene, kind, rng)
  talk = _interview(scene, ask, kinds, rng, '<image>\n', _MORE[split], [last])
  return {'conversations': talk, 'type': kind, 'scene': scene.to_dict()}


def _interview(scene, ask, kinds, rng, opening, count, last=()):
  """At most `count` questions about one scene, then `last`, none twice: a picture is dear and an
  answer is short.
  """
  apart = len({t.kind for t in scene.things}) == len(scene.things)
  kinds = [k for k in kinds if apart or k != 'where']
  pairs = list(dict([*last, *(ask(scene, rng.choice(kinds), rng) for _ in range(count))]).items())[
    ::-1
  ]
  left = _WORDS - len(opening.split())
  fits = [
    *itertools.takewhile(
      lambda words: words <= left, itertools.accumulate(map(_length, reversed(pairs)))
    )
  ]
  (first, said), *rest = pairs[-max(len(fits), 1) :]
  return sum(itertools.starmap(_talk, rest), _talk(opening + first, said))


def _length(pair):
  """Tokens of a question and its answer with the marks around them, about."""
  return sum(len(text.split()) for text in pair) + 10


def _talk(human, gpt):
  return [{'from': 'human', 'value': human}, {'from': 'gpt', 'value': gpt}]


_EDIT_SIZES = {
  'recolour': (1, 3),
  'replace': (1, 3),
  'remove': (2, 4),
  'add': (1, 3),
  'move': (1, 3),
}


def _edited(rng, split):
  """An edit whose two pictures are both of train, or of which at least one is of test."""
  kind = rng.choice(speech.EDITS)
  while True:
    origin = 'train' if split == 'train' else rng.choice(world.SPLITS)
    before = world.random_scene(rng, origin, world.distinct_families(*_EDIT_SIZES[kind]))
    instruction, after = speech.edit(before, kind, rng)
    if (world.held_out(before) or world.held_out(after)) == (split == 'test'):
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
  scene = world.random_clip(rng, split)
  style = 'full' if split == 'test' or rng.random() < 0.75 else 'any'
  return {
    'video': world.render_clip(scene),
    'caption': speech.describe(scene, style, rng),
    'scene': scene.to_dict(),
  }


def _video_caption(rng, split):
  scene = world.random_clip(rng, split)
  return {
    'video': world.render_clip(scene),
    'caption': speech.describe(scene),
    'scene': scene.to_dict(),
  }


def _video_vqa(rng, split):
  scene = world.random_clip(rng, split)
  kind = rng.choice(speech.CLIP_QUESTIONS)
  return {
    'video': world.render_clip(scene),
    **_asked(scene, speech.ask_clip, speech.CLIP_QUESTIONS, kind, rng, split),
  }


# What the decoder reads before it has eyes: a scene in words stands where a picture will stand.
_TEXT = {'recall': 45, 'question': 20, 'restate': 10, 'edit': 10, 'clip': 5, 'clip_question': 10}


_PAIR = (((2, False), 1),)


def _text(rng, split):
  (kind,) = rng.choices(list(_TEXT), list(_TEXT.values()))
  if kind == 'edit':
    before, scene, instruction, _ = _edited(rng, split)
    return {
      'conversations': _talk(f'{speech.describe(before)}. {instruction}', speech.describe(scene)),
      'type': kind,
      'scene': {**scene.to_dict(), 'before': before.to_dict()},
    }
  if kind in ('question', 'clip_question'):
    clip = kind == 'clip_question'
    ask, kinds = (
      (speech.ask_clip, speech.CLIP_QUESTIONS) if clip else (speech.ask, speech.QUESTIONS)
    )
    scene = world.random_clip(rng, split) if clip else world.random_scene(rng, split)
    talk = _interview(scene, ask, kinds, rng, f'{_shuffled(scene, rng)}. ', _TOLD)
  elif kind == 'recall':
    scene = world.random_scene(rng, split, _PAIR)
    things = list(scene.things)
    rng.shuffle(things)
    told = ' and '.join(speech.phrase(t, size=False) for t in things)
    talk = _interview(scene, speech.ask, ('what', 'colour', 'where'), rng, f'{told}. ', _TOLD)
  elif kind == 'restate':
    scene = world.random_scene(rng, split)
    talk = _talk(f'{_shuffled(scene, rng)}. {speech.DESCRIBE}', speech.describe(scene))
  else:
    scene = world.random_clip(rng, split)
    talk = _talk(f'{_shuffled(scene, rng)}. {speech.DESCRIBE_CLIP}', speech.describe(scene))
  return {'conversations': talk, 'type': kind, 'scene': scene.to_dict()}


def _shuffled(scene, rng):
  things = list(scene.things)
  rng.shuffle(things)
  return speech.describe(world.Scene(tuple(things)))


_MAKERS = {
  't2i': _t2i,
  'caption': _caption,
  'vqa': _vqa,
  'text': _text,
  'edit': _edit,
  't2v': _t2v,
  'video_caption': _video_caption,
  'video_vqa': _video_vqa,
}
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
  meaning = speech.parse_caption(text)
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
  for size, colour, shape in world.UNSEEN_THINGS:
    for place in PLACES:
      thing = world.Thing(shape, colour, size, place)
      yield speech.phrase(thing)
    yield speech.phrase(thing, place=False)
  for colour, shape, place in world.UNSEEN_PLACES:
    for size in SIZES:
      thing = world.Thing(shape, colour, size, place)
      yield speech.phrase(thing)
    yield speech.phrase(thing, size=False)


def _two(joints=('and',)):
  for pair in world.UNSEEN_PAIRS:
    for a, b in (pair, pair[::-1]):
      for joint in joints:
        yield f'{_bare(a)} {joint} {_bare(b)}'


def _position():
  return _two(tuple(speech.RELATIONS))


def _bare(kind):
  return speech.phrase(world.Thing(kind[1], kind[0], 'large', 'top left'), False, False)


def _count():
  for n, colour, shape in world.UNSEEN_COUNTS:
    for size in ('', *(f'{s} ' for s in SIZES if (s, colour, shape) not in world.UNSEEN_THINGS)):
      yield f'{speech.NUMBERS[n]} {size}{colour} {speech.PLURAL[shape]}'


_PROMPTS = {'one': _one, 'two': _two, 'count': _count, 'position': _position}

# Every word of every sentence, for a tokenizer that wants whole words.
_GRAMMAR = """
  a an and at the of to is are there that one into what which where how many way does
  shape shapes colour move moves stays add remove paint turn describe picture clip say may show
  yes no so nowhere moving
"""
WORDS = tuple(
  sorted(
    {*COLOURS, *SIZES, *world.SHAPES, *speech.PLURAL.values(), *world.MOTIONS, *speech.NUMBERS}
    | set(' '.join([*PLACES, *speech.RELATIONS, _GRAMMAR]).split())
  )
)
