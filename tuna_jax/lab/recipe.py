"""What the rows of a comparison share, and the training of one row.

    OUT/shared/vae-KIND        a VAE of each kind
    OUT/shared/decoder         the decoder, taught by text alone, and the tokenizer
    OUT/shared/encoder-NAME    an encoder, taught on pixels before a frozen decoder
    OUT/shared/latents         of pictures, which rows of one seed and VAE have in common
    OUT/runs/ROW-SEED/STAGE    the stages of a row

Encoders see pixels and not latents, as the public ones did: a row that reads latents takes the
layers and positions and starts with a patch embedding of its own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from tuna_jax import files, tree
from tuna_jax.config import TunaConfig, UserError, nearest
from tuna_jax.configs import common, compare, decoder, vae
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.toy import train_tokenizer, train_vae
from tuna_jax.toy.sizes import DESIGNS
from tuna_jax.train import loop
from tuna_jax.train.config import TrainConfig
from tuna_jax.weights import fresh, steps, store

replace = dataclasses.replace
ENCODER_SEED = 10_000  # of the scenes that encoders are taught on, apart from those of the rows
STAGE1 = 0.2  # of the steps of a row
LATENTS = 'vision/(?!patch_embed).*'  # of an encoder, what a tower that sees latents takes


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How long everything trains, in steps. steps: of a row, both stages together. encoders: by
  name, the budget that makes one stronger than another."""

  steps: int = 1600
  decoder: int = 1500
  vae: int = 800
  encoders: tuple[tuple[str, int], ...] = (
    ('siglip', 100),
    ('siglip2-medium', 400),
    ('siglip2', 1200),
    ('dinov3', 1200),
  )

  def with_encoders(self, budgets: Sequence[str]) -> Recipe:
    """With other budgets, each NAME:STEPS. UserError for another name, and for no number."""
    known = dict(self.encoders)
    for budget in budgets:
      name, _, steps = budget.partition(':')
      if name not in known or not steps.isdecimal() or int(steps) < 1:
        raise UserError(
          f'--encoders: {budget!r}: expected NAME:STEPS with one of {", ".join(known)}'
          f'{nearest(name, known)}'
        )
      known[name] = int(steps)
    return replace(self, encoders=tuple(known.items()))

  def to_dict(self) -> dict[str, Any]:
    """JSON that tells one recipe from another."""
    return {**dataclasses.asdict(self), 'encoders': dict(self.encoders), 'stage1': STAGE1}


class Lab:
  """Trains at the tiny size into `out`; what is there is not trained again, and what was stopped
  goes on."""

  def __init__(self, out: str, recipe: Recipe):
    self.root, self.recipe = files.absolute(out), recipe

  def vae(self, kind: str) -> str:
    """The directory of the VAE of a kind."""
    where = self.root / 'shared' / f'vae-{kind}'
    design = {'2.1': 'tiny-late_fusion', '2.2': 'tiny'}[kind]
    config = vae.from_config_dict(vae.get_config(design))
    stills = replace(config.data, phases=((0.0, (('t2i', 1.0),)),))
    train_vae.train_vae(replace(config, data=stills, steps=self.recipe.vae), str(where))
    return str(where)

  def decoder(self) -> str:
    """The run of the decoder, which holds the tokenizer too."""
    where = str(self.root / 'shared' / 'decoder')
    config = common.from_config_dict(decoder.get_config())
    config = train_tokenizer.ensure(common.from_config_dict(decoder.get_config()), where)
    config = replace(config, steps=self.recipe.decoder)
    _train(config, where)
    return where

  def encoder(self, name: str) -> str:
    """The run of an encoder of `Recipe.encoders`: it learns to describe pictures and to answer
    questions about them, read by the frozen decoder."""
    budgets = dict(self.recipe.encoders)
    if name not in budgets:
      near = nearest(name, budgets)
      raise UserError(f'encoder {name!r}: the recipe has {", ".join(budgets)}{near}')
    where = self.root / 'shared' / f'encoder-{name}'
    vision = compare.SIZES['tiny'].encoders[name]
    model = replace(DESIGNS['pixel_encoder'], vision=vision)
    config = compare.config('3', 'tiny', 'stage1')
    config = replace(
      config,
      model=model,
      steps=budgets[name],
      time_shift=1.0,
      data=replace(config.data, seed=ENCODER_SEED),
      tokenizer=f'{self.decoder()}/tokenizer',
      init_from=self.start(where / 'start', model, 0, {'decoder/.*': self.decoder()}),
    )
    _train(config, str(where / 'run'))
    return str(where / 'run')

  def last(self, name: str, seed: int) -> str:
    """Where the last run of a row is, or will be."""
    return str(self.root / 'runs' / f'{name}-{seed}' / compare.STAGES[-1])

  def tokens(self, name: str) -> int:
    """Positions of text and pictures that a row is trained on."""
    config = compare.config(name, 'tiny', compare.STAGES[-1])
    return self.recipe.steps * config.rows * config.length

  def row(self, name: str, seed: int) -> str:
    """The last run of a row."""
    row, where = compare.row(name), self.root / 'runs' / f'{name}-{seed}'
    model = compare.model(name, 'tiny')
    # A patch embedding of pixels fits where the tower sees pixels.
    taken = 'vision/.*' if model.seen_dim else LATENTS
    words = self.decoder()
    parts = {'decoder/.*': words, taken: self.encoder(row.encoder)}
    before = self.start(where / 'start', model, seed, parts)
    first = round(STAGE1 * self.recipe.steps)
    for stage, count in zip(compare.STAGES, (first, self.recipe.steps - first)):
      config = compare.config(name, 'tiny', stage)
      config = replace(
        config,
        data=replace(config.data, latent_cache_dir=str(self.root / 'shared' / 'latents')),
        steps=count,
        seed=seed,
        vae=self.vae(row.vae),
        tokenizer=f'{words}/tokenizer',
        init_from=before,
      )
      before = str(where / stage)
      _train(config, before)
    return before

  def start(self, where, model: TunaConfig, seed: int, parts: dict[str, str]) -> str:
    """A weights directory of fresh leaves, and of those that a pattern takes from another run."""
    if not store.is_stored(where):
      leaves = {
        leaf: fresh.fresh(leaf, aval, seed)
        for leaf, aval in tree.flatten(tuna_shapes(model)).items()
      }
      for pattern, source in parts.items():
        found = store.open_stored(source).params
        leaves |= {leaf: found[leaf] for leaf in leaves if re.fullmatch(pattern, leaf)}
      store.save(where, model, leaves, {'sources': parts})
    return str(where)


def _train(config: TrainConfig, where: str) -> None:
  """Trains, unless all steps are done, on as many devices as share the rows of a batch evenly: the
  recipe is the same on every machine."""
  if config.steps not in steps.committed(where):
    loop.train(config, where, jax.devices()[: math.gcd(config.rows, jax.device_count())])
