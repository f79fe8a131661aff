"""Questions about a scene or a clip with their answers, and what an answer comes to.

An answer ends with its `verdict` and gives the evidence first: each word that has to be found out
comes right after those that decide it, which a small model learns in a tenth of the tokens.
"""

from tuna_jax.toy import world
from tuna_jax.toy.captions import NUMBERS, PLURAL, RELATIONS, holds, motion_of, with_article
from tuna_jax.toy.world import COLOURS, MOTIONS, PLACES, SHAPES, SIZES

QUESTIONS = ('what', 'colour', 'count', 'where', 'yesno')
CLIP_QUESTIONS = ('direction', 'what', 'colour', 'count', 'yesno')
DESCRIBE = 'describe the picture.'
DESCRIBE_CLIP = 'describe the clip.'


def ask(scene, kind, rng):
  """A question of one of QUESTIONS and its answer; 'where' wants things that differ in kind.

  Verdicts of what: a shape's name; colour: a colour; count: a number word; where: a place;
  yesno: yes or no, equally often.
  """
  world.check_name('question type', kind, QUESTIONS)
  things = scene.things
  t = rng.choice(things)
  if kind == 'what':
    if rng.random() < 0.5 and _once(things, 'colour', t.colour):
      return f'what shape is the {t.colour} one?', f'{t.colour} {t.shape}'
    return f'what shape is at the {t.place}?', f'{t.place} {t.shape}'
  if kind == 'colour':
    if rng.random() < 0.5 and _once(things, 'shape', t.shape):
      return f'what colour is the {t.shape}?', f'{t.shape} {t.colour}'
    return f'what colour is the shape at the {t.place}?', f'{t.place} {t.colour}'
  if kind == 'count':
    form = rng.random()
    if form < 0.5:
      return 'how many shapes are there?', NUMBERS[len(things)]
    if form < 0.75:
      shape = t.shape if rng.random() < 0.8 else rng.choice(SHAPES)
      key, name, found = PLURAL[shape], PLURAL[shape], [o for o in things if o.shape == shape]
    else:
      key = t.colour if rng.random() < 0.8 else rng.choice(tuple(COLOURS))
      name, found = f'{key} shapes', [o for o in things if o.colour == key]
    places, number = _listed(t.place for t in found), NUMBERS[len(found)]
    return f'how many {name} are there?', f'{key} {places}, so {number}'
  if kind == 'where':
    if not _once(things, 'kind', t.kind):
      raise ValueError(f"'where' wants things of different kinds: {scene}")
    return f'where is the {t.colour} {t.shape}?', f'{t.colour} {t.shape} {t.place}'
  return _ask_yesno(things, t, rng)


def _listed(words):
  return ' and '.join(words) or 'nowhere'


VERDICTS = (*SHAPES, *COLOURS, *NUMBERS, *PLACES, *MOTIONS, 'yes', 'no')


def verdict(answer):
  """What an answer comes to: the longest of VERDICTS that it ends with, else all of it."""
  return max((v for v in VERDICTS if f' {answer}'.endswith(f' {v}')), key=len, default=answer)


def _once(things, field, value):
  return sum(getattr(t, field) == value for t in things) == 1


def _ask_yesno(things, t, rng):
  true = rng.random() < 0.5
  answer = 'yes' if true else 'no'
  form = rng.random()
  if form < 0.4 and len({o.kind for o in things}) > 1:
    other = rng.choice([o for o in things if o is not t])
    relation = rng.choice([r for r in RELATIONS if holds(r, t.center, other.center) == true])
    a, b = (f'{o.colour} {o.shape}' for o in (t, other))
    axis = RELATIONS[relation][0] != 0
    at, there = (o.place.split()[axis] for o in (t, other))
    return f'is the {a} {relation} the {b}?', f'{a} {at} and {b} {there}, so {answer}'
  if form < 0.6 and _once(things, 'kind', t.kind):
    size = t.size if true else SIZES[1 - SIZES.index(t.size)]
    name = f'{t.colour} {t.shape}'
    return f'is the {name} {size}?', f'{name} {t.size}, so {answer}'
  kind = t.kind if true else _absent_kind(things, t, rng)
  seen = _listed(o.shape for o in things if o.colour == kind[0])
  return f'is there {with_article(" ".join(kind))}?', f'{kind[0]} {seen}, so {answer}'


def _absent_kind(things, t, rng):
  """A kind that is not there and shares its colour or its shape with `t`."""
  near = [k for k in world.KINDS if (k[0] == t.colour) != (k[1] == t.shape)]
  present = {o.kind for o in things}
  return rng.choice([k for k in near if k not in present])


def ask_clip(scene, kind, rng):
  """A question about a clip, of one of CLIP_QUESTIONS, and its answer, as `ask` gives them. The
  verdict of 'direction' is left, right, up, down or still."""
  world.check_name('clip question type', kind, CLIP_QUESTIONS)
  things = scene.things
  moving = [t for t in things if t.motion != 'still']
  t = rng.choice(things)
  if kind == 'direction':
    t = rng.choice(moving) if moving and rng.random() < 0.8 else t
    return f'which way does the {t.colour} {t.shape} move?', _moves(t)
  if kind == 'what' and moving:
    return 'which shape moves?', f'the moving {moving[0].shape}'
  if kind == 'what':
    return f'what shape is the {t.colour} one?', f'{t.colour} {t.shape}'
  if kind == 'colour' and moving and rng.random() < 0.6:
    return 'what colour is the shape that moves?', f'what moves is {moving[0].colour}'
  if kind == 'colour':
    if _once(things, 'shape', t.shape):
      return f'what colour is the {t.shape}?', f'{t.shape} {t.colour}'
    return f'what colour is the shape at the {t.place}?', f'{t.place} {t.colour}'
  if kind == 'count':
    return 'how many shapes are there?', NUMBERS[len(things)]
  true = rng.random() < 0.5
  if rng.random() < 0.5 and moving:
    t = moving[0]
    motion = t.motion if true else rng.choice([m for m in list(MOTIONS)[:4] if m != t.motion])
    answer = 'yes' if true else 'no'
    return f'does the {t.colour} {t.shape} move {motion}?', f'{_moves(t)}, so {answer}'
  if true != (t.motion != 'still') and len({o.motion == 'still' for o in things}) > 1:
    t = next(o for o in things if o is not t)
  answer = 'no' if t.motion == 'still' else 'yes'
  return f'does the {t.colour} {t.shape} move?', f'{_moves(t)}, so {answer}'


def _moves(t):
  return f'the {t.colour} {t.shape} {motion_of(t)}'
