"""The page of what the model sees."""

import numpy as np

from tuna_jax.data import segments, tasks
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.evals.reconstruct import Rebuilt
from tuna_jax.tools import preview


def test_the_page_shows_what_is_learned_and_what_is_drawn():
  tokenizer = Tokenizer.train(['red ball', 'user\n', 'assistant\n', 'Look.'], 320)
  context = tasks.Context(
    tokenizer, tasks.TaskConfig(system=None, caption_dropout=0, questions=('Look.',))
  )
  picture, rng = np.zeros((16, 16, 3), np.uint8), np.random.default_rng(0)
  record = {'image': picture, 'caption': 'red <b>ball'}
  examples = [
    (t, segments.layout(tasks.TASKS[t].plan(record, context, rng), tokenizer, (4, 16)))
    for t in ('t2i', 'caption')
  ]
  page = preview.page(examples, tokenizer)
  assert 'the VAE' not in page
  drawn, described = page.split('<h3>')[1:]
  assert 'span target' in drawn and 'class="learned"' not in drawn
  assert 'span target' not in described
  assert described.count('class="learned"') == len(tokenizer.encode('red <b>ball')) + 1
  assert '<b>' not in page and page.count('data:image/png') == 2


def test_the_page_warns_of_a_vae_that_does_not_fit():
  pictures = [np.full((16, 16, 3), n, np.uint8) for n in (0, 255)]
  page = preview.page([], Tokenizer.train(['red ball'], 320), Rebuilt(12.3, [tuple(pictures)]))
  assert 'THE VAE DOES NOT FIT' in page and '12.3 dB' in page and page.count('data:image/png') == 2
