"""The path, the times and the ODE of flow matching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import flow

# docs/architecture.md 8.2, printed there to three digits.
QUANTILES = {0.05: 0.093, 0.25: 0.214, 0.5: 0.347, 0.75: 0.512, 0.95: 0.734}
SAMPLING = 3e-3  # of a quantile of 200,000 draws: under 5 standard errors


def test_training_times_have_the_published_quantiles():
  t = np.asarray(flow.sample_t(jax.random.key(0), (200_000,)))
  assert t.dtype == np.float32 and 0 < t.min() and t.max() < 1
  np.testing.assert_allclose(
    np.quantile(t, list(QUANTILES)), list(QUANTILES.values()), atol=SAMPLING
  )
  np.testing.assert_allclose((t.mean(), t.std()), (0.3725, 0.198), atol=SAMPLING)


def test_the_training_shift_is_the_published_constant():
  assert flow.TRAIN_SHIFT == pytest.approx(1.8776106)
  assert flow.time_shift(0.5, flow.TRAIN_SHIFT) == pytest.approx(0.347511, abs=1e-6)


@pytest.mark.parametrize('shift', [0.3, 1.0, 3.0])
def test_shifting_leaves_the_ends_where_they_are_and_keeps_order(shift):
  t = flow.time_shift(np.linspace(0, 1, 11), shift)
  assert t[0] == 0 and t[-1] == 1 and (np.diff(t) > 0).all()
  if shift == 1:
    np.testing.assert_allclose(t, np.linspace(0, 1, 11))
  else:
    assert (t[5] < 0.5) == (shift > 1)


@pytest.mark.parametrize('points', [2, 5, 50])
def test_a_grid_goes_from_noise_to_data(points):
  grid = flow.times(points)
  assert grid.shape == (points,) and grid.dtype == np.float32 and grid[0] == 0 and grid[-1] == 1


def test_a_grid_of_one_point_is_refused():
  with pytest.raises(ValueError, match='1 grid points: at least 2'):
    flow.times(1)


def test_the_path_joins_noise_and_data_at_constant_velocity():
  noise, data = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  t = jnp.array([0.0, 0.25, 1.0])
  x, velocity = flow.interpolate(data, noise, t)
  np.testing.assert_array_equal(x[0], noise[0])
  np.testing.assert_array_equal(x[2], data[2])
  np.testing.assert_allclose(x[1] + 0.75 * velocity[1], data[1], rtol=1e-5, atol=1e-6)


def test_clean_latents_are_untouched_to_the_last_bit():
  noise, data = jax.random.normal(jax.random.key(1), (2, 3, 4)) * 1e3
  assert (flow.interpolate(data, noise, jnp.ones(3))[0] == data).all()


def test_guidance_of_one_is_the_conditional_velocity_and_of_zero_the_other():
  cond, uncond = jnp.array([3.0, 1.0]), jnp.array([1.0, 2.0])
  np.testing.assert_array_equal(flow.guide(cond, uncond, 1.0), cond)
  np.testing.assert_array_equal(flow.guide(cond, uncond, 0.0), uncond)
  np.testing.assert_array_equal(flow.guide(cond, uncond, 7.5), [16.0, -5.5])


def test_a_straight_path_is_solved_exactly_whatever_the_grid():
  noise, data = jax.random.normal(jax.random.key(2), (2, 6))
  for method in flow.SOLVERS:
    x = flow.solve(lambda x, t: data - noise, noise, flow.times(4), method)
    np.testing.assert_allclose(x, data, rtol=1e-5, atol=1e-6)


def test_euler_is_of_first_order_and_heun_of_second():
  def error(method, points):  # dx/dt = -2 t x, so x(1) = exp(-1)
    x = flow.solve(
      lambda x, t: -2 * t * x, jnp.ones(1), np.linspace(0, 1, points, dtype=np.float32), method
    )
    return abs(float(x[0]) - np.exp(-1))

  orders = {m: np.log2(error(m, 9) / error(m, 17)) for m in flow.SOLVERS}
  assert 0.8 < orders['euler'] < 1.3 and 1.7 < orders['heun'] < 2.3
  assert error('heun', 9) < error('euler', 33)


def test_the_velocity_is_never_asked_at_the_last_time_and_the_state_is_float32():
  seen = []

  def velocity(x, t):
    jax.debug.callback(lambda t: seen.append(float(t)), t)
    return jnp.ones_like(x, jnp.bfloat16)

  for method, evaluations in (('euler', 3), ('heun', 5)):
    seen.clear()
    x = flow.solve(velocity, jnp.zeros(2, jnp.bfloat16), flow.times(4), method)
    jax.effects_barrier()
    assert x.dtype == jnp.float32 and len(seen) == evaluations and max(seen) < 1


def test_an_unknown_solver_is_refused():
  with pytest.raises(ValueError, match="solver 'rk4': expected one of"):
    flow.solve(lambda x, t: x, jnp.ones(1), flow.times(3), 'rk4')
