"""What drawing one picture takes of a TPU: the sampler and the VAE's decoder, compiled on a CPU."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from tuna_jax import batch as batch_lib
from tuna_jax import flow, sharding
from tuna_jax.chips import CHIPS, devices_of, topology_name
from tuna_jax.config import TunaConfig
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.models.vae import decode_pixels
from tuna_jax.sample import image
from tuna_jax.sample.image import Drawing
from tuna_jax.tools.plan import GIB, sizes_in
from tuna_jax.weights import storage

PROMPT = 128  # tokens, padded


@dataclasses.dataclass(frozen=True)
class DrawingPlan:
  """Bytes of one device; a program that the compiler refused has what it said it needs.

  parameters, vae: held all the time. sampler, decoder: what each program takes beside its own
  parameters. limit: of the device.
  """

  parameters: int
  vae: int
  sampler: int
  decoder: int
  limit: int

  @property
  def peak(self) -> int:
    """The most at any time."""
    return self.parameters + self.vae + max(self.sampler, self.decoder)

  @property
  def fits(self) -> bool:
    return self.peak <= self.limit

  def __str__(self):
    lines = [(name, getattr(self, name)) for name in ('parameters', 'vae', 'sampler', 'decoder')]
    lines += [('peak', self.peak), ('available', self.limit), ('left', self.limit - self.peak)]
    said = ['FITS' if self.fits else 'DOES NOT FIT', '', 'memory of one device']
    return '\n'.join([*said, *(f'  {name:<12}{n / GIB:9.2f} GiB' for name, n in lines)])


def plan(
  config: TunaConfig, topology: str, dtype: str = 'bfloat16', side: int = 512, rows: int = 1
) -> DrawingPlan:
  """The plan of `rows` pictures of side x side pixels drawn together on one device of `topology`,
  as published for the design, with parameters held in `dtype` (`open_generator`)."""
  topology = topology_name(topology)
  mesh = sharding.make_mesh(devices=devices_of(topology)[:1])
  how = Drawing.of(config.design, 't2i', None, None, None, None)
  cells, branches = (side // config.strides[1]) ** 2, how.guidance.branches
  vae = {}
  if config.vae is not None:
    held = storage.held(vae_shapes(config.vae), dtype if dtype == 'float32' else 'bfloat16')
    vae = jax.tree.map(_spread(mesh), held)
  params = _placed(storage.held(tuna_shapes(config), dtype), mesh)
  prompts = batch_lib.empty(branches * rows, PROMPT, 0, 0, config.token_dim)
  numbers = (np.zeros((rows, 3), np.int32), np.zeros((rows, cells, config.drawn_dim), np.float32))
  arguments = (prompts, *numbers, flow.times(how.points, how.shift), how.guidance.numbers)
  with jax.set_mesh(mesh):
    sampler = _beside(
      image.sampler.lower(
        params, *jax.tree.map(_spread(mesh), (*arguments, np.int32(0))), config=config,
        branches=branches, limited=how.guidance.limited, rescaled=how.guidance.rescale > 0,
        solver=how.solver, held=False, reported=False,
      ),
      params,
    )  # fmt: skip
    decoder = 0
    if config.vae is not None:
      side_of = side // config.vae.spatial_stride
      latents = np.zeros((rows, 1, side_of, side_of, config.vae.latent_channels), np.float32)
      run = jax.jit(decode_pixels, static_argnums=0)
      decoder = _beside(run.lower(config.vae, vae, _spread(mesh)(latents)), vae)
  limit = int(CHIPS[topology.partition(':')[0]].hbm * GIB)
  return DrawingPlan(_bytes(params), _bytes(vae), sampler, decoder, limit)


def _beside(lowered, params) -> int:
  """Bytes that a program takes beside `params`."""
  try:
    peak = lowered.compile().memory_analysis().peak_memory_in_bytes
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    peak = sizes_in(str(error))[0]
  return peak - _bytes(params)


def _placed(shapes, mesh):
  places = sharding.shardings(shapes, mesh)
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, places
  )


def _spread(mesh):
  where = jax.NamedSharding(mesh, jax.P())
  return lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)


def _bytes(tree) -> int:
  return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))
