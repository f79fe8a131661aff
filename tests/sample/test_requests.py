"""What people hand to a generator: pictures and clips in every form, and the size of an edit."""

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.media import MediaConfig, MediaError
from tuna_jax.sample import requests

CONFIG = MediaConfig('64', '64', 5)


def test_an_edit_is_about_as_large_as_trained_pictures_and_keeps_its_shape():
  rng = np.random.default_rng(0)
  extremes = [(1, 10_000), (10_000, 1), (1, 1), (632, 408), (73, 56), (8, 400), (17, 300)]
  for area, stride in ((64 * 64, 16), (512 * 512, 16), (512 * 512, 32)):
    for height, width in [*extremes, *rng.integers(1, 3000, (500, 2)).tolist()]:
      tall, wide = requests.own_size(height, width, area, stride)
      assert tall * wide <= area and tall % stride == wide % stride == 0 < min(tall, wide)
      if max(height / width, width / height) < 3 and min(height, width) > 10 * stride:
        assert tall * wide > 0.2 * area, 'a size the model never saw'
        assert abs(np.log(tall * width / (wide * height))) < (0.5 if area < 10_000 else 0.15)

  assert requests.own_size(48, 80, 64 * 64, 16) == (48, 80)
  assert requests.own_size(32, 32, 64 * 64, 16) == (64, 64)


@pytest.mark.parametrize('as_bytes', [False, True])
def test_a_gif_of_several_frames_is_a_clip_and_one_of_a_single_frame_a_picture(tmp_path, as_bytes):
  frames = [Image.new('RGB', (64, 64), (40 * i, 0, 0)) for i in range(5)]
  frames[0].save(tmp_path / 'clip.gif', save_all=True, append_images=frames[1:], duration=100)
  frames[3].save(tmp_path / 'still.gif')
  for name, shape in (('clip.gif', (5, 64, 64, 3)), ('still.gif', (1, 64, 64, 3))):
    path = tmp_path / name
    assert requests.read(path.read_bytes() if as_bytes else path, CONFIG, 4).shape == shape


def test_home_folders_and_odd_names_are_read(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  Image.new('RGB', (64, 64), 'red').save(tmp_path / 'a%20b #1?.png')
  for path in ('~/a%20b #1?.png', tmp_path / 'a%20b #1?.png'):
    assert requests.read(path, CONFIG, 4)[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize('source', [None, 5, {}, 'https://example.com/a.png', 'gone.png', b'hello'])
def test_what_is_no_picture_is_named(source):
  with pytest.raises(MediaError):
    requests.read(source, CONFIG, 4)
  with pytest.raises(MediaError):
    requests.read_source(source, CONFIG, None, 16)
