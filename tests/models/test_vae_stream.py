"""Decoding a clip frame by frame: the same pixels, in a fixed amount of memory."""

import jax
import numpy as np

from tests.sample import small
from tuna_jax.models import vae, vae_stream

TOLERANCE = 2e-5  # float32 sums in another order


def latents(frames):
  return (
    np.random.default_rng(0)
    .normal(size=(2, frames, 2, 1, small.VAE.latent_channels))
    .astype(np.float32)
  )


def test_a_clip_decoded_frame_by_frame_equals_one_pass():
  z, carry, pieces = latents(4), None, []
  whole = jax.jit(lambda p: vae.WanVae(small.VAE).apply({'params': p}, z, method='decode'))(
    small.vae_params()
  )
  decode = jax.jit(vae_stream.decode_frame, static_argnums=0)
  for i in range(4):
    pixels, carry = decode(small.VAE, small.vae_params(), z[:, i : i + 1], carry)
    pieces.append(pixels)
  assert [p.shape[1] for p in pieces] == [1, 4, 4, 4]
  streamed = np.concatenate(pieces, axis=1)
  assert np.abs(streamed - whole).max() < TOLERANCE * np.abs(whole).max()


def test_what_is_alive_while_decoding_does_not_grow_with_the_clip():
  def most_alive(frames):
    z = latents(frames)
    params = jax.device_put(small.vae_params())
    before, most = _alive(), 0
    for pixels in vae_stream.decode_stream(small.VAE, params, z):
      pixels.block_until_ready()
      most = max(most, _alive() - before)
    return most

  def _alive():
    return sum(a.nbytes for a in jax.live_arrays())

  most_alive(2)  # compiles
  assert most_alive(3) == most_alive(7) > 0


def test_the_programs_of_a_step_do_not_grow_with_the_clip_and_one_pass_does():
  def one_pass(frames):
    decode = jax.jit(lambda p, z: vae.WanVae(small.VAE).apply({'params': p}, z, method='decode'))
    return (
      decode.lower(small.vae_params(), latents(frames))
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  compiled = vae_stream._step._cache_size()
  for frames in (3, 5):
    list(vae_stream.decode_stream(small.VAE, small.vae_params(), latents(frames)))
  assert vae_stream._step._cache_size() - compiled <= 2
  assert one_pass(5) > 1.5 * one_pass(3)
