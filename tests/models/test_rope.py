"""The rotary conventions, one by one."""

import jax.numpy as jnp
import numpy as np

from tuna_jax.models import rope

SIZE = 32
POSITION = np.array([[0, 3, 7]], np.int32)
COORDS = np.array([[[0, 1, 2], [1, 0, 4], [2, 3, 0]]], np.int32)
YES, NO = np.ones((1, 3), bool), np.zeros((1, 3), bool)
X = np.random.default_rng(0).normal(size=(2, 1, 3, 2, SIZE)).astype(np.float32)


def scores(rotary):
  q, k = (np.asarray(rope.rotate(x, rotary)) for x in X)
  return np.einsum('blhd,bmhd->bhlm', q, k)


def flow(position=POSITION, coords=COORDS, text=NO, visual=NO):
  return rope.flow_rotary(position, coords, text, visual, SIZE)


def test_scores_depend_on_distances_alone():
  shifted = (POSITION + 11, COORDS + 5)
  np.testing.assert_allclose(
    scores(rope.decoder_rotary(POSITION, SIZE, 1e4)),
    scores(rope.decoder_rotary(shifted[0], SIZE, 1e4)),
    atol=1e-4,
  )
  for kind in ('text', 'visual'):
    np.testing.assert_allclose(
      scores(flow(**{kind: YES})), scores(flow(*shifted, **{kind: YES})), atol=1e-4
    )
    assert not np.allclose(scores(flow(**{kind: YES})), scores(flow()), atol=0.1)


def test_rotating_keeps_lengths():
  for rotary in (rope.decoder_rotary(POSITION, SIZE, 1e4), flow(text=YES), flow(visual=YES)):
    np.testing.assert_allclose(
      np.linalg.norm(rope.rotate(X[0], rotary), axis=-1), np.linalg.norm(X[0], axis=-1), rtol=1e-5
    )


def test_the_decoder_rotates_halves_forward():
  unit = np.zeros((1, 1, 1, 4), np.float32)
  unit[..., 0] = 1
  turned = rope.rotate(unit, rope.decoder_rotary(np.array([[2]]), 4, 1e4))
  np.testing.assert_allclose(turned[0, 0, 0], [np.cos(2), 0, np.sin(2), 0], atol=1e-6)


def test_latent_tokens_rotate_adjacent_pairs_backward():
  unit = np.zeros((1, 1, 1, SIZE), np.float32)
  unit[..., 0] = 1  # the first pair turns by the frame number
  rotary = rope.flow_rotary(
    np.array([[9]]), np.array([[[2, 0, 0]]]), np.zeros((1, 1), bool), np.ones((1, 1), bool), SIZE
  )
  np.testing.assert_allclose(
    rope.rotate(unit, rotary)[0, 0, 0, :2], [np.cos(2), -np.sin(2)], atol=1e-6
  )


def test_time_tokens_are_not_rotated():
  for rotary in (flow(), rope.no_rotary(POSITION, SIZE)):
    np.testing.assert_array_equal(rope.rotate(X[0], rotary), X[0])


def test_each_class_reads_its_own_index_only():
  text = flow(text=YES)
  np.testing.assert_array_equal(text.cos, flow(coords=COORDS + 1, text=YES).cos)
  visual = flow(visual=YES)
  np.testing.assert_array_equal(visual.cos, flow(position=POSITION + 1, visual=YES).cos)


def test_a_head_is_shared_out_between_frames_rows_and_columns_in_whole_pairs():
  for size in (16, 32, 64):
    dims = rope.axis_dims(size)
    assert sum(dims) == size and all(d % 2 == 0 for d in dims)
  assert rope.axis_dims(64) == (16, 24, 24)


def test_fast_text_frequencies_stay_and_slow_ones_are_divided():
  plain, scaled = rope.frequencies(64, rope.TEXT_THETA), rope.scaled_frequencies(64)
  ratio = scaled / plain
  wavelength = 2 * np.pi / plain
  assert (ratio[wavelength < 8192 / 4] == 1).all()
  np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 32, rtol=1e-6)
  between = ratio[(wavelength >= 8192 / 4) & (wavelength <= 8192)]
  assert len(between) and ((between > 1 / 32) & (between < 1)).all()


def test_angles_are_float32_and_the_result_keeps_its_type():
  rotary = rope.decoder_rotary(POSITION + 2000, SIZE, 1e6)
  assert rotary.cos.dtype == jnp.float32
  assert rope.rotate(jnp.asarray(X[0], jnp.bfloat16), rotary).dtype == jnp.bfloat16
  exact = 2007 * 1e6 ** (-np.arange(0, SIZE, 2) / SIZE)
  np.testing.assert_allclose(rotary.cos[0, 2, : SIZE // 2], np.cos(exact), atol=2e-4)
