"""The frozen encoder on the devices of one host: pixels become latents, a few frames at a time.

    picture   [n, 1, H, W, 3]                            one program
    clip      frame 0, then 4 frames with the carry      two programs, whatever the clip's length

Only the encoder and the quant convolution of the VAE are read. Their parameters are copied to every
local device and media are split over them. A group is sized in bytes, so the memory of a device
does not depend on the size of pictures or the length of clips. Programs of the configured sizes are
compiled when a run starts, several at once.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tuna_jax import tree
from tuna_jax.batch import check_frames, colours, to_rows
from tuna_jax.config import TunaConfig, UserError, VaeConfig
from tuna_jax.data.encoded import MEDIA, LatentsSource
from tuna_jax.data.media import buckets
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.sources import Source
from tuna_jax.data.tasks import TASKS
from tuna_jax.mappings import to_dict
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.models.vae import check_clip, encode_chunk
from tuna_jax.train import programs as programs_lib
from tuna_jax.train.config import DTYPES, EncoderConfig, TrainConfig
from tuna_jax.weights import store
from tuna_jax.weights.digest import loaded

Shape = tuple[int, ...]  # [F, H, W, 3] of one picture or clip
PARTS = ('encoder', 'quant')


class Program(NamedTuple):
  """One compiled call. kind: 'picture', or the 'first' frame of a clip, or 'later' frames."""

  kind: str
  count: int  # media, over all devices
  frames: int
  height: int
  width: int


class Encoder:
  """uint8[n, F, H, W, 3] -> float32[n, T, h, w, C]: normalised posterior means as tokens.

  n is `group` of the shape [F, H, W, 3]. digest: of parameters, config, type and form of tokens.
  """

  def __init__(
    self,
    config: VaeConfig,
    params: dict,
    settings: EncoderConfig,
    devices: Sequence[jax.Device] | None = None,
    model: TunaConfig | None = None,
  ):
    """params: `PARTS` of `WanVae`, arrays in host memory. devices: of this host, by default all.
    model: whose tokens are made; without, a token is one cell.
    """
    self.config, self.settings, self._model = config, settings, model
    self.digest = digest(config, params, settings.dtype, model)
    devices = jax.local_devices() if devices is None else devices
    self._mesh = Mesh(np.array(devices), ('media',))
    self._split = NamedSharding(self._mesh, P('media'))
    params = jax.tree.map(lambda a: np.asarray(a).astype(settings.dtype), params)
    self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
    self._pool = concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2))
    self._programs: dict[Program, concurrent.futures.Future] = {}

  def group(self, shape: Shape) -> int:
    """How many media of this shape are encoded at once."""
    return group(self.config, self.settings, self._mesh.size, shape)

  def compile(self, shapes: Iterable[Shape]) -> None:
    """Begins to compile what media of `shapes` need; the first call waits for all of it."""
    for shape in shapes:
      if self._model is not None:
        check_frames(self._model, shape[0])
      for program in programs(self.config, self.group(shape), shape):
        if program not in self._programs:
          self._programs[program] = self._pool.submit(self._compile, program)

  def __call__(self, pixels: np.ndarray) -> np.ndarray:
    """Raises ValueError as `WanVae.encode` does."""
    check_clip(self.config, *pixels.shape[1:4])
    self.compile([pixels.shape[1:]])
    concurrent.futures.wait(self._programs.values())
    if pixels.shape[1] == 1:
      return self._rows(np.asarray(self._run('picture', pixels, None)[0]), pixels)
    step, out = self.config.temporal_stride, []
    waiting, carry = self._run('first', pixels[:, :1], None)
    for start in range(1, pixels.shape[1], step):
      latents, carry = self._run('later', pixels[:, start : start + step], carry)
      out.append(np.asarray(waiting))  # one chunk late, so that the devices are never idle
      waiting = latents
    return self._rows(np.concatenate([*out, np.asarray(waiting)], axis=1), pixels)

  def _rows(self, cells, pixels):
    return cells if self._model is None else to_rows(self._model, cells, pixels)

  def _run(self, kind, pixels, carry):
    count, frames, height, width, _ = pixels.shape
    program = self._programs[Program(kind, count, frames, height, width)].result()
    return program(self._params, jax.device_put(pixels, self._split), carry)

  def _compile(self, program: Program):
    return compiled(self.config, self.settings.dtype, self._mesh, program)


class Colours:
  """The `Encoder` of a design without a VAE: tokens are patches of the picture itself."""

  def __init__(self, model: TunaConfig):
    self._model, self.digest = model, digest(None, {}, 'float32', model)

  def group(self, shape: Shape) -> int:
    """Nothing is gained by more than one at a time."""
    return 1

  def compile(self, shapes: Iterable[Shape]) -> None:
    """There is nothing to compile."""

  def __call__(self, pixels: np.ndarray) -> np.ndarray:
    return to_rows(self._model, colours(pixels), pixels)


def load(
  directory,
  settings: EncoderConfig,
  devices: Sequence[jax.Device] | None = None,
  model: TunaConfig | None = None,
) -> Encoder:
  """The encoder of a VAE's weights directory."""
  return Encoder(*read(directory), settings, devices, model)


def read(directory) -> tuple[VaeConfig, dict]:
  """(VaeConfig, `PARTS` in host memory) of a VAE's weights directory; its decoder is not read."""
  config, leaves = store.open_vae(directory)
  shapes = encoder_shapes(config)
  found = {name: leaf for name, leaf in leaves.items() if name.partition('/')[0] in PARTS}
  store.check(directory, found, shapes)
  read = loaded(found)
  return config, tree.unflatten({name: read[name] for name in tree.flatten(shapes)})


def of_run(config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Encoder | Colours:
  """The encoder of a run on `devices`, by default all of this process. Raises UserError without a
  VAE that the design needs, or where its latents are not those of the model.
  """
  if config.model.vae is None:
    return Colours(config.model)
  if not config.vae:
    raise UserError('vae: no directory given, and the run has pictures; --config.vae=DIR')
  made = load(config.vae, config.encoder, devices, config.model)
  for what, field in (
    ('latent channels', 'latent_channels'),
    ('pixels to a cell', 'spatial_stride'),
    ('frames to a cell', 'temporal_stride'),
  ):
    found, wanted = (getattr(vae, field) for vae in (made.config, config.model.vae))
    if found != wanted:
      raise UserError(f'{config.vae}: {found} {what}, the model has {wanted} (model.vae)')
  return made


def check_latents(config: TrainConfig, sources: Sequence[Source]) -> None:
  """Raises UserError unless all media of `sources` are latents that one encoder made: the one at
  `config.vae`, where that is given, since pictures are later drawn with its decoder.
  """
  made = {}
  for source in sources:
    if isinstance(source, LatentsSource):
      made[source.about.digest] = source.name
    elif MEDIA.keys() & set(TASKS[source.task].fields.values()):
      raise UserError(
        f'{source.name}: holds pictures or clips, and encoder.online=False says that the mixture '
        'holds latents; make them with `tuna-jax data encode`'
      )
  if len(made) > 1:
    names = ', '.join(f'{name} ({found})' for found, name in made.items())
    raise UserError(f'latents of different encoders do not mix: {names}')
  if config.vae and made:
    vae, params = read(config.vae)
    if not made.keys() & {digest(vae, params, dtype, config.model) for dtype in DTYPES}:
      names, model = ', '.join(made.values()), config.model
      raise UserError(
        f'{config.vae}: not the VAE whose encoder made {names}, or they are not the tokens of '
        f'{model.design!r} with patch={model.patch} and layout={model.layout!r}'
      )


def group(config: VaeConfig, settings: EncoderConfig, ways: int, shape: Shape) -> int:
  """How many media of shape [F, H, W, 3] are encoded at once on `ways` devices: as many as have
  `settings.group_mb` on each device, of clips `temporal_stride` frames counted; at least one.
  """
  frames, height, width, _ = shape
  each = min(frames, config.temporal_stride) * height * width * 3
  return ways * max(1, int(settings.group_mb * 2**20) // each)


def programs(config: VaeConfig, count: int, shape: Shape) -> tuple[Program, ...]:
  """What `count` media of one shape need."""
  frames, height, width, _ = shape
  if frames == 1:
    return (Program('picture', count, 1, height, width),)
  return (
    Program('first', count, 1, height, width),
    Program('later', count, config.temporal_stride, height, width),
  )


def shapes_of(config: DataConfig, tasks: Iterable[str]) -> list[Shape]:
  """Every shape of the pictures and clips of `tasks`, where a phase draws from them."""
  drawn = {task for _, weights in config.phases for task, weight in weights if weight > 0}
  tasks, media = drawn & set(tasks) if drawn else tasks, config.media
  kinds = {kind for task in tasks for kind in TASKS[task].fields.values()}
  found = []
  if kinds & {'picture', 'pictures'}:
    found += [(1, *size, 3) for size in buckets(media.image_size)]
  if 'clip' in kinds:
    found += [(media.frames, *size, 3) for size in buckets(media.video_size)]
  return found


@functools.cache
def compiled(config: VaeConfig, dtype: str, mesh: Mesh, program: Program):
  """The program for the devices of `mesh`: (params, uint8[n, F, H, W, 3], carry) -> (latents,
  carry). A picture leaves no carry; that of earlier frames is used up.
  """
  kind, *shape = program
  whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('media'))

  def run(params, pixels, carry):
    latents, carry = encode_chunk(config, params, pixels, carry)
    return latents, None if kind == 'picture' else carry

  def struct(a, where, dtype=None):
    return jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=where)

  params = jax.tree.map(lambda a: struct(a, whole, dtype), encoder_shapes(config))
  pixels, carry = jax.ShapeDtypeStruct((*shape, 3), np.uint8, sharding=split), None
  if kind == 'later':
    first = jax.ShapeDtypeStruct((shape[0], 1, *shape[2:], 3), np.uint8)
    carry = jax.eval_shape(functools.partial(encode_chunk, config), params, first)[1]
    carry = jax.tree.map(lambda a: struct(a, split), carry)
  local = jax.shard_map(
    run, mesh=mesh, in_specs=(P(), P('media'), P('media')), out_specs=P('media')
  )
  lowered = jax.jit(local, donate_argnums=2).lower(params, pixels, carry)
  return programs_lib.compile_local(lowered, list(mesh.devices.flat))


def encoder_shapes(config: VaeConfig) -> dict:
  """`PARTS` of `WanVae`: nested dicts of float32 ShapeDtypeStruct."""
  return {part: params for part, params in vae_shapes(config).items() if part in PARTS}


def digest(
  config: VaeConfig | None, params: dict, dtype: str, model: TunaConfig | None = None
) -> str:
  """Of what decides the latents of a picture: parameters, config (statistics included), type, and
  what a token holds where that is not one cell.
  """
  about = [config and to_dict(config), dtype]
  if model and model.token_dim > model.channels:
    about += [model.patch, model.layout, model.seen_dim]
  found = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
  for name, leaf in sorted(tree.flatten(params).items()):
    found.update(f'{name}{leaf.shape}'.encode())
    found.update(np.ascontiguousarray(leaf, np.float32))
  return found.hexdigest()
