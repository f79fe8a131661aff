"""Pictures that prompts ask for: what ceilings and floors are measured on."""

import numpy as np
import pytest

from tuna_jax.toy import captions, drawing, judge, records, world


@pytest.mark.parametrize('kind', records.PROMPTS)
def test_a_rendered_prompt_is_right_by_the_judge(kind):
  for i in range(12):
    record = records.prompt(kind, i)
    assert judge.score_t2i(drawing.render(record['prompt'], i), record)


def test_what_a_prompt_leaves_open_differs_between_numbers():
  pictures = {drawing.render('a red circle and a blue square', i).tobytes() for i in range(8)}
  assert len(pictures) > 4


def test_a_shuffled_prompt_is_never_the_own_one():
  texts = [records.prompt('count', i)['prompt'] for i in range(100)]  # 42 differ, the rest repeat
  claims = [captions.parse_caption(t) for t in texts]
  assert all(a != b for a, b in zip(claims, drawing.others(claims)))


def test_what_the_judge_saw_is_said_in_words():
  red = world.Thing('circle', 'red', 'large', 'top left')
  cut = world.render(world.Scene((red, world.Thing('square', 'blue', 'small', 'top right'))))
  cut[:16, :32] = 255  # half of the circle
  said = drawing.seen(judge.detect(cut))
  assert 'blob' in said and said.endswith('and a small blue square at the top right')
  assert drawing.seen(judge.detect(np.full_like(cut, 255))) == 'nothing'
