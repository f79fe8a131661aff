"""Questions into full batches and back in order; what a question shows."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from tuna_jax.benchmarks import answers
from tuna_jax.benchmarks.answers import Question, Reading, Settings
from tuna_jax.config import UserError

GREEDY = Settings.of({'max_new_tokens': 4})


class Echo:
  """Says back the text of each question, and keeps what it was asked at once."""

  batch_size = 2

  def __init__(self):
    self.calls = []

  def text(self, messages, images, **how):
    self.calls.append((len(messages), how))
    return [turns[-1][1] for turns in messages]


def shown(height, width):
  return np.zeros((height, width, 3), np.uint8)


def test_answers_come_in_order_and_batches_of_a_shape_are_full():
  pool = answers.BATCHES * Echo.batch_size
  asked = [
    Question([('user', str(n))], [shown(32, 32 if n % 3 else 48)], GREEDY) for n in range(3 * pool)
  ]
  echo, counts = Echo(), []
  said = list(answers.answer(echo, asked, report=counts.append))
  assert said == [str(n) for n in range(3 * pool)]
  assert [n for n, _ in echo.calls] == [pool, pool, pool] == counts


def test_a_question_of_a_rare_shape_does_not_hold_up_the_others():
  pool = answers.BATCHES * Echo.batch_size
  wait = answers.PATIENCE * pool
  read = []

  def asked():
    for n in range(3 * wait):
      read.append(n)
      yield Question([('user', str(n))], [shown(32, 32 if n else 48)], GREEDY)

  said = answers.answer(Echo(), asked())
  assert next(said) == '0' and len(read) == wait + 1
  assert [next(said) for _ in range(wait - 1)] == [str(n) for n in range(1, wait)]
  assert len(read) == wait + 1  # they were answered while the first one waited
  assert list(said) == [str(n) for n in range(wait, 3 * wait)]


def test_questions_of_other_settings_are_never_in_one_batch():
  drawn = Settings.of({'do_sample': True, 'temperature': 0.7, 'top_p': 0.9})
  asked = [Question([('user', str(n))], [], (GREEDY, drawn)[n % 2]) for n in range(4)]
  echo = Echo()
  assert list(answers.answer(echo, asked, seed=5)) == ['0', '1', '2', '3']
  (_, first), (_, second) = echo.calls
  assert (first['temperature'], first['max_new_tokens'], first['seed']) == (0.0, 4, [5, 7])
  assert (second['temperature'], second['max_new_tokens'], second['seed']) == (0.7, 512, [6, 8])


def test_answers_end_before_the_first_stop():
  settings = Settings.of({'until': ['\n\n', 'END']})
  assert settings.cut(' one\ntwo END three\n\nfour') == 'one\ntwo'
  assert Settings.of({'until': 'b'}).cut('abc') == 'a'
  assert Settings.of({'until': None}).cut(' abc ') == 'abc'


def test_sampling_needs_do_sample_and_beams_are_refused():
  assert Settings.of({'temperature': 1.0}).temperature == 0.0
  with pytest.raises(UserError, match='no beam search'):
    Settings.of({'num_beams': 3})


@pytest.mark.parametrize(
  'height, width, bucket',
  [(100, 100, (512, 512)), (100, 130, (448, 576)), (100, 180, (384, 672)), (180, 100, (672, 384))],
)
def test_squash_keeps_the_whole_picture_and_cover_keeps_its_aspect(height, width, bucket):
  pixels = shown(height, width)
  pixels[:, 0] = pixels[0, :] = 255  # the left and the upper edge
  squashed = answers.show(Image.fromarray(pixels), 'squash', '512')
  covered = answers.show(Image.fromarray(pixels), 'cover', '512')
  assert squashed.shape[:2] == covered.shape[:2] == bucket
  assert squashed[0].min() > 100 and squashed[:, 0].min() > 100
  ratio = width / height - bucket[1] / bucket[0]
  if abs(ratio) > 0.02:  # enough of one edge is cropped
    assert (covered[0] if ratio < 0 else covered[:, 0]).min() < 100


def test_the_squashed_bucket_is_nearest_in_aspect_as_the_authors_measure_it():
  # 1.505 is nearer to 9:7 by difference, and to 7:4 by the logarithm that training uses.
  assert answers.show(shown(200, 301), 'squash', '512').shape[:2] == (448, 576)
  assert answers.show(shown(200, 301), 'cover', '512').shape[:2] == (384, 672)


def test_the_first_picture_or_all_of_them():
  pictures = [Image.fromarray(shown(32, 32)), '/clips/a.mp4']
  first, every = (
    answers.from_visuals('<image> what <image>?', pictures, Reading(images), '512', GREEDY)
    for images in ('first', 'all')
  )
  assert first.turns == every.turns == [('user', 'what ?')]
  assert len(first.visuals) == 1 and every.visuals[1] == pathlib.Path('/clips/a.mp4')


def test_messages_keep_their_pictures_in_place():
  picture = {'type': 'image', 'url': Image.fromarray(shown(32, 32))}
  text = lambda words: {'type': 'text', 'text': words}
  messages = [
    {'role': 'system', 'content': [text('Be brief.')]},
    {'role': 'user', 'content': [picture, text('Is it '), picture, text(' or not?')]},
  ]
  every = answers.from_messages(messages, Reading('all'), '512', GREEDY)
  assert every.turns[1] == ('user', '<image>\nIs it <image> or not?') and len(every.visuals) == 2
  first = answers.from_messages(messages, Reading('first'), '512', GREEDY)
  assert first.turns[1] == ('user', '<image>\nIs it  or not?') and len(first.visuals) == 1
  with pytest.raises(UserError, match="'audio'"):
    answers.from_messages(
      [{'role': 'user', 'content': [{'type': 'audio', 'url': 'a'}]}], Reading(), '512', GREEDY
    )


def test_a_picture_of_any_mode_is_squashed_upright_on_white():
  clear = Image.new('RGBA', (40, 30), (255, 0, 0, 0))
  assert (answers.show(clear, 'squash', '512') == 255).all()
  turned = Image.fromarray(shown(30, 40))
  exif = turned.getexif()
  exif[0x0112] = 6  # a quarter turn
  turned.info['exif'] = exif.tobytes()
  assert answers.show(turned, 'squash', '512').shape == (576, 448, 3)
