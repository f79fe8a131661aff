"""`bench train`: rows are full, and what it prints follows from seconds, FLOPs and the peak."""

import dataclasses
import types

import numpy as np
import pytest

from tests import shrink
from tuna_jax import batch as batch_lib
from tuna_jax import chips
from tuna_jax.tools import bench_train
from tuna_jax.train import flops

PEAK = 1e12


def test_rows_are_full_of_pictures_and_text():
  config = dataclasses.replace(shrink.real('stage2', '2b'), rows=1)
  batch = batch_lib.check(bench_train.full_rows(config))
  assert (batch.segment == 1).all()
  assert (batch.image > 0).sum() > 0.9 * config.visual
  assert batch.target[0].tolist() == [True] * 4 + [False] * 12
  text = batch.slot == -1
  assert 0.5 < batch.label_weight[text].mean() <= 1  # boi and eoi are not learned
  assert np.isfinite(batch.latents).all() and batch.latents[batch.image > 0].std() > 0.9


def test_mfu_is_useful_flops_over_seconds_devices_and_peak():
  config = dataclasses.replace(shrink.shrink(shrink.real('decoder')), rows=8)
  found = bench_train.bench(config, steps=1, peak=PEAK)
  assert found['devices'] == 8 and found['tokens_in_a_row'] == config.length
  assert found['useful_flops'] == flops.train_flops(config).useful
  assert found['mfu'] == pytest.approx(found['useful_flops'] / (found['seconds'] * 8 * PEAK))
  assert found['tokens_per_second'] == pytest.approx(8 * config.length / found['seconds'])
  assert np.isfinite(found['loss'])
  said = bench_train.table(found)
  assert 'MFU = useful FLOPs / (seconds x devices x peak)' in said and 'TFLOP/s per device' in said
  assert 'give --peak_tflops' in bench_train.table({**found, 'mfu': None})


@pytest.mark.parametrize(
  'kind,peak',
  [
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU7x', 2307e12 / 2),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('cpu', None),
  ],
)
def test_a_device_has_the_peak_of_its_data_sheet(kind, peak):
  assert chips.peak_flops(types.SimpleNamespace(device_kind=kind)) == peak
