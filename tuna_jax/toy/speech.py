"""What can be said about a scene of `world`: captions, questions, edits; and the caption parser.

The language is small and exact: every sentence here is true of the scene it was made from, and
`parse_caption` gives back what a caption claims. Sentences are lower case words, with '.' or '?' at
the end of instructions and questions only.

    full      a large red circle at the top left and a small blue square at the bottom right
    placed    a red circle at the top left and a blue square at the bottom right
    sized     a large red circle and a small blue square
    bare      a red circle and a blue square
    relation  a red circle left of a blue square           (two things in a row or a column; right of, above, below)
    count     three green circles; three large green circles   (things all alike)

In a clip every thing's phrase ends with `moves left|right|up|down` or `stays still`.
"""

import dataclasses
import itertools
import re

from tuna_jax.toy import world
from tuna_jax.toy.world import COLOURS, MOTIONS, PLACES, SHAPES, SIZES, Scene

STYLES = ('full', 'placed', 'sized', 'bare', 'relation', 'count', 'any')
NUMBERS = ('zero', 'one', 'two', 'three', 'four')
RELATIONS = {'left of': (-1, 0), 'right of': (1, 0), 'above': (0, -1), 'below': (0, 1)}
QUESTIONS = ('what', 'colour', 'count', 'where', 'yesno')
CLIP_QUESTIONS = ('direction', 'what', 'colour', 'count', 'yesno')
EDITS = ('recolour', 'replace', 'remove', 'add', 'move')
DESCRIBE = 'describe the picture.'
DESCRIBE_CLIP = 'describe the clip.'
PLURAL = {shape: 'crosses' if shape == 'cross' else shape + 's' for shape in SHAPES}

# Two centres closer than this on an axis stand neither left nor right (above nor below) of each
# other.
RELATION_MARGIN = 8


# ---- captions


def phrase(thing, size=True, place=True):
  """'a large red circle at the top left moves right', less what is switched off."""
  words = ([thing.size] if size else []) + [thing.colour, thing.shape]
  text = _a(' '.join(words))
  if place:
    text += f' at the {thing.place}'
  if thing.motion:
    text += f' {_motion(thing)}'
  return text


def describe(scene, style='full', rng=None):
  """A true caption of the scene in one of STYLES.

  'full' is the one canonical caption and needs no rng.

  Things are named in reading order, but for 'placed', which draws an order from `rng` (a
  random.Random), and 'relation', which starts with either thing; 'any' draws a style that fits the
  scene. Raises ValueError where a style does not fit: 'relation' wants two different things without
  motion side by side or one above the other, 'count' two or more that are all alike.
  """
  world.check_name('style', style, STYLES)
  things = list(scene.things)
  if style == 'full':
    return ' and '.join(phrase(t) for t in things)
  alike = len(things) > 1 and len({(t.kind, t.size, t.motion) for t in things}) == 1
  if style == 'any':
    style = _draw_style(things, alike, rng)
    if style == 'full':
      return describe(scene)
  if style == 'count':
    if not alike or things[0].motion:
      raise ValueError(
        f"'count' wants two or more still pictured things that are all alike: {scene}"
      )
    size = f'{things[0].size} ' if rng.random() < 0.3 else ''
    return f'{NUMBERS[len(things)]} {size}{things[0].colour} {PLURAL[things[0].shape]}'
  if style == 'relation':
    if alike or not _in_line(things):
      raise ValueError(
        f"'relation' wants two different things of a picture in a row or a column: {scene}"
      )
    a, b = rng.sample(things, 2)
    (relation,) = (r for r in RELATIONS if holds(r, a.center, b.center))
    return f'{phrase(a, False, False)} {relation} {phrase(b, False, False)}'
  size, place = style == 'sized', style == 'placed'
  if place:
    rng.shuffle(things)
  return ' and '.join(phrase(t, size, place) for t in things)


def _in_line(things):
  """Whether there are two things, both without motion, in one row or one column."""
  return (
    len(things) == 2
    and not things[0].motion
    and sum(holds(r, things[0].center, things[1].center) for r in RELATIONS) == 1
  )


def _draw_style(things, alike, rng):
  if alike and not things[0].motion:
    return rng.choices(['count', 'full'], [50, 50])[0]
  if _in_line(things):
    return rng.choices(['full', 'placed', 'sized', 'bare', 'relation'], [30, 5, 5, 30, 30])[0]
  return rng.choices(['full', 'placed', 'sized', 'bare'], [55, 10, 10, 25])[0]


def holds(relation, a, b):
  """Whether centre `a` (x, y) stands in the relation to centre `b`."""
  u, v = RELATIONS[relation]
  return (a[0] - b[0]) * u + (a[1] - b[1]) * v >= RELATION_MARGIN


@dataclasses.dataclass(frozen=True)
class Phrase:
  """What a caption claims of one thing; None where it claims nothing."""

  shape: str
  colour: str
  size: str | None = None
  place: str | None = None
  motion: str | None = None

  def fits(self, thing):
    """Whether the thing is as claimed."""
    return all(
      wanted is None or wanted == getattr(thing, name) for name, wanted in vars(self).items()
    )


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What a caption claims: one phrase a thing, no thing more, and a relation of the first to the
  second."""

  phrases: tuple
  relation: str | None = None

  def true_of(self, things):
    """Whether the things are exactly the ones claimed: a one to one match of phrases and things."""
    if len(things) != len(self.phrases):
      return False
    for order in itertools.permutations(things):
      fits = all(p.fits(t) for p, t in zip(self.phrases, order))
      if fits and (not self.relation or holds(self.relation, order[0].center, order[1].center)):
        return True
    return False

  def complete(self, moving=False):
    """Whether every thing's size and place (and motion, in a clip) are stated."""
    return all(p.size and p.place and (p.motion or not moving) for p in self.phrases)


def _one_of(names):
  return '(' + '|'.join(map(re.escape, names)) + ')'


_THING = re.compile(
  f'(?:a|an|{"|".join(NUMBERS[1:])})(?: {_one_of(SIZES)})? {_one_of(COLOURS)} '
  f'{_one_of([*SHAPES, *PLURAL.values()])}(?: at the {_one_of(PLACES)})?'
  f'(?: (?:moves {_one_of(list(MOTIONS)[:4])}|(stays still)))?'
)
_SINGULAR = {plural: shape for shape, plural in PLURAL.items()}


def parse_caption(text):
  """The Meaning of a caption of any style. Raises ValueError on text that is not such a caption."""
  text = ' '.join(text.split())
  for relation in RELATIONS:
    sides = text.split(f' {relation} ')
    if len(sides) == 2:
      phrases = _parse_things(sides[0], text) + _parse_things(sides[1], text)
      if len(phrases) != 2:
        raise ValueError(f'a relation joins two things: {text!r}')
      return Meaning(phrases, relation)
  return Meaning(sum((_parse_things(part, text) for part in text.split(' and ')), ()))


def _parse_things(part, text):
  match = _THING.fullmatch(part)
  if not match:
    raise ValueError(f'not a caption of the world: {part!r} in {text!r}')
  size, colour, shape, place, direction, still = match.groups()
  number = part.split()[0]
  count = NUMBERS.index(number) if number in NUMBERS else 1
  if (shape in _SINGULAR) != (count > 1):
    raise ValueError(f'not a caption of the world: {number!r} with {shape!r} in {text!r}')
  shape = _SINGULAR.get(shape, shape)
  return (Phrase(shape, colour, size, place, 'still' if still else direction),) * count


# ---- questions


def ask(scene, kind, rng):
  """A question of one of QUESTIONS and its answer; 'where' wants things that differ in kind.

  An answer ends with its `verdict` and says before it what that follows from: each word that has to
  be found out comes right after those that decide it, which a small model learns in a tenth of the
  tokens. Verdicts of what: a shape's name; colour: a colour; count: a number word; where: a place;
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
      key, found = PLURAL[shape], [o for o in things if o.shape == shape]
      name = key
    else:
      colour = t.colour if rng.random() < 0.8 else rng.choice(tuple(COLOURS))
      key, found = colour, [o for o in things if o.colour == colour]
      name = f'{colour} shapes'
    return (
      f'how many {name} are there?',
      f'{key} {_listed(t.place for t in found)}, so {NUMBERS[len(found)]}',
    )
  if kind == 'where':
    if not _once(things, 'kind', t.kind):
      raise ValueError(f"'where' wants things of different kinds: {scene}")
    return f'where is the {t.colour} {t.shape}?', f'{t.colour} {t.shape} {t.place}'
  return _ask_yesno(things, t, rng)


def _a(words):
  return f'{"an" if words.startswith("orange") else "a"} {words}'


def _listed(words):
  return ' and '.join(words) or 'nowhere'


VERDICTS = (
  *SHAPES,
  *COLOURS,
  *NUMBERS,
  *PLACES,
  'left',
  'right',
  'up',
  'down',
  'still',
  'yes',
  'no',
)


def verdict(answer):
  """What an answer comes to: the longest of VERDICTS that it ends with, or all of it where there is
  none.
  """
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
  return f'is there {_a(" ".join(kind))}?', f'{kind[0]} {seen}, so {answer}'


def _absent_kind(things, t, rng):
  """A kind that is not there but, as a rule, shares its colour or its shape with a thing that is."""
  near = [k for k in world.KINDS if (k[0] == t.colour) != (k[1] == t.shape)]
  present = {o.kind for o in things}
  return rng.choice([k for k in near if k not in present])


def ask_clip(scene, kind, rng):
  """A question about a clip, of one of CLIP_QUESTIONS, and its answer, as `ask` gives them.

  Verdicts of direction: left, right, up, down or still; what: the moving shape; colour; count;
  yesno.
  """
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
    return (
      f'does the {t.colour} {t.shape} move {motion}?',
      f'{_moves(t)}, so {"yes" if true else "no"}',
    )
  if true != (t.motion != 'still') and len({o.motion == 'still' for o in things}) > 1:
    t = next(o for o in things if o is not t)
  return (
    f'does the {t.colour} {t.shape} move?',
    f'{_moves(t)}, so {"no" if t.motion == "still" else "yes"}',
  )


def _moves(t):
  return f'the {t.colour} {t.shape} {_motion(t)}'


def _motion(t):
  return 'stays still' if t.motion == 'still' else f'moves {t.motion}'


# ---- edits


def edit(scene, kind, rng):
  """(instruction, edited scene) for one of EDITS; what it does not name keeps place and jitter.

  Wants a picture whose things differ in kind; 'remove' two or more of them, 'add' three or fewer.
  """
  world.check_name('edit', kind, EDITS)
  things = list(scene.things)
  taken = {t.kind for t in things}
  free = [p for p in PLACES if all(t.place != p for t in things)]
  if (
    len(taken) != len(things)
    or (kind == 'remove' and len(things) < 2)
    or (kind in ('add', 'move') and not free)
  ):
    raise ValueError(f'edit {kind!r} does not fit {scene}')
  if kind == 'add':
    new = world.random_thing(
      rng,
      rng.choice([k for k in world.KINDS if k not in taken]),
      rng.choice(SIZES),
      rng.choice(free),
    )
    return f'add {phrase(new)}.', _ordered([*things, new])
  t = things.pop(rng.randrange(len(things)))
  name = f'the {t.colour} {t.shape} at the {t.place}'
  if kind == 'remove':
    return f'remove {name}.', _ordered(things)
  if kind == 'recolour':
    colour = rng.choice([c for c in COLOURS if c != t.colour and (c, t.shape) not in taken])
    return f'paint {name} {colour}.', _ordered([*things, dataclasses.replace(t, colour=colour)])
  if kind == 'replace':
    shape = rng.choice([s for s in SHAPES if s != t.shape and (t.colour, s) not in taken])
    return (
      f'turn {name} into a {shape}.',
      _ordered([*things, dataclasses.replace(t, shape=shape)]),
    )
  place = rng.choice(free)
  return f'move {name} to the {place}.', _ordered([*things, dataclasses.replace(t, place=place)])


def _ordered(things):
  return Scene(tuple(sorted(things, key=lambda t: tuple(PLACES).index(t.place))))
