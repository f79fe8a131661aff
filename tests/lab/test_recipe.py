import numpy as np
import pytest
from tuna_jax.configs import compare

from tuna_jax import tree
from tuna_jax.config import UserError
from tuna_jax.lab import recipe, table
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.weights import fresh, store

SHORT = recipe.Recipe(
  steps=5, decoder=2, vae=2, encoders=(('siglip', 2), ('siglip2', 2), ('dinov3', 2))
)


def test_budgets_of_encoders_are_set_by_name():
  changed = dict(recipe.Recipe().with_encoders(['siglip:7']).encoders)
  assert changed == {**dict(recipe.Recipe().encoders), 'siglip': 7}
  for wrong in ('siglp:7', 'siglip', 'siglip:0'):
    with pytest.raises(UserError, match='expected NAME:STEPS with one of siglip'):
      recipe.Recipe().with_encoders([wrong])


def test_a_row_starts_from_the_decoder_the_encoder_and_fresh_leaves(tmp_path):
  model, lab = compare.model('12', 'tiny'), recipe.Lab(str(tmp_path), SHORT)
  shapes = tree.flatten(tuna_shapes(model))
  own = {leaf: fresh.fresh(leaf, aval, 7) for leaf, aval in shapes.items()}
  store.save(tmp_path / 'other', model, own)
  parts = {'decoder/.*': str(tmp_path / 'other'), recipe.LATENTS: str(tmp_path / 'other')}
  found = store.open_stored(lab.start(tmp_path / 'start', model, 0, parts)).params
  value = lambda leaves, leaf: leaves[leaf][()]
  differ = {leaf for leaf in shapes if not np.array_equal(value(found, leaf), value(own, leaf))}
  taken = [leaf for leaf in differ if leaf.startswith(('decoder/', 'vision/'))]
  assert taken == ['vision/patch_embed/kernel']
  assert 'connector/fc1/kernel' in differ and found.keys() == shapes.keys()


@pytest.mark.slow
def test_rows_of_every_design_train_are_scored_and_are_not_trained_again(tmp_path):
  rows = ('12', '8', '7', '3', '6', '13', '9')
  result = table.run(rows, 1, str(tmp_path), SHORT, 4)
  assert [r['row'] for r in result['runs']] == list(rows)
  assert {r['tokens'] for r in result['runs']} == {5 * 4 * 128}
  assert [len(v['items']) for r in result['runs'] for v in r['scores'].values()] == [4] * 36
  assert [m['seed'] for m in result['alignment']] == [0]
  (tmp_path / 'compare.json').unlink()
  before = (tmp_path / 'runs/12-0/stage2/metrics.jsonl').read_text()
  again = table.run(('12',), 1, str(tmp_path), SHORT, 4)
  assert again['runs'][0]['scores'] == result['runs'][0]['scores']
  assert (tmp_path / 'runs/12-0/stage2/metrics.jsonl').read_text() == before
