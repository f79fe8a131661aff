"""Which scenes are held out, and scenes drawn at random in either split.

Held out, and therefore absent from every train record of every task (`unseen` names the reason):

    thing   8 of 80   (size, colour, shape)      a large red circle is never seen, small ones are
    place   16 of 160 (colour, shape, place)     this kind never stands in this quadrant
    pair    ~12 % of 780 {kind, kind}            these two kinds are never in one scene
    count   15 of 120 (number, kind)             never exactly this many of this kind
    motion  ~11 % of 200 (direction, kind)       this kind never moves this way (or stands still)

where a kind is (colour, shape). Each shape, colour, size, place, direction and every kind is seen
in train: what is new in test is only the combination. A test scene holds at least one held-out
composition, so the two splits cannot meet.
"""

import collections
import functools
import itertools
import random
import zlib

from tuna_jax.toy import world
from tuna_jax.toy.world import COLOURS, KINDS, MOTIONS, PLACES, SHAPES, SIZES, Scene, check_name

SPLITS = ('train', 'test')

# Diagonals through the (colour, shape) table: each colour and each shape loses the same share, and
# the kinds that lose a size, (i + 2 s) % 5 == 2, are not the kinds that lose a place.
_GRID = [(c, z, i, s) for i, c in enumerate(COLOURS) for s, z in enumerate(SHAPES)]
UNSEEN_THINGS = frozenset((SIZES[i % 2], c, z) for c, z, i, s in _GRID if (i + 2 * s) % 5 == 2)
UNSEEN_PLACES = frozenset(
  (c, z, tuple(PLACES)[(i + s // 2) % 4]) for c, z, i, s in _GRID if (i + 2 * s) % 5 < 2
)
UNSEEN_COUNTS = frozenset(
  (n, c, z) for c, z, i, s in _GRID for n in (2, 3, 4) if (i + s + n) % 8 == 0
)
UNSEEN_MOTIONS = frozenset(
  (m, c, z) for c, z, i, s in _GRID for d, m in enumerate(MOTIONS) if (2 * i + 4 * s + d) % 9 == 0
)
UNSEEN_PAIRS = frozenset(
  pair
  for pair in itertools.combinations(KINDS, 2)
  if zlib.crc32(f'{pair[0]} {pair[1]}'.encode()) % 100 < 12
)


def unseen(scene):
  """The held-out compositions in a scene, as (what, composition) tuples; none in train."""
  found = []
  for t in scene.things:
    found += [('thing', x) for x in [(t.size, *t.kind)] if x in UNSEEN_THINGS]
    found += [('place', x) for x in {(*t.kind, t.place), (*t.kind, t.end)} if x in UNSEEN_PLACES]
    found += [('motion', x) for x in [(t.motion, *t.kind)] if x in UNSEEN_MOTIONS]
  kinds = collections.Counter(t.kind for t in scene.things)
  found += [('count', (n, *kind)) for kind, n in kinds.items() if (n, *kind) in UNSEEN_COUNTS]
  found += [('pair', x) for x in itertools.permutations(kinds, 2) if x in UNSEEN_PAIRS]
  return found


def held_out(scene):
  """Whether the scene belongs to the test split."""
  return bool(unseen(scene))


# `rng` is a `random.Random` everywhere: stable and fast.

# ((number of things, whether all are of one kind and size), share of the scenes).
_APART, _ALIKE = {1: 22, 2: 42, 3: 8, 4: 4}, {2: 9, 3: 8, 4: 7}
FAMILIES = tuple(
  ((n, alike), share)
  for alike, shares in ((False, _APART), (True, _ALIKE))
  for n, share in shares.items()
)


def random_scene(rng, split, families=FAMILIES):
  """A picture's scene in `split`. Its things are all of different kinds, or all alike."""
  check_name('split', split, SPLITS)
  ((n, alike),) = rng.choices([f for f, _ in families], [w for _, w in families])
  while True:
    scene = _random_things(rng, n, alike)
    if held_out(scene) == (split == 'test'):
      return scene


@functools.cache
def distinct_families(least=1, most=4):
  """Families of scenes whose things differ in kind, so that 'the red circle' names one of them."""
  return tuple((f, w) for f, w in FAMILIES if not f[1] and least <= f[0] <= most)


def _random_things(rng, n, alike):
  places = sorted(rng.sample(range(4), n))
  kinds = [rng.choice(KINDS)] * n if alike else rng.sample(KINDS, n)
  size = rng.choice(SIZES)
  sizes = (size if alike else rng.choice(SIZES) for _ in kinds)  # drawn thing by thing
  things = zip(kinds, sizes, (tuple(PLACES)[p] for p in places))
  return Scene(tuple(random_thing(rng, *thing) for thing in things))


def random_thing(rng, kind, size, place, motion=''):
  """The thing with these names and a jitter."""
  moved = lambda: rng.randint(-world.JITTER, world.JITTER)
  return world.Thing(*kind[::-1], size, place, moved(), moved(), motion)


def random_clip(rng, split):
  """A clip's scene in `split`: one thing that moves or stays, or one of each."""
  check_name('split', split, SPLITS)
  n = 1 if rng.random() < 0.65 else 2
  while True:
    scene = _random_clip(rng, n)
    if held_out(scene) == (split == 'test'):
      return scene


def _random_clip(rng, n):
  kinds = rng.sample(KINDS, n)
  place = rng.choice(tuple(PLACES))
  motions = [m for m, step in MOTIONS.items() if any(step) and _stays_inside(place, *step)]
  motion = 'still' if n == 1 and rng.random() < 0.15 else rng.choice(motions)
  things = [random_thing(rng, kinds[0], rng.choice(SIZES), place, motion)]
  if n == 2:
    free = [p for p in PLACES if p not in (place, things[0].end)]
    things.append(random_thing(rng, kinds[1], rng.choice(SIZES), rng.choice(free), 'still'))
  return Scene(tuple(sorted(things, key=lambda t: tuple(PLACES).index(t.place))))


def _stays_inside(place, u, v):
  x, y = PLACES[place]
  return 0 <= x + 32 * u < world.SIDE and 0 <= y + 32 * v < world.SIDE


def make_rng(*names):
  """A generator that is a pure function of the names."""
  return random.Random('/'.join(map(str, names)))
