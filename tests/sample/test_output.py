"""Files remember how they were made."""

import numpy as np
import pytest
from PIL import Image

from tuna_jax.sample.output import Clip, Picture, read_info

INFO = {'prompt': 'ein roter Ball, 赤い球', 'seed': 7, 'guidance': {'scale': 7.5}}


def clip(frames=5):
  ramp = np.linspace(0, 255, frames * 32 * 32 * 3).reshape(frames, 32, 32, 3)
  return Clip(ramp.astype(np.uint8), 8, INFO)


def test_a_png_holds_the_pixels_and_the_settings(tmp_path):
  picture = Picture(clip().pixels[0], INFO)
  picture.save(tmp_path / 'a.png')
  assert read_info(tmp_path / 'a.png') == INFO
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'a.png')), np.asarray(picture))


@pytest.mark.parametrize('name', ['a.mp4', 'a.gif'])
def test_a_film_holds_its_frames_and_the_settings(tmp_path, name):
  clip().save(tmp_path / name)
  assert read_info(tmp_path / name) == INFO
  from tuna_jax.data.media import read_video

  assert read_video(str(tmp_path / name), '32', 5).shape == (5, 32, 32, 3)


def test_another_ending_is_refused_by_name(tmp_path):
  with pytest.raises(ValueError, match=r'a\.jpg.*\.png'):
    Picture(clip().pixels[0], INFO).save(tmp_path / 'a.jpg')
  with pytest.raises(ValueError, match=r'\.mp4 or \.gif'):
    clip().save(tmp_path / 'a.avi')


def test_a_file_of_somebody_else_has_no_settings(tmp_path):
  Image.new('RGB', (4, 4)).save(tmp_path / 'b.png')
  with pytest.raises(ValueError, match='no settings'):
    read_info(tmp_path / 'b.png')


@pytest.mark.parametrize('name', ['none.png', 'none.mp4', 'text.png', 'text.mp4'])
def test_a_missing_or_broken_file_is_named_in_a_value_error(tmp_path, name):
  for kind in ('png', 'mp4'):
    (tmp_path / f'text.{kind}').write_text('no picture')
  with pytest.raises(ValueError, match=name):
    read_info(tmp_path / name)
