"""A generator on the devices of one host: the hosts of a benchmark share work, not arrays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
from orbax.checkpoint import multihost

from tuna_jax import sharding
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.open import open_generator

LONGEST = 30 * 24 * 3600  # seconds that one host may need more than another


def open_on_host(checkpoint, **options) -> tuple[Generator, Callable[[], AbstractContextManager]]:
  """(a generator, what to call it in). Every local device holds whole weights, and the rows of a
  batch are split over them. options: of `open_generator`.
  """
  devices = jax.local_devices()
  if len(devices) == 1:
    return open_generator(checkpoint, **options), contextlib.nullcontext
  mesh = sharding.make_mesh(data=-1, fsdp=1, devices=devices)
  return open_generator(checkpoint, mesh=mesh, **options), functools.partial(jax.set_mesh, mesh)


def wait_for_others():
  """Returns when every process of the run is here. One that left long before the others would end
  them: leaving has a barrier of minutes.
  """
  if jax.process_count() > 1:
    multihost.sync_global_processes('benchmarks', timeout=LONGEST)
