"""Stories of text and pictures, clips that begin with a picture, clips seen as pooled frames."""

import copy

import numpy as np
import pytest

from tests.sample.test_designs import generator as of_design
from tests.sample.test_designs import pixels as picture_of
from tests.sample.test_generate import FEW, generator, pixels
from tuna_jax.config import UserError
from tuna_jax.data.segments import Text, layout
from tuna_jax.sample import asking, requests, showo2, story
from tuna_jax.sample.output import Picture
from tuna_jax.sample.prompt import collate
from tuna_jax.sample.text import Choice, generate_text, start

SEED = 5
STORY = {'size': '32', 'max_new_tokens': 6, 'temperature': 1.0, 'seed': SEED, **FEW}


def opening(made, prompt: str, flag: str = ''):
  """`made`, with the second token that it writes as the one that opens a picture; and the first."""
  words = copy.copy(made.tokenizer)
  plan = [Text((words.bos, *words.encode(flag), *words.encode(prompt)))]
  prompts = collate([layout(plan, words, made.config.strides)], made.config.token_dim)
  how = {'eos': -1, 'max_new_tokens': 6, 'choice': Choice(1.0), 'seeds': [SEED]}
  ids = generate_text(made.config, made.params, prompts, **how)[0].tolist()
  words.boi = next(token for token in ids if token != ids[0])
  again = copy.copy(made)
  again.tokenizer = words
  return again, words.decode(ids[: ids.index(words.boi)])


def test_a_story_alternates_text_and_pictures():
  made, said = opening(generator(), 'a red ball')
  told = made.story('a red ball', 2, **STORY)
  assert told[0] == said
  assert isinstance(told[1], Picture) and told[1].pixels.shape == (32, 32, 3)
  assert told[1].info['prompt'] == 'a red ball' and told[1].info['seed'] == SEED
  first = made.story('a red ball', 1, **STORY)
  assert len(first) == 2 and (first[1].pixels == told[1].pixels).all()


def test_a_story_that_opens_no_picture_is_its_text():
  made = copy.copy(generator())
  made.tokenizer = copy.copy(made.tokenizer)
  made.tokenizer.boi = made.tokenizer.pad  # never written
  told = made.story('a red ball', 2, **STORY)
  assert len(told) == 1 and isinstance(told[0], str)


@pytest.mark.slow
def test_a_story_of_show_o2_begins_with_its_flag():
  made, said = opening(of_design('late_fusion'), 'a ball', showo2.STORY)
  told = made.story('a ball', 1, **{**STORY, 'size': '32x48'})
  assert told[0] == said and told[1].pixels.shape == (32, 48, 3)


@pytest.mark.parametrize('compat, time', [('clean', 1.0), ('official', 0.0)])
def test_show_o2_writes_behind_pictures_of_the_time_of_its_scripts_where_asked(
  monkeypatch, compat, time
):
  made, wrote = copy.copy(of_design('late_fusion', compat=compat)), []

  def write(config, params, prompts, **how):
    wrote.append((prompts.image.max(initial=0), how['time']))
    return [np.int32([made.tokenizer.boi])]

  monkeypatch.setattr(story, 'generate_text', write)
  made.draw = lambda branches, *_: [np.zeros((1, 2, 2, made.config.drawn_dim), np.float32)]
  assert len(made.story('a ball', 2, size='32')) == 2
  assert wrote == [(0, time), (1, time)]


def test_the_time_of_a_picture_changes_what_is_written_behind_it():
  made = of_design('late_fusion')
  (asked,) = asking.asked(made, [requests.turns_of('what', [picture_of(made)])], 6)
  prompts = asking.collated(made, [asked])[0]
  logits = [start(made.config, made.params, prompts, 6, time=t).logits for t in (0.0, 1.0)]
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_a_clip_begins_with_the_picture_that_it_is_given():
  made, first = generator(), pixels(16, 16, seed=3)
  clip = made.video('a red ball', frames=5, size='16', images=first, **FEW)
  wanted = made.decode(made.encode([first[None]]))[0][0]
  # the decoder of the VAE is causal: the first frame is that of the picture alone
  assert np.abs(clip.pixels[0].astype(int) - wanted).max() <= 1
  free = made.video('a red ball', frames=5, size='16', **FEW)
  assert (free.pixels[0] != clip.pixels[0]).any() and (free.pixels[4] != clip.pixels[4]).any()
  with pytest.raises(UserError, match='begins with one picture, found 2'):
    made.video('x', frames=5, images=[first, first])


@pytest.mark.parametrize('compat', ['clean', pytest.param('official', marks=pytest.mark.slow)])
def test_show_o2_sees_a_clip_as_pooled_pictures(compat):
  made = of_design('late_fusion', compat=compat)
  made.pooled = 3, 2
  picture = picture_of(made)
  clip = np.stack([picture_of(made) // (n + 1) for n in range(5)])
  parsed = [requests.turns_of('what is this', [clip]), requests.turns_of('what is this', [picture])]
  film, still = asking.asked(made, parsed, 6)
  assert film.example.cells == 3 * 4 and film.example.images == 1 and still.features is None
  frames = requests.read_frames(clip, made.media, 3)
  tokens = np.concatenate([made.encode([frame[None]])[0] for frame in frames])
  whole = showo2.see(made.params, tokens, config=made.config)
  assert film.features.shape == (12, made.config.decoder.dim)
  wanted = showo2.pool(whole.reshape(3, -1, whole.shape[-1]), tokens.shape[1:3], 2)[0]
  np.testing.assert_allclose(film.features, wanted, atol=1e-5)
  at = int(np.flatnonzero(film.example.slot == 0)[0]) + 1
  last = tokens[0, ..., 0].size if compat == 'official' else 11  # F3: one late, as of one picture
  assert film.example.kv_limit[at] == at + last
  answers = made.text(['what is this'] * 2, [clip, picture], max_new_tokens=6)
  assert answers[1] == made.text('what is this', picture, max_new_tokens=6)
  assert answers[0] == ''.join(made.stream('what is this', clip, max_new_tokens=6))
