"""A small rendered world: scenes of coloured shapes, their pictures, and what is held out.

A scene holds one to four things on white, at most one in each quadrant of a 64 x 64 picture. A
quadrant is 2 x 2 cells of a VAE with stride 16, so no two things share a latent cell.

    +-----------+-----------+      centres (x, y): top left (16, 16), top right (48, 16),
    | top left  | top right |                      bottom left (16, 48), bottom right (48, 48)
    +-----------+-----------+      each thing is moved by at most JITTER pixels on either axis
    |bottom left|bottom rght|      in a clip, a moving thing walks into the neighbouring quadrant:
    +-----------+-----------+      4 pixels a frame over 9 frames

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

import dataclasses
import functools
import random
import zlib

import numpy as np
from PIL import Image, ImageDraw

from tuna_jax.config import nearest

SIDE = 64
FRAMES = 9
STEP = 4  # pixels a moving thing walks each frame: 32 in all, one quadrant
JITTER = 0  # pixels; 1 is a harder world, for which the tiny VAE needs about twice the steps
SHAPES = ('circle', 'square', 'triangle', 'diamond', 'cross')
SIZES = ('small', 'large')
COLOURS = {
  'red': (220, 35, 35),
  'green': (30, 160, 50),
  'blue': (40, 70, 225),
  'yellow': (245, 215, 30),
  'purple': (145, 50, 175),
  'orange': (245, 130, 20),
  'black': (25, 25, 25),
  'cyan': (40, 200, 220),
}
PLACES = {
  'top left': (16, 16),
  'top right': (48, 16),
  'bottom left': (16, 48),
  'bottom right': (48, 48),
}
MOTIONS = {'left': (-1, 0), 'right': (1, 0), 'up': (0, -1), 'down': (0, 1), 'still': (0, 0)}
KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SPLITS = ('train', 'test')

_HALF = 16  # a sprite is one quadrant, 32 x 32
_OVERSAMPLE = 4


@dataclasses.dataclass(frozen=True)
class Thing:
  """One shape: its names, its jitter in pixels and, in a clip only, its motion ('' in a picture)."""

  shape: str
  colour: str
  size: str
  place: str
  dx: int = 0
  dy: int = 0
  motion: str = ''

  @property
  def kind(self):
    return self.colour, self.shape

  @property
  def center(self):
    """(x, y) in pixels; in a clip, where the first frame shows it."""
    x, y = PLACES[self.place]
    return x + self.dx, y + self.dy

  @property
  def end(self):
    """The quadrant in which the last frame shows it."""
    step = MOTIONS[self.motion] if self.motion else (0, 0)
    x, y = PLACES[self.place]
    return place_of(x + 32 * step[0], y + 32 * step[1])


@dataclasses.dataclass(frozen=True)
class Scene:
  """Things in reading order of their places. It is a clip when its things have motions."""

  things: tuple

  def to_dict(self):
    """A plain JSON-able dict; `from_dict` is the inverse."""
    return {'things': [dict(vars(thing)) for thing in self.things]}

  @classmethod
  def from_dict(cls, mapping):
    """The scene of `to_dict`. Raises ValueError on a name that is not in the world."""
    things = tuple(Thing(**thing) for thing in mapping['things'])
    for thing in things:
      for field, known in (
        ('shape', SHAPES),
        ('colour', COLOURS),
        ('size', SIZES),
        ('place', PLACES),
        ('motion', ('', *MOTIONS)),
      ):
        check_name(field, getattr(thing, field), known)
    return cls(things)


def place_of(x, y):
  """The quadrant of a point in pixels."""
  return f'{"top" if y < SIDE / 2 else "bottom"} {"left" if x < SIDE / 2 else "right"}'


def check_name(what, name, known):
  """Raises ValueError with the alternatives and the nearest of them unless `name` is one of
  `known`."""
  if name not in known:
    hint = nearest(name, known) or f'; known: {", ".join(map(repr, known))}'
    raise ValueError(f'{what} {name!r} is not in the world{hint}')


# ---- pictures


def render(scene):
  """The picture of a scene: uint8 [64, 64, 3], white behind, edges smoothed by 4 x 4 samples."""
  return _paint([(t, *t.center) for t in scene.things])


def render_clip(scene):
  """The frames of a moving scene: uint8 [9, 64, 64, 3]. Raises ValueError on a thing without
  motion."""
  for thing in scene.things:
    check_name('motion', thing.motion, MOTIONS)
  frames = []
  for frame in range(FRAMES):
    placed = []
    for thing in scene.things:
      (x, y), (u, v) = thing.center, MOTIONS[thing.motion]
      placed.append((thing, x + STEP * frame * u, y + STEP * frame * v))
    frames.append(_paint(placed))
  return np.stack(frames)


def _paint(placed):
  picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
  for thing, x, y in placed:
    window = picture[y - _HALF : y + _HALF, x - _HALF : x + _HALF] if _inside(x, y) else None
    sprite = _sprite(thing.shape, thing.size, thing.colour)
    if window is not None:
      np.minimum(window, sprite, out=window)
    else:  # the jitter takes the (empty) rim of the sprite over the edge of the picture
      padded = np.full((SIDE + 32, SIDE + 32, 3), 255, np.uint8)
      padded[y : y + 32, x : x + 32] = sprite
      np.minimum(picture, padded[16:-16, 16:-16], out=picture)
  return picture


def _inside(x, y):
  return _HALF <= x <= SIDE - _HALF and _HALF <= y <= SIDE - _HALF


@functools.cache
def _sprite(shape, size, colour):
  check_name('colour', colour, COLOURS)
  alpha = mask(shape, size)[..., None]
  return np.round(255 * (1 - alpha) + np.array(COLOURS[colour]) * alpha).astype(np.uint8)


@functools.cache
def mask(shape, size):
  """How much of each pixel the shape covers: float64 [32, 32] in [0, 1], its centre between 15 and
  16."""
  check_name('shape', shape, SHAPES)
  check_name('size', size, SIZES)
  large = size == 'large'
  scale = _OVERSAMPLE
  canvas = Image.new('L', (32 * scale, 32 * scale), 0)
  draw = ImageDraw.Draw(canvas)

  def corners(*points):
    return [((16 + x) * scale - 0.5, (16 + y) * scale - 0.5) for x, y in points]

  def box(x, y):
    draw.rectangle(
      [(16 - x) * scale, (16 - y) * scale, (16 + x) * scale - 1, (16 + y) * scale - 1], fill=255
    )

  if shape == 'circle':
    r = 13.5 if large else 9
    draw.ellipse(corners((-r, -r), (r, r)), fill=255)
  elif shape == 'square':
    r = 12.5 if large else 8
    box(r, r)
  elif shape == 'triangle':
    r = 14.5 if large else 10
    draw.polygon(corners((0, -r * 0.9), (r, r * 0.85), (-r, r * 0.85)), fill=255)
  elif shape == 'diamond':
    r = 14.8 if large else 11
    draw.polygon(corners((0, -r), (r, 0), (0, r), (-r, 0)), fill=255)
  else:
    long, thick = (14.5, 5.5) if large else (10, 3.5)
    box(long, thick)
    box(thick, long)
  fine = np.asarray(canvas, np.float64) / 255
  return fine.reshape(32, scale, 32, scale).mean((1, 3))


# ---- what is held out


def _index(colour, shape):
  return list(COLOURS).index(colour), SHAPES.index(shape)


def _grid():
  for colour, shape in KINDS:
    yield colour, shape, *_index(colour, shape)


# Diagonals through the (colour, shape) table: each colour and each shape loses the same share, and
# the kinds that lose a size, (i + 2 s) % 5 == 2, are not the kinds that lose a place.
UNSEEN_THINGS = frozenset(
  (SIZES[i % 2], colour, shape) for colour, shape, i, s in _grid() if (i + 2 * s) % 5 == 2
)
UNSEEN_PLACES = frozenset(
  (colour, shape, tuple(PLACES)[(i + s // 2) % 4])
  for colour, shape, i, s in _grid()
  if (i + 2 * s) % 5 < 2
)
UNSEEN_COUNTS = frozenset(
  (n, colour, shape) for colour, shape, i, s in _grid() for n in (2, 3, 4) if (i + s + n) % 8 == 0
)
UNSEEN_MOTIONS = frozenset(
  (motion, colour, shape)
  for colour, shape, i, s in _grid()
  for d, motion in enumerate(MOTIONS)
  if (2 * i + 4 * s + d) % 9 == 0
)
UNSEEN_PAIRS = frozenset(
  (a, b)
  for k, a in enumerate(KINDS)
  for b in KINDS[k + 1 :]
  if zlib.crc32(f'{a} {b}'.encode()) % 100 < 12
)


def unseen(scene):
  """The held-out compositions in a scene, as (what, composition) tuples; none in train."""
  found = []
  kinds = {}
  for t in scene.things:
    kinds[t.kind] = kinds.get(t.kind, 0) + 1
    if (t.size, t.colour, t.shape) in UNSEEN_THINGS:
      found.append(('thing', (t.size, t.colour, t.shape)))
    for place in {t.place, t.end}:
      if (t.colour, t.shape, place) in UNSEEN_PLACES:
        found.append(('place', (t.colour, t.shape, place)))
    if t.motion and (t.motion, t.colour, t.shape) in UNSEEN_MOTIONS:
      found.append(('motion', (t.motion, t.colour, t.shape)))
  for kind, count in kinds.items():
    if (count, *kind) in UNSEEN_COUNTS:
      found.append(('count', (count, *kind)))
    for other in kinds:
      if (kind, other) in UNSEEN_PAIRS:
        found.append(('pair', (kind, other)))
  return found


def held_out(scene):
  """Whether the scene belongs to the test split."""
  return bool(unseen(scene))


# ---- drawing scenes at random. `rng` is a `random.Random` everywhere: stable and fast

# (number of things, all of one kind and size) and its share.
FAMILIES = (
  ((1, False), 22),
  ((2, False), 42),
  ((3, False), 8),
  ((4, False), 4),
  ((2, True), 9),
  ((3, True), 8),
  ((4, True), 7),
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
  return Scene(
    tuple(
      random_thing(rng, kind, size if alike else rng.choice(SIZES), tuple(PLACES)[p])
      for kind, p in zip(kinds, places)
    )
  )


def random_thing(rng, kind, size, place, motion=''):
  """The thing with these names and a jitter."""
  colour, shape = kind
  return Thing(
    shape, colour, size, place, rng.randint(-JITTER, JITTER), rng.randint(-JITTER, JITTER), motion
  )


def random_clip(rng, split):
  """A clip's scene in `split`: one thing that moves or stays, or one that moves and one that stays."""
  check_name('split', split, SPLITS)
  n = 1 if rng.random() < 0.65 else 2
  while True:
    scene = _random_clip(rng, n)
    if held_out(scene) == (split == 'test'):
      return scene


def _random_clip(rng, n):
  kinds = rng.sample(KINDS, n)
  place = rng.choice(tuple(PLACES))
  motions = [m for m, (u, v) in MOTIONS.items() if (u, v) != (0, 0) and _stays_inside(place, u, v)]
  motion = 'still' if n == 1 and rng.random() < 0.15 else rng.choice(motions)
  things = [random_thing(rng, kinds[0], rng.choice(SIZES), place, motion)]
  if n == 2:
    free = [p for p in PLACES if p not in (place, things[0].end)]
    things.append(random_thing(rng, kinds[1], rng.choice(SIZES), rng.choice(free), 'still'))
  return Scene(tuple(sorted(things, key=lambda t: tuple(PLACES).index(t.place))))


def _stays_inside(place, u, v):
  x, y = PLACES[place]
  return 0 <= x + 32 * u < SIDE and 0 <= y + 32 * v < SIDE


def make_rng(*names):
  """A generator that is a pure function of the names."""
  return random.Random('/'.join(map(str, names)))
