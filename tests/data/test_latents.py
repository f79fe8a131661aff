"""Latents are made once per picture and are never those of another encoder."""

import os

import numpy as np
import pytest

from tuna_jax.data.latents import LatentCache, content_key, encode_all

ONE, TWO = '1' * 32, '2' * 32  # digests of two encoders


def encode(pixels):
  return pixels[:, ::4, ::16, ::16] / np.float32(255)


def pictures(count, side=16, seed=0):
  rng = np.random.default_rng(seed)
  return list(rng.integers(0, 256, (count, 1, side, side, 3), dtype=np.uint8))


def files_in(folder):
  return [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]


def test_a_picture_is_encoded_once_in_groups_of_one_size():
  calls = []

  def counting(pixels):
    calls.append(pixels.shape)
    return encode(pixels)

  some, rng = pictures(5), np.random.default_rng(1)
  clip = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
  cache = LatentCache()
  got = encode_all([*some, clip, some[0]], counting, cache, group=4)
  assert calls == [(4, 1, 16, 16, 3), (4, 1, 16, 16, 3), (4, 5, 16, 16, 3)]
  for pixels, latents in zip([*some, clip, some[0]], got, strict=True):
    np.testing.assert_array_equal(latents, encode(pixels[None])[0])
  encode_all(some, counting, cache)
  assert len(calls) == 3


def test_pictures_of_later_batches_fill_up_a_group():
  calls = []

  def counting(pixels):
    calls.append(len(pixels))
    return encode(pixels)

  now, later, other = pictures(3), pictures(6, seed=1), pictures(2, side=32, seed=2)
  cache, group = LatentCache(), {16: 8, 32: 2}
  size = lambda shape: group[shape[1]]
  encode_all(now, counting, cache, size, iter([now[0], *other, *later]))
  assert calls == [8]
  got = encode_all(later, counting, cache, size)
  assert calls == [8, 8]  # five of the six came with the batch before
  for pixels, latents in zip(later, got, strict=True):
    np.testing.assert_array_equal(latents, encode(pixels[None])[0])


def test_latents_pass_through_unencoded():
  latents = np.ones((1, 2, 2, 3), np.float32)
  assert encode_all([latents], None)[0] is latents


def test_the_cache_keeps_to_its_bound():
  cache = LatentCache(max_bytes=100)
  for i in range(5):
    cache.put(str(i), np.zeros(10, np.float32))
  kept = [i for i in range(5) if cache.get(str(i)) is not None]
  assert kept == [3, 4]  # 40 bytes each


# ---- in files


def test_latents_on_disk_belong_to_one_encoder(tmp_path):
  picture = pictures(1)
  encode_all(picture, lambda x: np.full((len(x), 1, 1, 1, 4), 1.0), LatentCache(0, tmp_path, ONE))
  two = encode_all(
    picture, lambda x: np.full((len(x), 1, 1, 1, 4), 2.0), LatentCache(0, tmp_path, TWO)
  )
  assert two[0].ravel()[0] == 2.0
  again = encode_all(picture, None, LatentCache(0, tmp_path, ONE))
  assert again[0].ravel()[0] == 1.0 and again[0].dtype == np.float32


@pytest.mark.parametrize('name', ['', '/abs/vae', '../vae', 'runs/vae', 'version2'])
def test_a_name_that_is_no_digest_is_refused(tmp_path, name):
  with pytest.raises(ValueError, match='latent_cache_dir.*no digest'):
    LatentCache(0, tmp_path / 'cache', name)
  assert not files_in(tmp_path)


def test_files_lie_below_the_directory_whole_or_not_at_all(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  LatentCache(0, 'cache', ONE).put(content_key(pictures(1)[0]), np.zeros((1, 4, 4, 4), np.float32))
  (found,) = files_in('.')
  assert found.startswith(os.path.join('.', 'cache', ONE)) and found.endswith('.latents')


@pytest.mark.parametrize('damage', [b'', b'short', None])
def test_a_damaged_file_is_counted_and_made_again(tmp_path, damage):
  some = pictures(1)
  encode_all(some, encode, LatentCache(0, tmp_path, ONE))
  (path,) = files_in(tmp_path)
  with open(path, 'rb') as file:
    whole = file.read()
  flipped = whole[:-1] + bytes([whole[-1] ^ 1])
  with open(path, 'wb') as file:
    file.write(flipped if damage is None else damage)
  cache = LatentCache(0, tmp_path, ONE)
  np.testing.assert_array_equal(encode_all(some, encode, cache)[0], encode(some[0][None])[0])
  assert (cache.hits, cache.misses, cache.damaged) == (0, 1, 1)
  with open(path, 'rb') as file:
    assert file.read() == whole
