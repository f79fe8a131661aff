"""What the train state holds, and what it does not."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import shrink
from tuna_jax import sharding, tree
from tuna_jax.config import UserError
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.train import state
from tuna_jax.weights import store


@pytest.mark.parametrize('size', ['tiny', '2b'])
def test_frozen_leaves_own_no_optimizer_state_and_no_average(size):
  config = shrink.real('stage1', size)
  abstract = state.abstract_state(config)
  assert any(n.startswith('decoder/') for n in tree.names(abstract.params))
  assert abstract.ema and not [n for n in abstract.ema if n.startswith('decoder/')]
  assert not [n for n in tree.names(abstract.opt_state) if 'decoder/' in n]
  moments = [n for n in tree.names(abstract.opt_state) if n.endswith('vision/patch_embed/kernel')]
  assert len(moments) == 2


def test_everything_trains_in_the_later_stages():
  for stage in ('stage2', 'stage3'):
    abstract = state.abstract_state(shrink.real(stage, '7b'))
    assert list(abstract.ema) == tree.names(abstract.params)


def test_the_vae_is_not_in_the_state():
  abstract = state.abstract_state(shrink.real('stage2'))
  assert {n.partition('/')[0] for n in tree.names(abstract.params)} == {
    'connector',
    'decoder',
    'flow_head',
    'time_embed',
    'vision',
  }


def test_evaluation_weights_are_averages_where_averaged():
  config = shrink.shrink(shrink.real('stage1'))
  params = shrink.randomise(tuna_shapes(config.model), 0)
  made = state.from_params(params, config)
  made = made._replace(ema=jax.tree.map(lambda a: a + 1, made.ema))
  found, before = tree.flatten(state.weights(made)), tree.flatten(params)
  for name, leaf in found.items():
    np.testing.assert_allclose(leaf, before[name] + (name in made.ema))
  assert int(made.step) == 0


def test_selecting_and_merging_go_by_name():
  params = {'a': {'x': 1, 'y': 2}, 'b': {'x': 3}}
  assert state.select(params, ['b/x', 'a/y']) == {'b/x': 3, 'a/y': 2}
  assert state.merge(params, {'a/y': 9}) == {'a': {'x': 1, 'y': 9}, 'b': {'x': 3}}


def test_every_leaf_of_either_optimizers_state_has_a_place_on_the_mesh():
  for kind in ('adamw', 'muon'):
    config = shrink.real('stage2')
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, kind=kind))
    abstract = state.abstract_state(config)
    placed = sharding.shardings(abstract, sharding.make_mesh())
    assert jax.tree.structure(placed) == jax.tree.structure(abstract)


def test_a_run_has_the_sizes_of_what_it_starts_from_and_says_so(tmp_path, caplog):
  config = shrink.shrink(shrink.real('stage2', '2b'))
  own = dataclasses.replace(
    config.model, decoder=dataclasses.replace(config.model.decoder, mlp_dim=64), dtype='bfloat16'
  )
  store.save(tmp_path / 'w', own, {'x': np.zeros(1)})
  config = dataclasses.replace(config, init_from=str(tmp_path / 'w'))
  found = state.sized(config, tmp_path / 'run').model
  assert found.decoder.mlp_dim == 64 and found.dtype == config.model.dtype == 'float32'
  assert 'decoder.mlp_dim 64 (config: 48)' in caplog.text
  late = dataclasses.replace(config.model, design='late_fusion')
  store.save(tmp_path / 'w', late, {'x': np.zeros(1)})
  with pytest.raises(UserError, match="holds a model of design 'late_fusion'; the config is of"):
    state.sized(config, tmp_path / 'run')
