"""What each task's plan lays out."""

import numpy as np
import pytest

from tuna_jax.data import tasks
from tuna_jax.data.segments import Image, Video, layout
from tuna_jax.data.tokenizer import Tokenizer

PICTURE = np.zeros((16, 16, 3), np.uint8)
CLIP = np.zeros((5, 16, 16, 3), np.uint8)
LATENT = np.zeros((1, 1, 1, 48), np.float32)
TOKENIZER = Tokenizer.train(
  ['a red ball', 'user\n', 'assistant\n', 'what is it?', 'make it blue', 'Look.'], 320
)
RNG = np.random.default_rng(0)
SPAN = '<|vision_start|><|image_pad|><|image_pad|><|vision_end|>'
CLIP_SPAN = '<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>'
TALK = [{'from': 'human', 'value': '<image>\nwhat is it?'}, {'from': 'gpt', 'value': 'a red ball'}]


def context(**config):
  return tasks.Context(
    TOKENIZER,
    tasks.TaskConfig(
      **{
        'system': None,
        'questions': ('Look.',),
        'caption_dropout': 0,
        'video_questions': ('Look.',),
        **config,
      }
    ),
  )


def laid_out(task, record, **config):
  return layout(tasks.TASKS[task].plan(record, context(**config), RNG), TOKENIZER, (4, 16))


def written(example):
  return TOKENIZER.decode(example.tokens, skip_special=False)


def learned(example):
  return TOKENIZER.decode(example.labels[example.label_weight > 0], skip_special=False)


def test_generation_is_bos_text_span_eos_without_text_loss():
  e = laid_out('t2i', {'image': PICTURE, 'caption': 'a red ball'})
  assert written(e) == f'<|im_start|>a red ball{SPAN}<|im_end|>'
  assert not e.label_weight.any() and e.target.tolist() == [True]


def test_a_dropped_caption_leaves_bos_boi():
  e = laid_out('t2i', {'image': PICTURE, 'caption': 'a red ball'}, caption_dropout=1)
  assert written(e) == f'<|im_start|>{SPAN}<|im_end|>'


def test_captions_are_dropped_at_the_configured_rate():
  ctx, rng = context(caption_dropout=0.1), np.random.default_rng(1)
  dropped = sum(ctx.maybe('x', rng) == '' for _ in range(4000))
  assert abs(dropped / 4000 - 0.1) < 0.02  # four standard deviations


def test_an_edit_is_source_instruction_target():
  e = laid_out('edit', {'raw_image': PICTURE, 'out_image': PICTURE, 'instruction': 'make it blue'})
  assert written(e) == f'<|im_start|>{SPAN}make it blue{SPAN}<|im_end|>'
  assert e.target.tolist() == [False, True] and not e.label_weight.any()


def test_an_edit_may_have_several_sources():
  e = laid_out(
    'edit', {'raw_image': [PICTURE, PICTURE], 'out_image': PICTURE, 'instruction': 'make it blue'}
  )
  assert e.target.tolist() == [False, False, True]


def test_a_clip_is_one_span():
  e = laid_out('t2v', {'video': CLIP, 'caption': 'a red ball'})
  assert written(e) == f'<|im_start|>a red ball{CLIP_SPAN}<|im_end|>' and e.grid.tolist() == [
    [2, 1, 1]
  ]


@pytest.mark.parametrize(
  'task, record, span',
  [
    ('caption', {'image': PICTURE, 'caption': 'a red ball'}, SPAN),
    ('video_caption', {'video': CLIP, 'caption': 'a red ball'}, CLIP_SPAN),
  ],
)
def test_a_caption_is_an_answer_to_a_standing_request(task, record, span):
  e = laid_out(task, record)
  assert (
    written(e)
    == f'<|im_start|>user\n{span}\nLook.<|im_end|>\n<|im_start|>assistant\na red ball<|im_end|>'
  )
  assert learned(e) == 'a red ball<|im_end|>' and not e.target.any()


def test_only_answers_are_learned_in_every_turn():
  talk = [*TALK, {'from': 'human', 'value': 'what?'}, {'from': 'gpt', 'value': 'blue'}]
  e = laid_out('vqa', {'image': PICTURE, 'conversations': talk})
  assert learned(e) == 'a red ball<|im_end|>blue<|im_end|>'


@pytest.mark.parametrize('mark', ['<image>', '<video>'])
def test_a_clip_can_be_asked_about(mark):
  talk = [{'from': 'human', 'value': f'{mark}\nwhat?'}, TALK[1]]
  assert f'user\n{CLIP_SPAN}\nwhat?' in written(
    laid_out('video_vqa', {'video': CLIP, 'conversations': talk})
  )


def test_the_system_turn_is_qwen_s_by_default():
  e = laid_out('text', {'conversations': TALK[1:]}, system=tasks.QWEN_SYSTEM)
  assert written(e).startswith(
    f'<|im_start|>system\n{tasks.QWEN_SYSTEM}<|im_end|>\n<|im_start|>assistant\n'
  )


def test_text_has_no_span_and_can_be_learned_whole():
  talk = [{'from': 'human', 'value': 'what?'}, TALK[1]]
  e = laid_out('text', {'conversations': talk}, learn='everything')
  assert e.images == 0 and e.label_weight.tolist() == [1.0] * (e.length - 1) + [0.0]


def test_pictures_stand_at_their_marks():
  talk = [{'from': 'human', 'value': 'Look. <image> what <image>?'}, TALK[1]]
  e = laid_out('vqa', {'image': [PICTURE, PICTURE], 'conversations': talk})
  assert f'user\nLook. {SPAN} what {SPAN}?<|im_end|>' in written(e)


def test_a_picture_without_a_mark_stands_first():
  e = laid_out(
    'vqa', {'image': PICTURE, 'conversations': [{'from': 'human', 'value': 'what?'}, TALK[1]]}
  )
  assert f'user\n{SPAN}\nwhat?' in written(e)


def test_more_marks_than_pictures_are_refused():
  with pytest.raises(ValueError, match='1 <image> marks, 0 pictures'):
    laid_out('text', {'conversations': TALK})


@pytest.mark.parametrize(
  'talk', [[{'from': 'bot', 'value': 'x'}], [{'from': 'human', 'value': 'x'}], ['x']]
)
def test_malformed_conversations_are_refused(talk):
  with pytest.raises(ValueError, match='conversations'):
    tasks.turns_of({'conversations': talk})


def test_a_caption_cannot_smuggle_in_special_tokens():
  e = laid_out('caption', {'image': PICTURE, 'caption': 'x<|im_end|><|image_pad|>'})
  assert (e.tokens == TOKENIZER.eos).sum() == 2 and (e.tokens == TOKENIZER.img_pad).sum() == 2


def asked(turns):
  """The prompt of a conversation about a picture, as a generator lays it out."""
  return layout(
    tasks.conversation(TOKENIZER, turns, [Image(PICTURE)], header=True), TOKENIZER, (4, 16)
  )


def test_a_question_s_prompt_is_the_beginning_of_its_training_example():
  trained = laid_out('vqa', {'image': PICTURE, 'conversations': TALK})
  prompt = asked([('user', 'what is it?')])
  np.testing.assert_array_equal(prompt.tokens, trained.tokens[: prompt.length])
  assert prompt.length + len(TOKENIZER.encode('a red ball')) + 1 == trained.length


def test_a_later_turn_s_prompt_is_the_beginning_of_its_training_example():
  talk = [*TALK, {'from': 'human', 'value': 'what?'}, {'from': 'gpt', 'value': 'blue'}]
  trained = laid_out('vqa', {'image': PICTURE, 'conversations': talk})
  prompt = asked([*tasks.turns_of({'conversations': TALK}), ('user', 'what?')])
  np.testing.assert_array_equal(prompt.tokens, trained.tokens[: prompt.length])


@pytest.mark.parametrize(
  'task, record, plan',
  [
    (
      't2i',
      {'image': PICTURE, 'caption': 'a red ball'},
      tasks.generation(TOKENIZER, 'a red ball', Image(LATENT, True)),
    ),
    (
      't2v',
      {'video': CLIP, 'caption': 'a red ball'},
      tasks.generation(TOKENIZER, 'a red ball', Video(LATENT.repeat(2, 0), True)),
    ),
    (
      'edit',
      {'raw_image': PICTURE, 'out_image': PICTURE, 'instruction': 'a red ball'},
      tasks.editing(TOKENIZER, [Image(PICTURE)], 'a red ball', Image(LATENT, True)),
    ),
  ],
)
def test_a_drawing_prompt_is_its_training_example(task, record, plan):
  trained = laid_out(task, record)
  prompt = layout(plan, TOKENIZER, (4, 16))
  for name in ('tokens', 'slot', 'kv_limit', 'target', 'grid'):
    np.testing.assert_array_equal(getattr(prompt, name), getattr(trained, name))


def test_an_unknown_task_names_the_nearest():
  with pytest.raises(ValueError, match="nearest is 'video_caption'"):
    tasks.check_task('vido_caption')
