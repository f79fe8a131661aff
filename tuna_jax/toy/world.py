"""A small rendered world: scenes of coloured shapes, and their pictures.

A scene holds one to four things on white, at most one in each quadrant of a 64 x 64 picture. A
quadrant is 2 x 2 cells of a VAE with stride 16, so no two things share a latent cell.

    +-----------+-----------+      centres (x, y): top left (16, 16), top right (48, 16),
    | top left  | top right |                      bottom left (16, 48), bottom right (48, 48)
    +-----------+-----------+      each thing is moved by at most JITTER pixels on either axis
    |bottom left|bottom rght|      in a clip, a moving thing walks into the neighbouring quadrant:
    +-----------+-----------+      4 pixels per frame over 9 frames
"""

import dataclasses
import functools

import numpy as np
from PIL import Image, ImageDraw

from tuna_jax.config import UserError, nearest

SIDE = 64
FRAMES = 9
STEP = 4  # pixels a moving thing walks each frame: 32 in all, one quadrant
JITTER = 0  # pixels; 1 is a harder world, for which the tiny VAE needs about twice the steps
SHAPES = ('circle', 'square', 'triangle', 'diamond', 'cross')
SIZES = ('small', 'large')
COLOURS = {
  **{'red': (220, 35, 35), 'green': (30, 160, 50), 'blue': (40, 70, 225)},
  **{'yellow': (245, 215, 30), 'purple': (145, 50, 175), 'orange': (245, 130, 20)},
  **{'black': (25, 25, 25), 'cyan': (40, 200, 220)},
}
PLACES = {
  f'{y} {x}': (16 + 32 * (x == 'right'), 16 + 32 * (y == 'bottom'))
  for y in ('top', 'bottom')
  for x in ('left', 'right')
}
MOTIONS = {'left': (-1, 0), 'right': (1, 0), 'up': (0, -1), 'down': (0, 1), 'still': (0, 0)}
KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)

_OVERSAMPLE = 4


@dataclasses.dataclass(frozen=True)
class Thing:
  """One shape: its names, its jitter in pixels and its motion ('' in a picture)."""

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
    names = {'shape': SHAPES, 'colour': COLOURS, 'size': SIZES, 'place': PLACES}
    for thing in things:
      for field, known in {**names, 'motion': ('', *MOTIONS)}.items():
        check_name(field, getattr(thing, field), known)
    return cls(things)


def place_of(x, y):
  """The quadrant of a point in pixels."""
  return f'{"top" if y < SIDE / 2 else "bottom"} {"left" if x < SIDE / 2 else "right"}'


def check_name(what, name, known):
  """Raises UserError with the nearest alternative unless `name` is one of `known`."""
  if name not in known:
    hint = nearest(name, known) or f'; known: {", ".join(map(repr, known))}'
    raise UserError(f'{what} {name!r} is not in the world{hint}')


# ---- pictures


def render(scene):
  """The picture of a scene: uint8 [64, 64, 3], white behind, edges smoothed by 4 x 4 samples."""
  return _paint([(t, *t.center) for t in scene.things])


def render_clip(scene):
  """The frames of a moving scene: uint8 [9, 64, 64, 3]. Raises UserError on a thing without
  motion."""
  for thing in scene.things:
    check_name('motion', thing.motion, MOTIONS)

  def at(thing, pixels):
    (x, y), (u, v) = thing.center, MOTIONS[thing.motion]
    return thing, x + pixels * u, y + pixels * v

  return np.stack([_paint([at(t, STEP * f) for t in scene.things]) for f in range(FRAMES)])


def _paint(placed):
  """White, with sprites of 32 x 32 pixels at their centres; jitter may take the (empty) rim of a
  sprite over the edge of the picture."""
  padded = np.full((SIDE + 32, SIDE + 32, 3), 255, np.uint8)
  for thing, x, y in placed:
    window = padded[y : y + 32, x : x + 32]
    np.minimum(window, _sprite(thing.shape, thing.size, thing.colour), out=window)
  return padded[16:-16, 16:-16].copy()


@functools.cache
def _sprite(shape, size, colour):
  check_name('colour', colour, COLOURS)
  alpha = mask(shape, size)[..., None]
  return np.round(255 * (1 - alpha) + np.array(COLOURS[colour]) * alpha).astype(np.uint8)


@functools.cache
def mask(shape, size):
  """How much of each pixel the shape covers: float64 [32, 32] in [0, 1], its centre at 15.5."""
  check_name('shape', shape, SHAPES)
  check_name('size', size, SIZES)
  large = size == 'large'
  scale = _OVERSAMPLE
  canvas = Image.new('L', (32 * scale, 32 * scale), 0)
  draw = ImageDraw.Draw(canvas)

  def corners(*points):
    return [((16 + x) * scale - 0.5, (16 + y) * scale - 0.5) for x, y in points]

  def box(x, y):
    left, top, right, bottom = ((16 + r) * scale for r in (-x, -y, x, y))
    draw.rectangle([left, top, right - 1, bottom - 1], fill=255)

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
