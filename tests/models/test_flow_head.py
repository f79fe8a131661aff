"""The flow head alone: who is modulated, by which time, and what is read out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import shrink
from tests.models import small
from tuna_jax.models import rope
from tuna_jax.models.flow_head import FlowHead, per_token
from tuna_jax.models.layers import Span

F, LENGTH, CELLS = small.CONFIG.flow_head, 9, 4
INDEX = np.arange(LENGTH, dtype=np.int32)[None]
# text text [time cell cell] [time cell cell] text: two pictures, the second sees the first
SLOT = np.array([[-1, -1, 0, 2, 3, 1, 4, 5, -1]])
LIMIT = np.array([[0, 1, 4, 4, 4, 7, 7, 7, 8]], np.int32)
PLACE, IMAGE = np.array([[3, 4, 6, 7]]), np.array([[1, 1, 2, 2]])
OWNER = np.array([[0, 0, 0, 0, 0, 1, 1, 1, 0]])


@pytest.fixture(scope='module')
def run():
  rng = np.random.default_rng(0)
  hidden, time = (rng.normal(size=(1, n, F.dim)).astype(np.float32) for n in (LENGTH, 2))
  module = FlowHead(small.CONFIG)

  def both(head, hidden, time):
    rotary = rope.flow_rotary(
      INDEX, np.zeros((1, LENGTH, 3), np.int32), SLOT < 0, SLOT >= 2, F.head_dim
    )
    span = Span(rotary, LIMIT, np.ones_like(INDEX), np.ones_like(INDEX))
    features, _ = head.layers(hidden, (span, time, OWNER, SLOT >= 0), None)
    return head(hidden, span, time, OWNER, SLOT >= 0, PLACE, IMAGE)[0], features

  key = jax.random.key(0)
  shapes = jax.eval_shape(lambda: module.init(key, hidden, time, method=both))
  params = shrink.randomise(shapes, 2)
  apply = jax.jit(lambda hidden, time: module.apply(params, hidden, time, method=both))

  def call(hidden=hidden, time=time):
    """(velocity, hidden states after the last block)."""
    return tuple(map(np.asarray, apply(hidden, time)))

  call.hidden, call.time = hidden, time
  return call


def test_text_before_a_picture_ignores_its_time(run):
  time = run.time + 1
  old, new = run()[1], run(time=time)[1]
  assert (old[0, :2] == new[0, :2]).all()  # gate 1, shift and scale 0, whatever t
  assert (old[0, 2:] != new[0, 2:]).any(-1).all()


def test_the_gradient_of_a_picture_is_summed_in_float32():
  owner = np.zeros((1, 4096), np.int32)
  total = lambda table: jnp.sum(per_token(table, owner).astype(jnp.float32))
  found = jax.grad(total)(jnp.ones((1, 2, 4), jnp.bfloat16))
  np.testing.assert_array_equal(found.astype(np.float32), [[[4096] * 4, [0] * 4]])


def test_each_picture_is_modulated_by_its_own_time(run):
  time = run.time.copy()
  time[0, 1] += 1
  (old, _), (new, _) = run(), run(time=time)
  assert (old[0, IMAGE[0] == 1] == new[0, IMAGE[0] == 1]).all()
  assert not np.allclose(old[0, IMAGE[0] == 2], new[0, IMAGE[0] == 2], atol=1e-3)


def test_velocity_is_read_out_where_the_cells_are(run):
  hidden = run.hidden.copy()
  hidden[0, 7] += 1  # a cell of the second picture; the first may not see it
  (old, _), (new, _) = run(), run(hidden=hidden)
  assert (old[0, :2] == new[0, :2]).all() and (old[0, 2:] != new[0, 2:]).any(-1).all()
  assert old.shape == (1, CELLS, small.C) and old.dtype == np.float32


def test_modulation_is_gathered_by_owner():
  table = np.arange(6).reshape(1, 2, 3)
  np.testing.assert_array_equal(per_token(table, np.array([[1, 0, 1]])), table[:, [1, 0, 1]])
