"""Groups, decay, clipping, schedules and the average, on trees of a few leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.train import optimizer
from tuna_jax.train.config import OptimizerConfig

PARAMS = {
  'decoder': {'kernel': jnp.ones(3), 'bias': jnp.ones(2)},
  'vision': {'kernel': jnp.ones(4)},
}
LEAVES = {'decoder/kernel': jnp.ones(3), 'decoder/bias': jnp.ones(2), 'vision/kernel': jnp.ones(4)}
PLAIN = OptimizerConfig(lr=0.1, warmup=0, weight_decay=0.0, clip=1e9)


def step(config, gradients, leaves=LEAVES, multiples=None, steps=10):
  transformation = optimizer.make(config, steps, multiples or dict.fromkeys(leaves, 1.0))
  updates, _ = transformation.update(gradients, transformation.init(leaves), leaves)
  return updates


def test_a_group_of_zero_leaves_the_table_of_what_trains():
  groups = (('decoder/.*', 0.0), ('.*/kernel', 0.5))
  assert optimizer.trainable(PARAMS, dataclasses.replace(PLAIN, groups=groups)) == {
    'vision/kernel': 0.5
  }


@pytest.mark.parametrize(
  'groups, message',
  [
    ((('decoder/.*', 1.0),), 'vision/kernel: no optimizer.groups row covers it'),
    (
      (('decoders/.*', 0.0), ('.*', 1.0)),
      "'decoders/.*': this optimizer.groups row selects nothing; nearest is 'decoder",
    ),
    ((('.*', 0.0),), 'every leaf is frozen'),
  ],
)
def test_a_table_that_does_not_fit_names_the_fault(groups, message):
  with pytest.raises(ValueError, match=message):
    optimizer.trainable(PARAMS, dataclasses.replace(PLAIN, groups=groups))


def test_the_first_adam_step_is_the_rate_times_the_sign_and_the_groups_multiple():
  updates = step(
    PLAIN,
    jax.tree.map(lambda a: -3 * a, LEAVES),
    multiples={**dict.fromkeys(LEAVES, 1.0), 'decoder/bias': 0.5},
  )
  np.testing.assert_allclose(updates['decoder/kernel'], 0.1, rtol=1e-5)
  np.testing.assert_allclose(updates['decoder/bias'], 0.05, rtol=1e-5)


def test_weight_decay_touches_kernels_and_embeddings_only():
  config = dataclasses.replace(PLAIN, weight_decay=0.01)
  leaves = {
    name: jnp.full(2, 5.0)
    for name in ('a/kernel', 'decoder/embed/embedding', 'a/bias', 'norm/scale')
  }
  updates = step(config, jax.tree.map(jnp.zeros_like, leaves), leaves)
  np.testing.assert_allclose(updates['a/kernel'], -0.1 * 0.01 * 5, rtol=1e-5)
  np.testing.assert_allclose(updates['decoder/embed/embedding'], -0.1 * 0.01 * 5, rtol=1e-5)
  assert not updates['a/bias'].any() and not updates['norm/scale'].any()


def test_gradients_are_clipped_by_their_common_norm():
  config = dataclasses.replace(
    PLAIN, clip=1.0, eps=1.0
  )  # a large eps, so that Adam keeps the size visible
  gradients = jax.tree.map(lambda a: 100.0 * a, LEAVES)
  norm = 100.0 * 3  # nine ones
  expected = (100 / norm) / (100 / norm + 1.0)
  np.testing.assert_allclose(step(config, gradients)['vision/kernel'], -0.1 * expected, rtol=1e-4)
  small = jax.tree.map(lambda a: 0.01 * a, LEAVES)
  np.testing.assert_allclose(step(config, small)['vision/kernel'], -0.1 * 0.01 / 1.01, rtol=1e-4)


def test_schedules():
  def rates(steps=100, **changes):
    s = optimizer.schedule(dataclasses.replace(PLAIN, lr=2.0, **changes), steps)
    return [float(s(n)) for n in (0, 5, 10, 55, 100, 1000)]

  np.testing.assert_allclose(rates(warmup=10), [0, 1, 2, 2, 2, 2])
  np.testing.assert_allclose(
    rates(warmup=10, schedule='linear', final_lr=0.5), [0, 1, 2, 1.5, 1, 1]
  )
  np.testing.assert_allclose(
    rates(warmup=10, schedule='cosine', final_lr=0.5), [0, 1, 2, 1.5, 1, 1], rtol=1e-6
  )
  np.testing.assert_allclose(rates(warmup=0)[:2], [2, 2])


def test_an_unknown_schedule_is_named_with_the_nearest():
  with pytest.raises(ValueError, match="schedule 'cosin': .*nearest is 'cosine'"):
    OptimizerConfig(schedule='cosin')


def test_the_average_warms_up_as_published_and_the_first_update_copies():
  ema, history = {'a': jnp.float32(100)}, []
  for n in range(1, 5):
    ema = optimizer.update_ema(ema, {'a': jnp.float32(n)}, jnp.int32(n), PLAIN)
    history.append(float(ema['a']))
  expected = [1.0]
  for n in range(2, 5):  # docs/architecture.md 9: d = min(0.9999, (1 + n) / (10 + n))
    d = (1 + n) / (10 + n)
    expected.append(d * expected[-1] + (1 - d) * n)
  np.testing.assert_allclose(history, expected, rtol=1e-6)


def test_the_average_never_decays_slower_than_asked():
  ema = optimizer.update_ema(
    {'a': jnp.float32(1)},
    {'a': jnp.float32(0)},
    jnp.int32(10**6),
    dataclasses.replace(PLAIN, ema=0.9),
  )
  np.testing.assert_allclose(ema['a'], 0.9, rtol=1e-6)


def matrices(*shape):
  return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


MUON = dataclasses.replace(PLAIN, kind='muon')


def test_muon_moves_a_kernel_along_every_direction_alike_and_as_far_as_adam_would():
  leaves = {'decoder/kernel': matrices(12, 30), 'decoder/bias': matrices(30)}
  updates = step(MUON, leaves, leaves)
  singular = np.linalg.svd(updates['decoder/kernel'], compute_uv=False)
  assert singular.max() / singular.min() < 2  # those of the gradient differ by more than 3
  size = np.sqrt(np.mean(np.square(updates['decoder/kernel'])))
  assert 0.6 < size / (MUON.lr * 0.2) < 1.2
  adam = step(PLAIN, leaves, leaves)['decoder/bias']
  np.testing.assert_allclose(updates['decoder/bias'], adam, rtol=1e-5)


def test_muon_takes_scanned_layers_and_temporal_taps_one_by_one():
  stack, taps = matrices(3, 8, 5), matrices(3, 2, 2, 4, 6)
  updates = step(
    MUON,
    {'layers/kernel': stack, 'conv/kernel': taps},
    {'layers/kernel': stack, 'conv/kernel': taps},
  )
  for i in range(3):
    alone = {'layers/kernel': stack[i], 'conv/kernel': taps[i]}
    for name, update in step(MUON, alone, alone).items():
      np.testing.assert_allclose(updates[name][i], update, rtol=1e-4, atol=1e-6)
  flat = {'conv/kernel': taps[0].reshape(16, 6)}
  np.testing.assert_allclose(
    updates['conv/kernel'][0].reshape(16, 6),
    step(MUON, flat, flat)['conv/kernel'],
    rtol=1e-4,
    atol=1e-6,
  )


def test_an_unknown_kind_is_answered_with_the_nearest():
  with pytest.raises(ValueError, match="kind 'adam': expected one of .*; nearest is 'adamw'"):
    OptimizerConfig(kind='adam')
