"""Cached decoding against the whole conversation run again for every token, and how tokens are
chosen.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.sample import small
from tuna_jax.data import tasks
from tuna_jax.data.segments import Image, layout
from tuna_jax.models.tuna import Tuna
from tuna_jax.sample import text as writing
from tuna_jax.sample.prompt import collate, strides
from tuna_jax.sample.text import Choice
from tuna_jax.tools.xla_cpu import quick_jit

EOS = small.tokenizer().eos
NEW = 12


@functools.cache
def examples():
  """Conversations of different length, two about pictures of different size."""
  rng, tokenizer, out = np.random.default_rng(3), small.tokenizer(), []
  for question, grid in (('what is this', (1, 2, 3)), ('a red ball make it blue', (1, 1, 2))):
    latents = rng.normal(size=(*grid, small.VAE.latent_channels)).astype(np.float32)
    plan = tasks.conversation(tokenizer, [('user', question)], [Image(latents)], header=True)
    out.append(layout(plan, tokenizer, strides(small.CONFIG)))
  return out


def prompts(rows=None, length=None):
  return collate(examples()[:rows], small.VAE.latent_channels, length)


def test_cached_decoding_of_ragged_rows_equals_running_each_row_whole_again():
  @quick_jit
  def next_token(params, batch, last):
    model, variables = Tuna(small.CONFIG), {'params': params}
    hidden = model.apply(
      variables, batch, batch.latents, jnp.ones(batch.target.shape), flow=False
    ).hidden
    return jnp.argmax(model.apply(variables, hidden[0, last], method='logits'))

  ours = writing.generate_text(small.CONFIG, small.params(), prompts(), eos=-1, max_new_tokens=NEW)
  for example, ids in zip(examples(), ours):
    batch = collate([example], small.VAE.latent_channels, 64)
    for n, token in enumerate(ids):
      at = example.length + n
      assert next_token(small.params(), batch, at - 1) == token
      batch.tokens[0, at], batch.segment[0, at], batch.position[0, at] = token, 1, at
  assert len({tuple(ids) for ids in ours}) == 2


def test_decoding_stops_at_the_end_token_and_keeps_it():
  first = writing.generate_text(small.CONFIG, small.params(), prompts(), eos=-1, max_new_tokens=NEW)
  ends = int(first[0][3])
  again = writing.generate_text(
    small.CONFIG, small.params(), prompts(), eos=ends, max_new_tokens=NEW
  )
  for before, after in zip(first, again):
    where = np.flatnonzero(before == ends)
    np.testing.assert_array_equal(after, before[: where[0] + 1] if len(where) else before)


def test_streaming_yields_the_same_ids_as_they_come():
  whole = writing.generate_text(
    small.CONFIG, small.params(), prompts(), eos=EOS, max_new_tokens=NEW
  )
  stream = list(
    writing.stream_text(
      small.CONFIG, small.params(), prompts(), eos=EOS, max_new_tokens=NEW, every=5
    )
  )
  assert len(stream) > 1
  for a, b in zip(stream[-1], whole):
    np.testing.assert_array_equal(a, b)


def test_a_row_draws_the_same_text_alone_and_in_a_batch():
  choice = Choice(1.0, top_k=20, top_p=0.9)
  draw = functools.partial(
    writing.generate_text, small.CONFIG, small.params(), eos=-1, max_new_tokens=NEW, choice=choice
  )
  both = draw(prompts(), seeds=[5, 6])
  np.testing.assert_array_equal(draw(prompts(1, 64), seeds=[5])[0], both[0])
  assert (draw(prompts(), seeds=[7, 6])[0] != both[0]).any()


def test_a_second_prompt_of_the_same_bucket_compiles_nothing():
  writing.generate_text(small.CONFIG, small.params(), prompts(), eos=EOS, max_new_tokens=NEW)
  before = writing._start._cache_size(), writing._advance._cache_size()
  other = prompts()
  other.tokens[:, 2] = 7
  writing.generate_text(small.CONFIG, small.params(), other, eos=5, max_new_tokens=NEW - 1)
  assert (writing._start._cache_size(), writing._advance._cache_size()) == before


@pytest.mark.parametrize(
  'top_k, top_p, kept',
  [
    (0, 1.0, {0, 1, 2, 3, 4}),
    (1, 1.0, {0}),
    (3, 1.0, {0, 1, 2, 3, 4}),
    (0, 0.5, {0}),
    (0, 0.51, {0, 1}),
    (0, 1e-6, {0}),
    (2, 0.7, {0}),
    (2, 0.72, {0, 1}),
    (9, 1.0, {0, 1, 2, 3, 4}),
  ],
)
def test_top_k_and_then_top_p_of_what_is_left_keep_the_best(top_k, top_p, kept):
  probability = np.array([[0.5, 0.2, 0.1, 0.1, 0.1]])  # equal to the third best: both stay
  out = writing.keep(jnp.log(probability), top_k, top_p)
  assert set(np.flatnonzero(np.isfinite(out[0]))) == kept


@pytest.mark.parametrize(
  'field, value', [('temperature', -1), ('top_k', -1), ('top_p', 0), ('top_p', 1.5)]
)
def test_a_choice_out_of_range_is_refused_by_name(field, value):
  with pytest.raises(ValueError, match=field):
    Choice(**{field: value})
