"""The exact judge of the rendered world: what stands in a picture, and is it what was asked?

`detect` finds every thing of a picture: it cuts out what is not white, takes the nearest of the
world's colours, and lays the 10 templates (shape, size) over the cut-out at every whole pixel near
its centre; the nearest names the thing. Whatever fits no template or no colour becomes a BLOB,
which agrees with nothing, so smears and leftovers count as faults. The score functions compare
pictures, clips and sentences with what a caption claims (`captions.Meaning`), for one item.
"""

import collections
import dataclasses
import functools
import itertools

import numpy as np
from scipy import ndimage

from tuna_jax.toy import captions, questions, world
from tuna_jax.toy.world import COLOURS, FRAMES, MOTIONS, PLACES, SHAPES, SIDE, SIZES, Scene, Thing

BLOB = 'blob'

COVER = 0.4  # a pixel belongs to a thing when its colour covers at least this share of it
MIN_PIXELS = 20  # smaller specks are noise; the smallest thing covers about 70 pixels
MIN_OVERLAP = 0.72  # with the nearest template; real things reach 0.95, noisy and blurred ones 0.8
SMOOTHING = 1.5  # pixels, sigma of the filter before things are held against templates
MAX_COLOUR_DISTANCE = 80.0  # in 8-bit RGB; the closest two colours are 86 apart
KEPT_WITHIN = 3.0  # pixels that a thing may wander in an edit that does not name it
STILL_WITHIN = 8.0  # pixels over a clip; a moving thing walks 32
MOVED_AT_LEAST = 20.0


# ---- what stands in a picture


def detect(image):
  """The things of a picture, uint8 or float in [0, 255] of [64, 64, 3], in reading order.

  `place` is the quadrant of the fitted centre and (dx, dy) its distance, in whole pixels, from that
  quadrant's middle. What cannot be named has the shape BLOB. Raises ValueError on another shape.
  """
  image = np.asarray(image, np.float64)
  if image.shape != (SIDE, SIDE, 3):
    raise ValueError(f'a picture of the world is [{SIDE}, {SIDE}, 3], not {list(image.shape)}')
  depth = 255.0 - image
  labels, _ = ndimage.label(_covered(depth))
  things = []
  for number, window in enumerate(ndimage.find_objects(labels), start=1):
    own = labels == number
    if own.sum() >= MIN_PIXELS:
      things.append(_name(depth, own, window))
  return sorted(things, key=lambda t: tuple(PLACES).index(t.place))


@functools.cache
def _palette():
  """The colours' names, and what each takes away from white: float64 [8, 3]."""
  colours = np.array(list(COLOURS.values()), np.float64)
  return tuple(COLOURS), 255.0 - colours


def _covered(depth):
  """bool [64, 64]: pixels that some colour of the world, mixed with white, covers by COVER."""
  _, inks = _palette()
  cover = depth @ inks.T / np.sum(inks * inks, 1)
  covered = (cover >= COVER).any(-1)  # elsewhere the best colour does not matter
  depth, cover = depth[covered], cover[covered]
  error = np.linalg.norm(depth[:, None] - np.clip(cover, 0, 1)[..., None] * inks, axis=-1)
  best = np.argmin(error, -1)
  covered[covered] = np.take_along_axis(cover, best[:, None], -1)[:, 0] >= COVER
  return covered


def _name(depth, own, window):
  """The thing that covers the pixels `own`, all inside `window` (two slices)."""
  names, inks = _palette()
  core = ndimage.binary_erosion(own)
  ink = np.median(depth[core if core.sum() >= 9 else own], axis=0)
  distance = np.linalg.norm(inks - ink, axis=1)
  nearest = int(np.argmin(distance))
  overlap, shape, size, x, y = _fit(depth, own, window, inks[nearest])
  place = world.place_of(x, y)
  if overlap < MIN_OVERLAP or distance[nearest] > MAX_COLOUR_DISTANCE:
    shape = BLOB
  dx, dy = x - PLACES[place][0], y - PLACES[place][1]
  return Thing(shape, names[nearest], size, place, dx, dy)


def _fit(depth, own, window, ink):
  """(overlap, shape, size, x, y) of the nearest template, on whole pixels near the centre.

  Nearest by squared distance of what is covered, smoothed: half-way between two templates is where
  the name changes, for small things as for large ones. Overlaps of a small circle and a small
  diamond with each other are 0.83, and of large ones 0.74, so that a name by overlap changes later.
  """
  near = ndimage.binary_dilation(own, iterations=2)
  cover = np.clip(depth @ ink / (ink @ ink), 0, 1).astype(np.float32) * near
  padded = np.pad(cover, 20)  # templates of 32 x 32 may hang over the picture's edge
  smooth = ndimage.gaussian_filter(padded, SMOOTHING)
  rows, columns = window
  templates, known = _templates()
  best = (np.inf,)
  for y, x in itertools.product(_around(rows), _around(columns)):
    there = slice(y + 4, y + 36), slice(x + 4, x + 36)
    errors = np.sum(np.square(smooth[there] - known), (1, 2))
    k = int(np.argmin(errors))
    if errors[k] < best[0]:
      best = (errors[k], k, x, y, there)
  _, k, x, y, there = best
  shared = np.minimum(padded[there], templates[k]).sum()
  overlap = shared / (cover.sum() + templates[k].sum() - shared)
  return float(overlap), SHAPES[k // 2], SIZES[k % 2], x, y


def _around(window):
  """Whole pixels at most one from the middle of a slice."""
  middle = round((window.start + window.stop) / 2)
  return range(max(0, middle - 1), min(SIDE - 1, middle + 1) + 1)


@functools.cache
def _templates():
  """Every shape in every size, as it is and smoothed: float32 [10, 32, 32] each."""
  masks = np.stack([world.mask(shape, size) for shape in SHAPES for size in SIZES])
  masks = masks.astype(np.float32)
  return masks, ndimage.gaussian_filter(masks, SMOOTHING, axes=(1, 2))


def detect_clip(video):
  """The things of a clip [9, 64, 64, 3]: as in its first frame, with the motion up to its last.

  A thing of the first frame is followed through the middle frame to the last by its kind and size.
  It is still when it ends within STILL_WITHIN pixels; it moves in a direction when it goes
  MOVED_AT_LEAST pixels that way, less than STILL_WITHIN to the side, and is about half-way in the
  middle. Any other course, and a thing that is not in all three frames, has the motion BLOB.
  """
  video = np.asarray(video)
  if video.shape != (FRAMES, SIDE, SIDE, 3):
    wanted = f'[{FRAMES}, {SIDE}, {SIDE}, 3]'
    raise ValueError(f'a clip of the world is {wanted}, not {list(video.shape)}')
  first, middle, last = (detect(video[k]) for k in (0, FRAMES // 2, FRAMES - 1))
  things = [_with_motion(t, _match(t, middle), _match(t, last)) for t in first]
  surplus = [t for t in last if not _match(t, first)] + [t for t in middle if not _match(t, first)]
  return things + [_with_motion(t, None, None) for t in surplus]


def _match(thing, others):
  """The nearest other thing of this kind and size, or None."""
  same = [o for o in others if (o.kind, o.size) == (thing.kind, thing.size)]
  return min(same, key=lambda o: np.hypot(*_difference(thing, o)), default=None)


def _difference(a, b):
  return b.center[0] - a.center[0], b.center[1] - a.center[1]


def _with_motion(thing, middle, last):
  motion = BLOB
  if middle and last:
    whole, half = np.array(_difference(thing, last)), np.array(_difference(thing, middle))
    for name, step in MOTIONS.items():
      along, across = whole @ np.array(step), np.abs(whole @ np.array(step[::-1]))
      went = along >= MOVED_AT_LEAST and across < STILL_WITHIN
      if name == 'still':
        went = np.hypot(*whole) < STILL_WITHIN
      if went and np.hypot(*(half - whole / 2)) < STILL_WITHIN:
        motion = name
  return dataclasses.replace(thing, motion=motion)


# ---- is it what was asked?


def score_caption(text, scene):
  """Whether a caption states everything in the scene and nothing else.

  The scene is a Scene or a record's `scene` dict. Each thing is stated with size, colour, shape and
  place, and with its motion in a clip; the order of things does not matter.
  """
  things = _things(scene)
  meaning = _meaning(text)
  moving = any(t.motion for t in things)
  return meaning is not None and meaning.complete(moving) and meaning.true_of(things)


def score_t2i(image, record):
  """Whether a picture holds exactly what the `prompt` (or `caption`) of a record asks for."""
  return _asked(record).true_of(detect(image))


def score_edit(image, record):
  """Whether a picture is the record's edited scene: the asked change made, the rest kept.

  Every other thing has its shape, colour, size and place, stands within KEPT_WITHIN pixels of where
  it was, and nothing is new.
  """
  wanted, before = _things(record['scene']), _things(record['scene']['before'])
  found = detect(image)
  names = [(t.kind, t.size, t.place) for t in found]
  if sorted(names) != sorted((t.kind, t.size, t.place) for t in wanted):
    return False
  kept = [t for t in wanted if t in before]
  return all(np.hypot(*_difference(t, _match(t, found))) <= KEPT_WITHIN for t in kept)


def score_clip(video, record):
  """Whether a clip shows exactly what the `prompt` (or `caption`) of a record says, moving so."""
  return _asked(record).true_of(detect_clip(video))


def score_answer(text, record):
  """Whether an answer ends in the record's verdict; case, spaces and a full stop do not matter."""
  return questions.verdict(_plain(text)) == questions.verdict(record['conversations'][-1]['value'])


def _plain(text):
  return ' '.join(text.lower().replace('.', ' ').split())


def _meaning(text):
  try:
    return captions.parse_caption(_plain(text))
  except ValueError:  # a model may say anything; what is not a caption is a wrong caption
    return None


def _asked(record):
  return captions.parse_caption(record['prompt'] if 'prompt' in record else record['caption'])


def _things(scene):
  return (scene if isinstance(scene, Scene) else Scene.from_dict(scene)).things


# ---- floors


def most_frequent_caption(records):
  """The commonest caption of the records; the first seen of equals."""
  return collections.Counter(r['caption'] for r in records).most_common(1)[0][0]


def answer_prior(records):
  """{question type: its commonest verdict}: what can be answered without looking."""
  counts = collections.defaultdict(collections.Counter)
  for r in records:
    counts[r['type']][questions.verdict(r['conversations'][-1]['value'])] += 1
  return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items()}
