"""Captions of a scene, in a small exact language, and the parser that reads them back.

Every caption is true of the scene it was made from, and `parse_caption` gives back what a caption
claims. Sentences are lower case words; only instructions and questions end in '.' or '?'.

    full      a large red circle at the top left and a small blue square at the bottom right
    placed    a red circle at the top left and a blue square at the bottom right
    sized     a large red circle and a small blue square
    bare      a red circle and a blue square
    relation  a red circle left of a blue square    (two things in a row or a column)
    count     three green circles; three large green circles    (things all alike)

In a clip every thing's phrase ends with `moves left|right|up|down` or `stays still`.
"""

import dataclasses
import itertools
import re

from tuna_jax.toy import world
from tuna_jax.toy.world import COLOURS, MOTIONS, PLACES, SHAPES, SIZES

STYLES = ('full', 'placed', 'sized', 'bare', 'relation', 'count', 'any')
NUMBERS = ('zero', 'one', 'two', 'three', 'four')
RELATIONS = {'left of': (-1, 0), 'right of': (1, 0), 'above': (0, -1), 'below': (0, 1)}
PLURAL = {shape: 'crosses' if shape == 'cross' else shape + 's' for shape in SHAPES}

# Pixels: centres closer than this on an axis stand neither left nor right, above nor below.
RELATION_MARGIN = 8


def phrase(thing, size=True, place=True):
  """'a large red circle at the top left moves right', less what is switched off."""
  words = ([thing.size] if size else []) + [thing.colour, thing.shape]
  text = with_article(' '.join(words))
  if place:
    text += f' at the {thing.place}'
  if thing.motion:
    text += f' {motion_of(thing)}'
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
      raise ValueError(f"'count' wants two or more things of a picture, all alike: {scene}")
    size = f'{things[0].size} ' if rng.random() < 0.3 else ''
    return f'{NUMBERS[len(things)]} {size}{things[0].colour} {PLURAL[things[0].shape]}'
  if style == 'relation':
    if alike or not _in_line(things):
      raise ValueError(f"'relation' wants two different things in a row or a column: {scene}")
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
    stated = {name: wanted for name, wanted in vars(self).items() if wanted is not None}
    return all(getattr(thing, name) == wanted for name, wanted in stated.items())


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What a caption claims: one phrase per thing, no thing more, and a relation of the first to the
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


def with_article(words):
  """'a red circle', 'an orange circle'."""
  return f'{"an" if words.startswith("orange") else "a"} {words}'


def motion_of(t):
  """What a thing of a clip does: 'stays still', 'moves left'."""
  return 'stays still' if t.motion == 'still' else f'moves {t.motion}'
