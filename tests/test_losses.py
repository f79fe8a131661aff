"""Losses are sums with counts: nothing that cuts or merges them changes the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import losses

B, L, D, VOCAB, TASKS = 2, 11, 4, 7, 3
ROUNDING = {'rtol': 1e-5, 'atol': 1e-6}  # float32 sums in another order
_keys = jax.random.split(jax.random.key(0), 5)
HIDDEN = jax.random.normal(_keys[0], (B, L, D))
HEAD = jax.random.normal(_keys[1], (D, VOCAB))
LABELS = jax.random.randint(_keys[2], (B, L), 0, VOCAB)
WEIGHT = jnp.round(jax.random.uniform(_keys[3], (B, L)), 1)
TASK = jax.random.randint(_keys[4], (B, L), 0, TASKS)


def next_token(hidden=HIDDEN, weight=WEIGHT, labels=LABELS, chunk=256):
  return losses.next_token(lambda h: h @ HEAD, hidden, labels, weight, TASK, TASKS, chunk=chunk)


def test_next_token_equals_the_textbook():
  log_p = jax.nn.log_softmax(HIDDEN @ HEAD)
  nll = -np.take_along_axis(np.asarray(log_p), np.asarray(LABELS)[..., None], -1)[..., 0]
  found = next_token()
  for task in range(TASKS):
    mask = np.asarray(WEIGHT) * (np.asarray(TASK) == task)
    np.testing.assert_allclose(found.total[task], (nll * mask).sum(), **ROUNDING)
    np.testing.assert_allclose(found.count[task], mask.sum(), **ROUNDING)
  np.testing.assert_allclose(found.mean(), (nll * WEIGHT).sum() / WEIGHT.sum(), **ROUNDING)


@pytest.mark.parametrize('chunk', [1, 3, 4, 11, 64])
def test_the_chunk_size_changes_neither_loss_nor_gradient(chunk):
  def value(hidden, chunk):
    return next_token(hidden, chunk=chunk).mean()

  for whole, cut in zip(*(jax.value_and_grad(value)(HIDDEN, c) for c in (256, chunk))):
    np.testing.assert_allclose(whole, cut, **ROUNDING)


def test_positions_of_no_weight_do_not_matter():
  off = WEIGHT == 0
  assert off.any()
  other = next_token(jnp.where(off[..., None], 9.0, HIDDEN), labels=jnp.where(off, 0, LABELS))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), other, next_token())


def test_tasks_add_up_to_the_whole():
  one = losses.next_token(lambda h: h @ HEAD, HIDDEN, LABELS, WEIGHT, jnp.zeros_like(TASK), 1)
  found = next_token()
  np.testing.assert_allclose(found.total.sum(), one.total[0], **ROUNDING)
  np.testing.assert_allclose(found.count.sum(), one.count[0], **ROUNDING)


def test_nothing_to_learn_is_zero_with_a_zero_gradient():
  value, gradient = jax.value_and_grad(lambda h: next_token(h, WEIGHT * 0).mean())(HIDDEN)
  assert value == 0 and not gradient.any()
  predicted = jnp.ones((B, 5, 3))

  def nothing(p):
    return losses.velocity_error(
      p, p * 2, jnp.zeros((B, 5), bool), jnp.zeros((B, 5), jnp.int32), TASKS
    ).mean()

  value, gradient = jax.value_and_grad(nothing)(predicted)
  assert value == 0 and not gradient.any()


def test_velocity_error_is_a_mean_over_channels_of_selected_tokens():
  predicted, velocity = jax.random.normal(jax.random.key(1), (2, B, 5, 3))
  selected = jnp.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1]], bool)
  task = jnp.array([[0, 0, 0, 2, 2], [1, 1, 1, 1, 2]])
  found = losses.velocity_error(predicted, velocity, selected, task, TASKS)
  np.testing.assert_array_equal(found.count, [2, 1, 2])
  expected = np.square(np.asarray(predicted - velocity))[np.asarray(selected)].mean()
  np.testing.assert_allclose(found.mean(), expected, **ROUNDING)


def test_losses_are_float32_whatever_comes_in():
  found = losses.next_token(
    lambda h: (h @ HEAD).astype(jnp.bfloat16), HIDDEN, LABELS, WEIGHT, TASK, TASKS
  )
  assert found.total.dtype == jnp.float32
  half = jnp.ones((B, 5, 3), jnp.bfloat16)
  assert (
    losses.velocity_error(half, half, jnp.ones((B, 5)), jnp.zeros((B, 5), jnp.int32), 1).total.dtype
    == jnp.float32
  )
