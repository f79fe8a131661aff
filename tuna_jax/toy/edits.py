"""Edits of a scene: an instruction and the scene it leads to."""

import dataclasses

from tuna_jax.toy import scenes, world
from tuna_jax.toy.captions import phrase
from tuna_jax.toy.world import COLOURS, PLACES, SHAPES, SIZES, Scene

EDITS = ('recolour', 'replace', 'remove', 'add', 'move')


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
    new = scenes.random_thing(
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
