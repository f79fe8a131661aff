import json
import pathlib
import subprocess
import sys

import pytest
from tuna_jax.configs import compare

from tuna_jax import sharding
from tuna_jax.config import UserError
from tuna_jax.lab import recipe, table
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.tools import compiled

ROOT = pathlib.Path(__file__).parents[2]
WITHIN = 0.03  # parameters of the rows at tiny size


def test_rows_at_tiny_size_have_equal_numbers_of_parameters():
  counts = [table.parameters(name) for name in compare.ROWS]
  assert max(counts) / min(counts) <= 1 + WITHIN


def test_rows_with_the_same_data_train_alike_but_for_the_model():
  first, *others = (compare.config(name, 'tiny', 'stage2') for name in ('7', '8', '9', '12'))
  for other in others:
    assert compare.replace(other, model=first.model) == first


def test_rows_of_the_table_are_configs_at_both_sizes():
  for name in ('1', '13'):
    for which in (name, f'{name}-stage1', f'{name}-tiny', f'{name}-tiny-stage1'):
      config = compare.common.from_config_dict(compare.get_config(which))
      assert config.model == compare.model(name, 'tiny' if 'tiny' in which else '1.5b')
    assert sharding.shardings(tuna_shapes(config.model), sharding.make_mesh())
  with pytest.raises(UserError, match='expected one of 1, 2'):
    compare.get_config('99-tiny')
  with pytest.raises(UserError, match="1.5b has no encoder 'siglip2-medium'"):
    compare.get_config('12m')
  with pytest.raises(UserError, match='expected ROW'):
    compare.get_config('1-huge')


def test_the_compiler_took_every_row_of_the_paper_for_16_chips_of_v5e():
  answers = compiled.Answers(exact=False)
  for name in (name for name, row in compare.ROWS.items() if row.encoder != 'siglip2-medium'):
    answer = answers.find(
      compiled.step_of(compare.config(name, '1.5b', 'stage2'), 'v5e:4x4')
    )  # fmt: skip
    assert not answer['reason'] and answer['peak'] < 12 * 2**30, name


def found(monkeypatch, tmp_path, rows=('12', '8'), **options):
  """compare.json of rows whose training and scoring is counted and not done."""
  trained = []

  def row(lab, name, seed):
    trained.append((name, seed))
    return name

  def score(run, data, n):
    items = [int(run == '12' or i % 2) for i in range(n)]
    return {t: {'items': items, 'floor': 0.0, 'ceiling': 1.0} for t in table.scores.tasks(data)}

  monkeypatch.setattr(table.Lab, 'row', row)
  monkeypatch.setattr(table.scores, 'score', score)
  options = {'seeds': 2, 'recipe': recipe.Recipe(), 'n': 20, **options}
  return table.run(rows, out=str(tmp_path), say=lambda line: None, **options), trained


def test_runs_that_compare_json_has_are_not_made_again(monkeypatch, tmp_path):
  _, trained = found(monkeypatch, tmp_path)
  assert trained == [('12', 0), ('8', 0), ('12', 1), ('8', 1)]
  again, trained = found(monkeypatch, tmp_path, rows=('12', '8', '9'))
  assert trained == [('9', 0), ('9', 1)]
  assert again == json.loads((tmp_path / 'compare.json').read_text())


def test_another_recipe_does_not_go_on_with_these_runs(monkeypatch, tmp_path):
  found(monkeypatch, tmp_path)
  with pytest.raises(UserError, match="begun with recipe .*'steps': 1600.*take another --out"):
    found(monkeypatch, tmp_path, recipe=recipe.Recipe(steps=10))


def test_the_page_says_which_claims_hold(monkeypatch, tmp_path):
  result, _ = found(monkeypatch, tmp_path, seeds=3)
  verdict = {c['what']: c['verdict'] for c in result['claims']}
  assert verdict['row 12 over row 8, reading'] == 'holds'
  assert verdict['row 9 over row 7, drawing'] == 'not run'
  page = (tmp_path / 'index.html').read_text()
  assert '50.0 [' in page and '1361' in page and 'does not hold' not in page


def test_the_table_that_is_kept_follows_from_the_verdicts_that_are_kept():
  kept = json.loads((ROOT / 'docs' / 'comparison' / 'compare.json').read_text())
  assert len(kept['runs']) == 21 and kept['recipe'] == recipe.Recipe().to_dict()
  again = table.concluded(kept)
  for name in ('what', 'verdict'):
    assert [c[name] for c in again['claims']] == [c[name] for c in kept['claims']]
  for row, scores in again['table'].items():
    for task, found in scores.items():
      assert found['mean'] == pytest.approx(kept['table'][row][task]['mean'])
  text = (ROOT / 'docs' / 'comparison.md').read_text()
  for claim in again['claims']:
    if claim['difference']:
      low, high = (f'{100 * claim["difference"][end]:+.1f}' for end in ('low', 'high'))
      assert f'[{low}, {high}]' in text, claim['what']


def test_the_command_trains_the_recipe_where_no_flag_is_given():
  """In a process of its own, since flags of two verbs have equal names."""
  asked = "{n: compare.flags.FLAGS[n].default for n in ('steps', 'decoder', 'vae')}"
  code = f'import json; from tuna_jax.cli import compare; print(json.dumps({asked}))'
  said = json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True).stdout)
  assert said == {name: getattr(recipe.Recipe(), name) for name in ('steps', 'decoder', 'vae')}
