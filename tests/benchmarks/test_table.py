"""Results of every scorer beside the paper's numbers."""

import json
import subprocess
import sys

import pytest

from tuna_jax.benchmarks import paper, scorers, table
from tuna_jax.config import UserError

LMMS = {
  'results': {
    'mme': {'alias': 'mme', 'mme_perception_score,none': 1500.25},
    'ai2d': {'exact_match,flexible-extract': 0.714, 'exact_match_stderr,flexible-extract': 0.1},
    'mvbench': {'mvbench_accuracy,none': 54.0},
    'pope': {'pope_accuracy,none': 0.9},
  },
  'configs': {},
  'config': {'model_args': 'checkpoint=RUN', 'random_seed': 0, 'limit': None},
  'lmms_eval_version': '0.7.3',
  'date': '20261127_120000',
}


def write(folder, name, value):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_scores_of_lmms_eval_take_the_papers_units(tmp_path):
  write(tmp_path, 'a/20261127_120000_results.json', LMMS)
  found = table.collect([str(tmp_path)])
  assert found.scores == {
    'understanding': {'mme_perception': 1500.25, 'ai2d': pytest.approx(71.4)},
    'video': {'mvbench': 54.0},
  }
  page = table.markdown(found)
  assert '| ai2d | 71.4 | 71.4 | 79.3 | 69.0 | 78.6 |' in page
  assert '| gqa | - | 61.4 | 63.9 | 60.0 | 63.1 |' in page
  assert 'lmms-eval 0.7.3' in page and 'checkpoint=RUN' in page and 'seed 0' in page


def test_mvbench_is_the_mean_of_its_twenty_tasks(tmp_path):
  parts = {f'mvbench_{n}': {'mvbench_accuracy,none': float(n)} for n in range(20)}
  write(tmp_path, 'results.json', {**LMMS, 'results': {'mvbench': {' ,none': ' '}, **parts}})
  assert table.collect([str(tmp_path)]).scores == {'video': {'mvbench': 9.5}}
  del parts['mvbench_7']
  write(tmp_path, 'results.json', {**LMMS, 'results': parts})
  with pytest.raises(UserError, match='no results'):
    table.collect([str(tmp_path)])


def test_a_later_run_replaces_the_scores_of_an_earlier_and_a_limit_is_shown(tmp_path):
  write(tmp_path, '20261127_120000_results.json', LMMS)
  config = {**LMMS['config'], 'limit': 8}
  later = {**LMMS, 'config': config, 'results': {'ai2d': {'exact_match,none': 0.8}}}
  write(tmp_path, '20261128_120000_results.json', later)
  found = table.collect([str(tmp_path)])
  assert found.scores['understanding'] == {'mme_perception': 1500.25, 'ai2d': 80.0}
  assert 'ONLY 8 items' in table.markdown(found)


def test_the_files_of_the_official_scorers_are_read(tmp_path):
  rows = [{'tag': 'position', 'correct': True}, {'tag': 'counting', 'correct': False}]
  write(tmp_path, 'geneval/results.jsonl', '\n'.join(map(json.dumps, rows)))
  write(
    tmp_path,
    'dpg/results.txt',
    'a.png, 1.0\nL1 category scores:\n\tentity: 91.25\n\tother: 90.0\nDPG-Bench score: 86.5\n',
  )
  vbench = paper.TABLES['vbench'].of('Tuna 1.5B')
  dimensions = {
    k: [vbench[k] / 100, []] for k in {**scorers.VBENCH_QUALITY, **scorers.VBENCH_SEMANTIC}
  }
  for n, (name, value) in enumerate(dimensions.items()):
    write(tmp_path, f'vbench/{n}_eval_results.json', {name: value})
  types = {k: v for k, v in paper.TABLES['imgedit'].of('Tuna 7B').items() if k != 'overall'}
  write(tmp_path, 'imgedit/typescore.json', types)
  write(tmp_path, 'oneig/text_score_EN_1.csv', ',ED,CR,WAC,text score\ntuna,9,0.5,0.5,0.8\n')
  for name in ('alignment', 'style', 'reasoning', 'diversity'):
    write(tmp_path, f'oneig/{name}_score_EN_1.csv', f',{name}\ntuna,0.4\n')
  write(tmp_path, 'oneig/text_prompt_score_EN_1.csv', ',a,b\n000,1,2\n001,1,2\n')
  write(tmp_path, 'scores.json', {'gedit': {'overall': 6.5}})
  found = table.collect([str(tmp_path)]).scores
  assert found['geneval'] == {'position': 1.0, 'counting': 0.0, 'overall': 0.5}
  assert found['dpg'] == {'entity': 91.25, 'other': 90.0, 'overall': 86.5}
  assert round(found['vbench']['total'], 2) == vbench['total']
  assert round(found['imgedit']['overall'], 2) == 4.31
  assert found['oneig']['overall'] == pytest.approx((0.8 + 4 * 0.4) / 5)
  assert found['gedit'] == {'overall': 6.5}


def test_seeds_settings_and_digests_of_samples_stand_below_their_table(tmp_path):
  write(
    tmp_path,
    'manifest.json',
    {
      'benchmark': 'geneval',
      'weights_sha256': 'a' * 64,
      'prompts_sha256': 'b' * 64,
      'seeds': {'base': 42, 'same': True},
      'settings': {'points': 50},
      'begun_with': {'tuna_jax': '0.1.0', 'jax': '0.10'},
    },
  )
  write(tmp_path, 'results.jsonl', json.dumps({'tag': 'position', 'correct': True}))
  page = table.markdown(table.collect([str(tmp_path)]))
  assert 'seed 42, the same for each prompt; tuna_jax 0.1.0' in page
  assert 'weights aaaaaaaaaaaa' in page and '"points": 50' in page


@pytest.mark.parametrize(
  'files, says',
  [
    ({'notes.json': {'a': 1}}, 'no results in'),
    ({'scores.json': {'gedit': {}, 'genval': {}}}, "nearest is 'geneval'"),
    ({'text_score_EN_1.csv': ',ED,text score\na,1,1\nb,1,1\n'}, 'the row of one model, found a, b'),
  ],
)
def test_what_cannot_be_read_is_named(tmp_path, files, says):
  for name, value in files.items():
    write(tmp_path, name, value)
  with pytest.raises(UserError, match=says):
    table.collect([str(tmp_path)])


def test_the_command_writes_the_page(tmp_path):
  write(tmp_path, 'results.json', LMMS)
  command = [sys.executable, '-m', 'tuna_jax.cli.main', 'bench-table', str(tmp_path)]
  printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  page = tmp_path / 'page.md'
  subprocess.run([*command, f'--output={page}'], capture_output=True, check=True)
  assert page.read_text() == printed.removesuffix('\n') and '| ai2d | 71.4 |' in printed
