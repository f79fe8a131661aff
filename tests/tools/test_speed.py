"""The time model against measurements of others, and a sweep on the devices at hand."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from tests import shrink
from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.tools import speed

# GPT3-small on one V100 by LiuXiaoxuanPKU/papaya, benchmarks/GPT/v100/results/speed_results.json:
# {method: {batch: (ms per batch, MB at the peak)}}; ckpt is remat, L1 compresses activations.
# fmt: off
PAPAYA = {
  'none': {1: (64.8, 3007), 2: (65.6, 3571), 3: (68.6, 4241), 4: (77.3, 4891), 6: (94.6, 6207),
           8: (119.7, 7529), 10: (136.9, 8845), 12: (159.8, 10166), 14: (179.9, 11487),
           16: (199.0, 12806), 19: (228.9, 14806)},
  'ckpt': {1: (83.0, 2993), 2: (82.5, 3006), 3: (87.2, 3208), 4: (91.4, 3526), 8: (143.5, 4808),
           12: (210.6, 6089), 16: (247.4, 7369), 20: (299.4, 8650), 26: (382.8, 10570),
           32: (460.7, 12492), 37: (526.9, 14092)},
  'L1': {1: (126.3, 3005), 2: (126.9, 3072), 3: (138.3, 3484), 4: (134.9, 3897), 8: (201.8, 5554),
         12: (272.0, 7203), 16: (340.2, 8854), 20: (412.7, 10506), 24: (490.6, 12163),
         30: (598.5, 14636)},
}
# fmt: on


def series(method):
  batch = np.array(list(PAPAYA[method]), float)
  ms, peak = np.array(list(PAPAYA[method].values()), float).T
  return batch, ms / 1e3, peak


def r2(real, said):
  return 1 - np.sum((real - said) ** 2) / np.sum((real - real.mean()) ** 2)


@pytest.mark.parametrize('method', PAPAYA)
def test_the_hinge_predicts_batches_that_it_was_not_fitted_to(method):
  batch, seconds, _ = series(method)
  fitted = speed.fit(batch[::2, None], seconds[::2])
  said = np.array([fitted.seconds([b]) for b in batch])
  assert r2((batch / seconds)[1::2], (batch / said)[1::2]) > 0.95
  assert np.max(np.abs(said / seconds - 1)[1::2]) < 0.1


@pytest.mark.parametrize('method', ['ckpt', 'L1'])
def test_bytes_saved_per_second_say_whether_a_method_pays(method):
  """PAPAYA's score against its point: here both methods make the best throughput worse."""
  fits = {}
  for name in ('none', method):
    batch, seconds, peak = series(name)
    fits[name] = (*np.polyfit(batch, peak, 1), *np.polyfit(batch[3:], seconds[3:], 1))
  (alpha, beta, gamma, delta), (alpha_m, _, gamma_m, _) = fits['none'], fits[method]
  capacity = 16_384 * 0.9
  score, point = (alpha - alpha_m) / (gamma_m - gamma), (capacity - beta) / delta
  best = {name: max(b / s for b, s in zip(*series(name)[:2])) for name in fits}
  assert (score > point) == (best[method] > best['none'])
  predicted = {}
  for name in fits:
    a, b, g, d = fits[name]
    most = (capacity - b) / a
    predicted[name] = most / (g * most + d)
  real = best[method] / best['none']
  assert abs(predicted[method] / predicted['none'] - real) < 0.03


# Seconds of a step of `decoder:tiny` with 256 positions on a CPU, 2026-11-28, of processor time:
# {(rows, remat, turns): seconds}, by `python -m tests.tools.advice_validation --measure`.
# fmt: off
SWEPT = {(4, 'block', 1): 0.1503, (8, 'block', 1): 0.3630, (16, 'block', 1): 0.7889,
         (16, 'block', 4): 0.6409, (16, 'dots', 1): 0.7990, (8, 'none', 2): 0.3501,
         (16, 'none', 1): 0.9167}
HELD_OUT = {(8, 'dots', 1): 8 / 21.25, (32, 'block', 2): 32 / 20.94,
            (16, 'attention', 1): 16 / 22.14, (32, 'none', 1): 32 / 18.00,
            (32, 'narrow', 8): 32 / 27.38}
# fmt: on


def test_a_sweep_ranks_methods_that_it_did_not_measure():
  config = dataclasses.replace(shrink.real('decoder'), length=256, rows=4)
  work = lambda cell: speed.work_of(speed.changed(config, *cell), 1)
  hinge = speed.fit([work(c) for c in SWEPT], list(SWEPT.values()), free=(speed.TURNS,))
  rate = [(cell[0] / real, cell[0] / hinge.seconds(work(cell))) for cell, real in HELD_OUT.items()]
  pairs = list(itertools.combinations(rate, 2))
  assert sum((a[0] > b[0]) == (a[1] > b[1]) for a, b in pairs) >= 9 and len(pairs) == 10


def test_a_fit_finds_the_floor_and_the_slopes_that_made_the_times():
  rng = np.random.default_rng(0)
  work = rng.uniform(1, 10, (12, 3)) * [1e12, 1e9, 1]
  real = speed.Hinge(0.12, (1e-14, 2e-11, 1e-3), 0.01)
  found = speed.fit(work, [real.seconds(w) for w in work])
  for w in work:
    assert found.seconds(w) == pytest.approx(real.seconds(w), rel=0.02)


def test_a_sweep_stores_a_fit_by_kind_of_device(tmp_path, monkeypatch):
  monkeypatch.setenv(files.CACHE, str(tmp_path))
  config = dataclasses.replace(shrink.shrink(shrink.real('decoder')), rows=8)

  def bench(cell, steps):
    work = speed.work_of(cell, 8)
    return {'devices': 8, 'seconds': 1e-9 * work[0] + 0.01 * work[3] + 0.002}

  said = []
  found = speed.sweep(config, bench, say=said.append)
  assert found['fit']['worst'] < 0.01 and 'fitted to 7 steps of cpu' in said[-1]
  hinge, about = speed.stored('cpu')
  other = speed.changed(config, 24, 'narrow', 3)
  assert hinge.seconds(speed.work_of(other, 8)) == pytest.approx(bench(other, 1)['seconds'], 0.01)
  assert about['stage'] == 'decoder' and speed.stored('TPU v5 lite') is None
  assert json.loads((tmp_path / 'speed.json').read_text())['cpu']['steps'] == 7
  with pytest.raises(UserError, match='2 steps could be measured; 3 are needed'):
    speed.sweep(config, bench, cells=speed.SWEEP[:2], say=said.append)
