"""Flow matching: times, the straight path, guidance and the ODE (docs/architecture.md 8 and 10).

t = 0 is noise x0 and t = 1 is data x1: x_t = t x1 + (1 - t) x0, and the velocity is x1 - x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.config import PathConfig


def train_shift(tokens: int) -> float:
  """The official shift in training: exp(mu), mu on the line through (256, 0.5) and (4096, 1.15)."""
  return math.exp(0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256))


TRAIN_SHIFT = train_shift(1024)  # Tuna's, whatever the size
SAMPLE_SHIFT = 3.0
MIN_TIME_LEFT = 0.05
STRAIGHT = PathConfig()
SOLVERS = ('euler', 'heun')


def time_shift(t, shift: float):
  """t / (t + shift (1 - t)): a shift above 1 moves times towards noise; 0 and 1 stay."""
  return t / (t + shift * (1 - t))


def sample_t(key, shape, shift: float = TRAIN_SHIFT, path: PathConfig = STRAIGHT):
  """Training times: the sigmoid of the path's normals, shifted. float32 in (0, 1)."""
  return time_shift(lognormal_t(jax.random.normal(key, shape, jnp.float32), path), shift)


def lognormal_t(normal, path: PathConfig = STRAIGHT):
  """The times of standard normals, before any shift."""
  if (path.mean, path.std) != (0.0, 1.0):
    normal = path.mean + path.std * normal
  return jax.nn.sigmoid(normal)


def interpolate(latents, noise, t):
  """(x_t, velocity) on the path from `noise` to `latents`; t broadcasts from the left."""
  t = t.reshape(*t.shape, *[1] * (latents.ndim - t.ndim))
  return t * latents + (1 - t) * noise, latents - noise


def velocity_to(clean, x, t):
  """The velocity at x [B, V, C] that leads to the picture `clean` at t = 1; t float[B, V].

  The time left is not taken below MIN_TIME_LEFT (docs/architecture.md 12).
  """
  return (clean - x) / jnp.maximum(1 - t, MIN_TIME_LEFT)[..., None]


def times(points: int, shift: float = SAMPLE_SHIFT) -> np.ndarray:
  """The official grid float32[points] from 0 to 1, which is points - 1 Euler steps. ValueError
  below 2 points.
  """
  if points < 2:
    raise ValueError(f'{points} grid points: at least 2 are needed (points - 1 steps)')
  return np.asarray(time_shift(np.linspace(0, 1, points, dtype=np.float32), np.float32(shift)))


def guide(cond, uncond, scale):
  """Classifier-free guidance: uncond + scale (cond - uncond). 1 is the conditional velocity."""
  return uncond + scale * (cond - uncond)


def solve(velocity: Callable, noise, grid, method: str = 'euler'):
  """Integrates dx/dt = velocity(x, t) over `grid` in one scan; the state is float32.

  Args:
    velocity: (x, t scalar) -> like x. noise: x at grid[0]. grid: float32[K], see `times`.
    method: 'euler' (one evaluation per step) or 'heun' (two, but one for the last step: the
      velocity at t = 1 is never evaluated).
  """
  if method not in SOLVERS:
    raise ValueError(f'solver {method!r}: expected one of {SOLVERS}')
  grid = jnp.asarray(grid, jnp.float32)

  def euler(x, pair):
    t, t_next = pair
    return x + (t_next - t) * velocity(x, t).astype(jnp.float32), None

  def heun(x, pair):
    t, t_next = pair
    v = velocity(x, t).astype(jnp.float32)
    v_next = velocity(x + (t_next - t) * v, t_next).astype(jnp.float32)
    return x + (t_next - t) * 0.5 * (v + v_next), None

  pairs = (grid[:-1], grid[1:])
  x = noise.astype(jnp.float32)
  if method == 'euler':
    return jax.lax.scan(euler, x, pairs)[0]
  x, _ = jax.lax.scan(heun, x, jax.tree.map(lambda p: p[:-1], pairs))
  return euler(x, jax.tree.map(lambda p: p[-1], pairs))[0]
