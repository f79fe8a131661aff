"""Names and messages that people know from elsewhere, and what a wrong one is told."""

import base64

import numpy as np
import pytest

from tests.sample import small
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.tasks import TaskConfig
from tuna_jax.sample import requests
from tuna_jax.sample.familiar import familiar
from tuna_jax.sample.generate import Generator
from tuna_jax.sample.output import Clip, Picture


class Called:
  """Returns what its methods were called with."""

  @familiar
  def draw(self, prompt, *, size=None, guidance=None, points=None, negative=''):
    return prompt, size, guidance, points, negative

  @familiar
  def ask(self, messages, images=(), *, max_new_tokens=5):
    return messages, images, max_new_tokens


def test_familiar_names_are_ours():
  found = Called().draw(
    'a cat', height=32, width=64, num_inference_steps=20, guidance_scale=2.0, negative_prompt='dog'
  )
  assert found == ('a cat', (32, 64), 2.0, 21, 'dog')
  assert Called().draw(prompt='a cat', size='32', points=3) == ('a cat', '32', None, 3, '')
  assert Called().ask('why?', max_tokens=7) == ('why?', (), 7)
  assert Called().ask(prompt='why?', image='a.png') == ('why?', 'a.png', 5)


@pytest.mark.parametrize(
  'call,said',
  [
    (lambda c: c.draw('a', sise=3), "draw: the argument 'sise' is unknown; nearest is 'size'"),
    (lambda c: c.draw('a', height=3), 'height and width go together'),
    (lambda c: c.draw('a', guidance=1.0, guidance_scale=2.0), 'guidance is given twice'),
    (lambda c: c.draw('a', prompt='b'), "'prompt' is given twice"),
    (lambda c: c.draw(size=3), 'draw: no prompt given'),
    (lambda c: c.ask('a', num_inference_steps=3), "'num_inference_steps' is unknown"),
    (lambda c: c.ask('a', (), 5, 6), 'ask: 4 arguments; it takes messages, images, max_new_tokens'),
  ],
)
def test_a_wrong_name_is_a_sentence(call, said):
  with pytest.raises(UserError, match=said):
    call(Called())


def test_messages_of_chat_services_are_conversations_with_pictures():
  picture = Picture(np.zeros((4, 4, 3), np.uint8), {})
  png = picture._repr_png_()
  url = 'data:image/png;base64,' + base64.b64encode(png).decode()
  asked = [
    {'role': 'system', 'content': 'be short'},
    {
      'role': 'user',
      'content': [
        {'type': 'image_url', 'image_url': {'url': url}},
        {'type': 'text', 'text': 'what is it?'},
        {'type': 'image', 'image': 'a.png'},
        {'type': 'image', 'image': picture},
      ],
    },
    {'role': 'assistant', 'content': None},
  ]
  (request,), many = requests.conversations(asked)
  turns, visuals, marked = requests.turns_of(request, ())
  assert not many and marked == ('user',)
  assert turns == [
    ('system', 'be short'), ('user', '<image>what is it?<image><image>'), ('assistant', '')
  ]  # fmt: skip
  assert visuals[0] == png and str(visuals[1]) == 'a.png' and visuals[2] is picture


@pytest.mark.parametrize(
  'part,said',
  [
    ({'type': 'image_url', 'image_url': {'url': 'https://a.b/c.png'}}, 'expected data:image'),
    ({'type': 'image_url', 'image_url': '/etc/passwd'}, 'expected data:image'),
    ({'type': 'image_url', 'image_url': 'data:image/png;base64,%%%'}, 'damaged base64'),
    ({'type': 'audio', 'audio': 'x'}, "of type 'audio'"),
  ],
)
def test_a_part_that_is_no_text_and_no_picture_is_named(part, said):
  with pytest.raises(UserError, match=said):
    requests.turns_of([{'role': 'user', 'content': [part]}], ())


@pytest.fixture(scope='module')
def generator():
  return Generator(
    small.CONFIG, small.params(), small.vae_params(), small.tokenizer(),
    media=MediaConfig('32', '32', 5), tasks=TaskConfig(system=None),
  )  # fmt: skip


@pytest.mark.parametrize(
  'call,said',
  [
    (lambda g: g.image(None), 'expected text, a conversation, or a list of them; found None'),
    (lambda g: g.image([]), 'found an empty list'),
    (lambda g: g.edit('make it blue', np.zeros((4, 4, 3))), 'found ndarray; edit takes .images,'),
    (lambda g: g.video(7), 'prompt: expected text or a list of texts, found int'),
    (lambda g: g.text(3), 'found int'),
    (
      lambda g: g.text('a', max_new_tokens='8'),
      "text: max_new_tokens='8': expected a whole number",
    ),
    (lambda g: g.text('a', temperature='a'), "text: temperature='a': expected a number, found str"),
    (lambda g: g.text('a', seed=None), 'seed: expected a whole number, or one per request'),
    (lambda g: list(g.stream('a', top_k=True)), 'stream: top_k=True: expected a whole number'),
    (lambda g: g.image('a', points=8.0), 'image: points=8.0: expected a whole number, found float'),
    (lambda g: g.image('a', solver=3), 'image: solver=3: expected text, found int'),
    (
      lambda g: g.image('a', num_inference_steps='8'),
      "num_inference_steps='8': expected a whole number from 1 on",
    ),
    (lambda g: g.image('a', size=(32,)), "expected one of .*'N' or 'HxW'"),
    (lambda g: g.image('a', negative=3), 'negative: expected text, or one text per request'),
    (lambda g: g.video('a', frames='5'), "video: frames='5': expected a whole number, found str"),
    (lambda g: g.video('a', fps=None), 'video: fps=None: expected a whole number, found None'),
    (lambda g: g.edit('a.png', 'b', shift='1'), "edit: shift='1': expected a number, found str"),
    (lambda g: g.edit('a.png', 'b', seed='1'), 'seed: expected a whole number'),
    (lambda g: g.edit('a.png', 'b', guidance='1'), "guidance scale='1': expected"),
    (lambda g: g.story('a', pictures='2'), "story: pictures='2': expected a whole number"),
    (
      lambda g: Generator(small.CONFIG, {}, {}, None, task='x'),
      "Generator: the argument 'task' is unknown; nearest is 'tasks'",
    ),
    (
      lambda g: Generator(small.CONFIG, {}, {}, None, tasks='x'),
      "Generator: tasks='x': expected TaskConfig, found",
    ),
  ],
)
def test_what_is_no_request_is_told_so(generator, call, said):
  with pytest.raises(UserError, match=said):
    call(generator)


def test_a_generator_says_what_it_is(generator):
  assert repr(generator).startswith('<Generator, design cascade, ')
  assert 'numbers in float32; pictures of 32, 16 at once>' in repr(generator)


def test_a_clip_shows_itself():
  clip = Clip(np.zeros((5, 16, 16, 3), np.uint8), 8, {'prompt': '<b>'})
  page = clip._repr_html_()
  assert page.startswith('<img src="data:image/gif;base64,R0lGOD') and '&lt;b&gt;' in page
