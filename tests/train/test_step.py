"""The train step: accumulation, frozen leaves, clean pictures, sums by task."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from tests import shrink
from tests.models import small
from tuna_jax import batch as batch_lib
from tuna_jax import losses, tree
from tuna_jax.train import state, step
from tuna_jax.train.config import OptimizerConfig, TrainConfig

ROUNDING = 1e-6  # of weights of order 0.1 after one update
CONFIG = TrainConfig(
  model=small.CONFIG,
  stage='stage1',
  steps=10,
  rows=4,
  length=small.LENGTH,
  visual=small.CELLS,
  images=small.IMAGES,
  optimizer=OptimizerConfig(lr=1e-3, warmup=0, eps=1e-4, groups=(('decoder/.*', 0.0), ('.*', 1.0))),
)
BATCH = small.batch(('edit', 'vqa'), ('t2i', 'text'), ('t2v',), ('vqa', 't2i'))
KEY = jax.random.key(3)


@functools.cache
def start():
  return state.from_params(jax.tree.map(jax.numpy.asarray, small.params()), CONFIG)


@functools.cache
def program(config):
  return jax.jit(functools.partial(step.train_step, config=config))


@functools.cache
def one(accumulate):
  config = dataclasses.replace(
    CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, accumulate=accumulate)
  )
  return program(config)(start(), BATCH, KEY)


def test_accumulating_equals_one_batch():
  (whole, a), (parts, b) = one(1), one(2)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=ROUNDING), whole.params, parts.params
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


def test_rows_without_pictures_accumulate():
  config = dataclasses.replace(shrink.shrink(shrink.real('decoder')), rows=4)
  config = dataclasses.replace(
    config, optimizer=dataclasses.replace(config.optimizer, accumulate=2)
  )
  batch = batch_lib.empty(4, *config.sizes[1:])
  after, _ = jax.eval_shape(
    functools.partial(step.train_step, config=config), state.abstract_state(config), batch, KEY
  )
  assert after.params == state.abstract_state(config).params


@pytest.mark.parametrize('what', ['latents', 'parameters'])
def test_an_update_that_is_not_finite_leaves_all_but_the_step_as_it_was(what):
  before, batch = start(), BATCH
  if what == 'latents':
    latents = np.where(np.asarray(batch.image > 0)[..., None], np.float32('nan'), batch.latents)
    batch = batch._replace(latents=latents.astype(np.float32))
  else:
    leaf = before.params['connector']['fc2']['bias']
    bias = {**before.params['connector']['fc2'], 'bias': leaf * np.float32('inf')}
    connector = {**before.params['connector'], 'fc2': bias}
    before = before._replace(params={**before.params, 'connector': connector})
  after, metrics = program(CONFIG)(before, batch, KEY)
  assert not metrics['kept'] and metrics['sane'] == (what == 'parameters')
  jax.tree.map(np.testing.assert_array_equal, after, before._replace(step=before.step + 1))


def test_frozen_leaves_stay_and_all_others_move():
  before, after = tree.flatten(start().params), tree.flatten(one(1)[0].params)
  stayed = {name for name in before if (np.asarray(before[name]) == np.asarray(after[name])).all()}
  assert stayed == {name for name in before if name.startswith('decoder/')}


def test_the_first_average_is_the_first_weights():
  made = one(1)[0]
  assert int(made.step) == 1
  jax.tree.map(np.testing.assert_array_equal, made.ema, state.select(made.params, made.ema))


def test_task_sums_add_up_to_the_loss():
  metrics = one(1)[1]
  flow, ntp = metrics['flow'], metrics['ntp']
  np.testing.assert_allclose(metrics['loss'], 1.0 * flow.mean() + 0.2 * ntp.mean(), rtol=1e-5)
  cells = [
    (
      (BATCH.image > 0)
      & BATCH.target[np.arange(4)[:, None], np.maximum(BATCH.image - 1, 0)]
      & (BATCH.task[np.arange(4)[:, None], BATCH.place] == task)
    ).sum()
    for task in range(5)
  ]
  np.testing.assert_array_equal(flow.count[:5], cells)
  weights = [BATCH.label_weight[BATCH.task == task].sum() for task in range(5)]
  np.testing.assert_allclose(ntp.count[:5], weights)
  assert all(cells[i] for i in (1, 3, 4)) and not any(cells[i] for i in (0, 2))


def test_times_are_drawn_for_targets_and_are_one_elsewhere():
  noise, t, masked = jax.jit(step.draw, static_argnums=2)(BATCH, KEY, CONFIG)
  assert masked is None
  assert noise.shape == BATCH.latents.shape
  assert (np.asarray(t)[~BATCH.target] == 1).all()
  drawn = np.asarray(t)[BATCH.target]
  assert ((drawn > 0) & (drawn < 1)).all() and len(set(drawn.tolist())) == len(drawn)


def test_the_model_sees_clean_latents_as_they_are(monkeypatch):
  seen = {}

  def spy(latents, noise, t, interpolate=step.flow.interpolate):
    seen['x_t'], velocity = interpolate(latents, noise, t)
    return seen['x_t'], velocity

  monkeypatch.setattr(step.flow, 'interpolate', spy)
  draws = step.draw(BATCH, KEY, CONFIG)

  def run(params):
    step.loss_sums(params, BATCH, draws, config=CONFIG)
    return seen['x_t']

  x_t = np.asarray(jax.jit(run)(small.params()))
  owner = np.maximum(BATCH.image - 1, 0)
  clean = (BATCH.image > 0) & ~np.take_along_axis(BATCH.target, owner, axis=1)
  assert (
    clean.any()
    and (x_t[clean] == BATCH.latents[clean]).all()
    and not (x_t[~clean] == BATCH.latents[~clean]).all()
  )


def test_a_profile_names_the_parts_of_the_step():
  run = functools.partial(step.train_step, config=CONFIG)
  text = jax.jit(run).lower(start(), BATCH, KEY).as_text(debug_info=True)
  parts = (
    'vision', 'connector', 'decoder', 'layers/attn/q_proj', 'layers/attn/scores', 'layers/mlp',
    'flow_head', 'next_token', 'velocity_error', 'optimizer', 'average',
  )  # fmt: skip
  assert not [part for part in parts if not re.search(rf'[/("]{part}[)/]', text)]


def test_another_step_draws_other_noise():
  a, b = (step.draw(BATCH, jax.random.fold_in(KEY, n), CONFIG)[0] for n in (0, 1))
  assert not np.allclose(a, b)


def test_without_a_flow_loss_the_flow_head_is_not_run():
  config = dataclasses.replace(CONFIG, flow_coeff=0.0)
  bare = small.batch(('text',), ('text',), ('text',), ('text',), cells=0, images=0)
  sums = jax.eval_shape(
    functools.partial(step.loss_sums, config=config),
    small.params(),
    bare,
    step.Draws(bare.latents, bare.target * 1.0, None),
  )
  assert set(sums) == {'ntp'}


def test_nothing_to_learn_is_a_loss_of_zero():
  none = losses.Sum(np.zeros(3, np.float32), np.zeros(3, np.float32))
  assert step.total_loss({'ntp': none, 'flow': none}, {'ntp': 0.0, 'flow': 0.0}, CONFIG) == 0


@pytest.mark.parametrize('stage', shrink.STAGES)
@pytest.mark.parametrize('size', ['2b', pytest.param('7b', marks=pytest.mark.slow)])
def test_the_real_step_of_a_published_size_traces(stage, size):
  config = dataclasses.replace(shrink.real(stage, size), rows=8)
  abstract = state.abstract_state(config)
  batch = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, batch_lib.empty(*config.sizes)))
  after, metrics = jax.eval_shape(
    functools.partial(step.train_step, config=config),
    abstract,
    batch,
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
    lambda a: (a.shape, a.dtype), abstract
  )
  told = {'loss', 'grad_norm', 'lr', 'filled', 'kept', 'sane', 'ntp', 'flow', 'flow_t'}
  assert set(metrics) == told
