"""Training of the tiny VAE that stands in for the published one: reconstruction + KL, on stills and
clips in turn.

It ends with a weights directory whose config holds the latent statistics of the training data. The
optimizer is Muon: Adam is below 17 dB after 800 steps, Muon at 25 dB after 500.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tuna_jax import files, stopping
from tuna_jax.config import UserError, VaeConfig
from tuna_jax.data.mixture import DataConfig, fingerprint, open_sources
from tuna_jax.data.records import PICTURES, media_of
from tuna_jax.data.tasks import TASKS
from tuna_jax.mappings import to_dict
from tuna_jax.models.shapes import vae_shapes
from tuna_jax.models.vae import WanVae, decode_pixels, encode_pixels, to_float
from tuna_jax.ranges import (
  Count,
  Decay,
  Few,
  Finite,
  NotNegative,
  Positive,
  Range,
  Rate,
  Share,
  Whole,
)  # fmt: skip
from tuna_jax.train import lock, provenance
from tuna_jax.train.goodput import Goodput
from tuna_jax.train.guard import Diverged
from tuna_jax.train.optimizer import scale_by
from tuna_jax.train.watch import Watch
from tuna_jax.weights import fresh, store

SAVE_S = 60.0  # after which a kill loses no more


@dataclasses.dataclass(frozen=True)
class VaeTrainConfig:
  """stills, clips: how many of either make a step's batch. Clips come late, since they cost several
  times as much and start from what stills taught: after the share `clips_from` of the steps,
  `clip_share` of them take clips, and the learning rate rises once more.

  choice: stills are the busiest of this many times as many, since blank paper teaches little. kl:
  weight of the KL term beside the squared error of pixels in [-1, 1]. logvar: where the posterior's
  log-variance starts, so that noise does not drown the first steps. ema: decay of the average that
  is kept. measured: pictures and clips the latent statistics are measured on. updates, wait: as of
  `GuardConfig`.
  """

  model: VaeConfig
  data: DataConfig
  steps: Count = 1000
  stills: Few = 6
  clips: Few = 2
  clips_from: Share = 0.5
  clip_share: Share = 0.8
  lr: Rate = 1e-3
  warmup: Count = 20
  choice: Few = 3
  kl: NotNegative = 3e-4
  logvar: Finite = -4.0
  clip: Positive = 1.0
  ema: Decay = 0.99
  seed: Whole = 0
  measured: Count = 512
  updates: Few = 10
  wait: Annotated[float, Range(1, 10**6)] = 900.0


class Media:
  """The pixels of a mixture: a pure function of the seed and the step."""

  def __init__(self, config: DataConfig, seed: int):
    self._seed = seed
    self.sources = sources = open_sources(config)
    shows = lambda source, kinds: set(kinds) & set(TASKS[source.task].fields.values())
    self._stills = [s for s in sources if shows(s, PICTURES)]
    self._clips = [s for s in sources if shows(s, ('clip',))]
    if not self._stills:
      raise UserError(f'{config.mixture}: no source of pictures')

  @property
  def has_clips(self) -> bool:
    return bool(self._clips)

  def batch(self, step: int, count: int, clips: bool, choice: int = 1) -> np.ndarray:
    """uint8[count, F, H, W, 3], F = 1 for stills: of `choice` times as many, those of the highest
    deviation. Unusable records are passed over; UserError where there are hardly any others.
    """
    rng = np.random.default_rng((self._seed, step, clips))
    out, tries = [], 0
    while len(out) < count * choice:
      sources = self._clips if clips else self._stills
      source = sources[rng.integers(len(sources))]
      try:
        record = source[int(rng.integers(len(source)))]
      except ValueError as e:
        tries += 1
        if tries > 100 + count * choice:
          raise UserError(f'{source.name}: {tries} unusable records; the last: {e}') from e
        continue
      found = media_of(record, source.task, ('clip',) if clips else PICTURES)
      out.append(found[0] if clips else found[int(rng.integers(len(found)))][None])
    out = sorted(out, key=lambda m: m.std(), reverse=True)[:count]
    if len(sizes := {m.shape for m in out}) > 1:
      raise UserError(f'pictures of a VAE batch differ in size: {sorted(sizes)}; use one bucket')
    return np.stack(out)


def loss_fn(params, pixels, key, *, config: VaeTrainConfig):
  """(loss, metrics) of one batch of uint8 pixels."""
  x = to_float(pixels)
  t = (x.shape[1] - 1) // config.model.temporal_stride + 1
  stride = config.model.spatial_stride
  shape = (x.shape[0], t, x.shape[2] // stride, x.shape[3] // stride, config.model.latent_channels)
  y, moments = WanVae(config.model).apply({'params': params}, x, jax.random.normal(key, shape))
  kl = 0.5 * jnp.mean(jnp.square(moments.mean) + jnp.exp(moments.logvar) - 1 - moments.logvar)
  error = jnp.mean(jnp.square(y - x))
  return error + config.kl * kl, {'psnr': 10 * jnp.log10(4.0 / error), 'kl': kl}


@functools.cache
def _program(config: VaeTrainConfig):
  """(start, update), compiled once for all numbers of steps: the learning rate is an argument."""
  transformation = optax.chain(optax.clip_by_global_norm(config.clip), scale_by('muon', 0.9, 0.99))

  @jax.jit
  def start(params):
    bias = params['quant']['bias'].at[config.model.latent_channels :].set(config.logvar)
    params['quant']['bias'] = bias
    return params, jax.tree.map(jnp.copy, params), transformation.init(params)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, rate, pixels, key):
    params, ema, opt_state = state
    gradient = jax.grad(functools.partial(loss_fn, config=config), has_aux=True)
    grads, metrics = gradient(params, pixels, key)
    updates, opt_state = transformation.update(grads, opt_state, params)
    params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
    ema = jax.tree.map(lambda e, p: config.ema * e + (1 - config.ema) * p, ema, params)
    told = (*metrics.values(), *jax.tree.leaves(params))
    kept = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in told]))
    state = jax.tree.map(functools.partial(jnp.where, kept), (params, ema, opt_state), state)
    return state, metrics, kept

  return start, update


def train_vae(config: VaeTrainConfig, workdir: str) -> tuple[VaeConfig, dict]:
  """Trains, measures the latents, writes a weights directory at `workdir`; returns (VaeConfig,
  parameters).

  Does nothing but read them back if the directory is complete. SIGTERM or Ctrl-C saves after the
  running step and raises Stopped; the next call goes on where it stopped. Raises lock.Held if
  another training works there.
  """
  root = files.path(workdir)
  if not (root / 'config.json').exists():
    with lock.hold(root):
      _train(config, root)
  return store.load_vae(workdir)


def _train(config: VaeTrainConfig, root):
  """Trains and writes the weights directory `root`."""
  media = Media(config.data, config.seed)
  late = round(config.clips_from * config.steps) if media.has_clips else config.steps
  rise = optax.warmup_cosine_decay_schedule
  lr, rest = config.lr, max(config.steps - late, 11)
  first = rise(0.0, lr, config.warmup, max(late, config.warmup + 1), 0.05 * lr)
  then = rise(0.05 * lr, 0.5 * lr, 10, rest, 0.01 * lr)
  rate = jax.jit(optax.join_schedules([first, then], [late]))
  start, update = _program(dataclasses.replace(config, steps=1))
  key = jax.random.key(config.seed)
  stopped, began_with = root / 'stopped.safetensors', root / 'stopped.json'
  ground = {**to_dict(config), 'records': [fingerprint(source) for source in media.sources]}
  ground = json.loads(json.dumps(ground))
  if stopped.exists() and (told := provenance.told(files.read_object(began_with), ground)):
    raise UserError(f'{root}: this training began otherwise ({told}); take another --workdir')
  params = fresh.init(vae_shapes(config.model), config.seed)
  done, state = store.restore_tree(stopped, (0, start(params)))
  done, clock = int(done), Goodput(root)
  began = saved = time.perf_counter()
  metrics_file, kept, refused = root / 'metrics.jsonl', True, 0
  known = metrics_file.read_text().splitlines(True) if done and metrics_file.exists() else []
  records = ''.join(line for line in known if json.loads(line)['step'] <= done)

  def save():
    clock('save')
    files.write_json(began_with, ground)
    store.save_tree(stopped, (done, state))

  with stopping.Signals() as stop, contextlib.closing(Watch(root, config.wait, clock, bool(stop))):
    stop.hold()
    try:
      for step in range(done, config.steps):
        due = int((step + 1) * config.clip_share) > int(step * config.clip_share)
        clips = media.has_clips and step >= config.clips_from * config.steps and due
        count, choice = (config.clips, 1) if clips else (config.stills, config.choice)
        with stop.raising():
          clock('data')
          pixels = media.batch(step, count, clips, choice)
        clock('step')
        refused = 0 if kept else refused + 1  # of the step before, while the host was busy
        if refused >= config.updates:
          raise Diverged(f'{root}: updates={refused} in a row up to step {step} were not finite')
        state, metrics, kept = update(state, rate(step), pixels, jax.random.fold_in(key, step))
        done = step + 1
        if step % 50 == 0 or done == config.steps:
          values = {name: float(v) for name, v in metrics.items()}
          records += json.dumps({'step': done, **values}) + '\n'
          files.write_text(metrics_file, records)
          line = ', '.join(f'{n}: {v:.4f}' for n, v in values.items())
          seconds = f'seconds: {time.perf_counter() - began:.0f}'
          print(f'VAE step {done}/{config.steps}, {seconds}, {line}', flush=True)
        if time.perf_counter() - saved > SAVE_S:
          save()
          saved = time.perf_counter()
      if not kept:
        raise Diverged(f'{root}: the update of the last step was not finite')
      clock('evaluate')
      with stop.raising():
        model = measure(config, state[1], media)
    except stopping.Stopped:
      save()
      where = f'stopped at step {done} of {config.steps}'
      raise stopping.Stopped(f'{root}: {where}; the same command continues') from None
    note = {'trained_steps': config.steps, 'seed': config.seed}
    store.save(root, model, state[1], note)
    stopped.unlink(missing_ok=True)
    began_with.unlink(missing_ok=True)


def step_seconds(config: VaeTrainConfig, steps: int = 8) -> float:
  """How long a step on stills takes here, the reading of its pictures included. What is compiled
  for it serves `train_vae` as well.
  """
  media, key = Media(config.data, config.seed), jax.random.key(0)
  start, update = _program(dataclasses.replace(config, steps=1))
  state = start(fresh.init(vae_shapes(config.model), config.seed))
  for step in range(steps + 1):
    if step == 1:  # the first one compiled
      began = time.perf_counter()
    pixels = media.batch(step, config.stills, False, config.choice)
    state, metrics, _ = update(state, 0.0, pixels, key)
    jax.block_until_ready(metrics)
  return (time.perf_counter() - began) / steps


def measure(config: VaeTrainConfig, params, media: Media) -> VaeConfig:
  """The model's config with the mean and standard deviation of its latents per channel."""
  raw = dataclasses.replace(config.model, latent_mean=(), latent_std=())
  encode = jax.jit(functools.partial(encode_pixels, raw))
  cells = []
  for i in range(max(config.measured // 32, 1)):
    batches = [media.batch(i, 32, False)]
    batches += [media.batch(i, 8, True)] if media.has_clips and i % 8 == 0 else []
    cells += [np.asarray(encode(params, x)).reshape(-1, raw.latent_channels) for x in batches]
  cells = np.concatenate(cells)
  mean, std = (tuple(x.tolist()) for x in (cells.mean(0), np.maximum(cells.std(0), 1e-4)))
  return dataclasses.replace(raw, latent_mean=mean, latent_std=std)


def reconstruct(config: VaeConfig, params, pixels: np.ndarray) -> np.ndarray:
  """uint8 pixels through the VAE and back, for reports."""
  run = jax.jit(lambda p, x: decode_pixels(config, p, encode_pixels(config, p, x)))
  return np.asarray(run(params, pixels))
