"""Layers that somebody re-initialised are found by how they differ from their neighbours."""

import importlib.util

import numpy as np
import pytest
from tuna_jax.configs import common

from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.tools.recover import describe, reinitialised, stage
from tuna_jax.train.optimizer import trainable
from tuna_jax.weights.tensors import lazies

LAYERS, DIM, MLP = 12, 48, 96


def trained_tower(rng):
  """Stacked leaves as training leaves them: spread drifts with depth, columns are unequal, gains
  are not one.
  """

  def kernel(fan_in, fan_out, gain):
    depth = np.exp(np.linspace(0, 0.3, LAYERS))[:, None, None]
    columns = np.exp(0.3 * rng.standard_normal((LAYERS, 1, fan_out)))
    return (
      gain * depth * columns * rng.standard_normal((LAYERS, fan_in, fan_out)) / np.sqrt(fan_in)
    ).astype(np.float32)

  return {
    'attn/q_proj/kernel': kernel(DIM, DIM, 1.4),
    'attn/o_proj/kernel': kernel(DIM, DIM, 0.7),
    'mlp/up_proj/kernel': kernel(DIM, MLP, 1.2),
    'mlp/down_proj/kernel': kernel(MLP, DIM, 0.8),
    'input_norm/scale': (1 + 0.2 * rng.standard_normal((LAYERS, DIM))).astype(np.float32),
  }


def uniform(rng, shape):
  """PyTorch's default initial values."""
  return rng.uniform(-1, 1, shape).astype(np.float32) / np.sqrt(shape[0])


@pytest.fixture
def model():
  rng = np.random.default_rng(0)
  return {
    f'{tower}/layers/{name}': value
    for tower in ('decoder', 'flow_head')
    for name, value in trained_tower(rng).items()
  }


def replace(model, tower, layers, draw, gains=True):
  rng = np.random.default_rng(1)
  for name, value in model.items():
    if name.startswith(tower):
      for layer in layers:
        if name.endswith('kernel'):
          value[layer] = draw(rng, value[layer].shape)
        elif gains:
          value[layer] = 1
  return {t: [int(n) for n in layers] for t, layers in reinitialised(lazies(model)).items()}


def test_nothing_is_reported_of_a_trained_model(model):
  assert reinitialised(lazies(model)) == {}


@pytest.mark.parametrize('layers', [[0], [5], [11], [3, 4, 5], [8, 9, 10, 11]])
def test_layers_with_pytorchs_default_values_are_found(model, layers):
  assert replace(model, 'flow_head', layers, uniform) == {'flow_head': layers}


def test_layers_whose_gains_were_kept_are_found_too(model):
  assert replace(model, 'decoder', [2, 7], uniform, gains=False) == {'decoder': [2, 7]}


def test_small_normal_values_are_found(model):
  draw = lambda rng, shape: (0.02 * rng.standard_normal(shape)).astype(np.float32)
  assert replace(model, 'decoder', [6], draw) == {'decoder': [6]}


def test_the_report_has_the_evidence_and_its_stage_trains_those_towers_alone(model, tmp_path):
  replace(model, 'decoder', [6], uniform)
  found = reinitialised(lazies(model))
  assert 'decoder/layers 6: its norm gains are one constant' in describe(found)
  path = tmp_path / 'recover.py'
  path.write_text(stage(found, '/x/weights'))
  spec = importlib.util.spec_from_file_location('recover_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = common.from_config_dict(module.get_config('tiny'))
  assert config.init_from == '/x/weights'
  names = trainable(tuna_shapes(config.model), config.optimizer)
  assert names and all(name.startswith('decoder/layers/') for name in names)
