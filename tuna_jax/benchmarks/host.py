"""A generator on the devices of one host: the hosts of a benchmark share work, not arrays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax

from tuna_jax import sharding
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.open import open_generator


def open_on_host(checkpoint, **options) -> tuple[Generator, Callable[[], AbstractContextManager]]:
  """(a generator, what to call it in). Every local device holds whole weights, and the rows of a
  batch are split over them. options: of `open_generator`.
  """
  devices = jax.local_devices()
  if len(devices) == 1:
    return open_generator(checkpoint, **options), contextlib.nullcontext
  mesh = sharding.make_mesh(data=-1, fsdp=1, devices=devices)
  return open_generator(checkpoint, mesh=mesh, **options), functools.partial(jax.set_mesh, mesh)
