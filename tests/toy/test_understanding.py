"""The items of the understanding rows and their floors."""

from tuna_jax.toy import judge, scenes, understanding, world


def test_items_are_held_out_and_what_a_floor_knows_is_not():
  held, known = understanding.held_out('vqa', 20), understanding.known('vqa', 20)
  shown = lambda records: [world.Scene.from_dict(r['scene']) for r in records]
  assert all(map(scenes.held_out, shown(held))) and not any(map(scenes.held_out, shown(known)))


def test_the_longest_caption_fits_into_its_tokens():
  words = [len(r['caption'].split()) for r in understanding.held_out('caption', 200)]
  assert max(words) < understanding.CAPTION_TOKENS


def test_a_prior_answers_every_type_of_question():
  for task in ('vqa', 'video_vqa'):
    prior = judge.answer_prior(understanding.known(task, 300))
    assert {r['type'] for r in understanding.held_out(task, 100)} <= set(prior)
