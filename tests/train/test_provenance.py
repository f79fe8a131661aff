"""A run is not continued on other ground without a word."""

import dataclasses
import json
import shutil

import pytest

from tests.chaos.test_damage import CONFIG, make_run
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import fingerprint
from tuna_jax.data.sources import SourceConfig, open_source
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.train import checkpoint, provenance
from tuna_jax.weights import store

GROUND = {
  'mixture': [{'task': 't2i', 'weight': 1.0, 'records': 40, 'digest': 'ab'}],
  'phases': [[0.0, [['t2i', 1.0]]]],
  'tokenizer': 'aa', 'vae': 'bb', 'tasks': {'max_text': 0, 'learn': 'answers'},
  'media': {'image_size': '64', 'frames': 9}, 'rows': 8, 'sizes': [160, 64, 4], 'seed': 0,
  'look_ahead': 3,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
  make_run(tmp_path / 'run')
  checkpoint.Checkpoints(str(tmp_path / 'run'), CONFIG).write_config(GROUND)
  return tmp_path / 'run'


def check(run, allowed=(), config=CONFIG, **changes):
  return provenance.check(run, config, {**GROUND, **changes}, allowed)


@pytest.mark.parametrize(
  'changes, told',
  [
    ({'mixture': GROUND['mixture'] * 2}, r'mixture \(1 sources -> 2\)'),
    (
      {'mixture': [{**GROUND['mixture'][0], 'records': 30}]},
      r'mixture \(source 0: records 40 -> 30',
    ),
    ({'tokenizer': 'xx'}, r"tokenizer \('aa' -> 'xx'\)"),
    ({'vae': 'xx'}, 'vae '),
    ({'tasks': {'max_text': 9, 'learn': 'answers'}}, r'tasks \(max_text 0 -> 9\)'),
    ({'media': {'image_size': '32', 'frames': 9}}, r"media \(image_size '64' -> '32'\)"),
    ({'rows': 4}, r'rows \(8 -> 4\)'),
    ({'seed': 1}, r'seed \(0 -> 1\)'),
    ({'look_ahead': 0}, r'look_ahead \(3 -> 0\)'),
  ],
)
def test_what_would_change_a_run_is_refused_until_it_is_allowed(run, changes, told, caplog):
  (name,) = changes
  with pytest.raises(ValueError, match=f'began with another {told}.*--allow-change={name}$'):
    check(run, **changes)
  assert check(run, [name], **changes) == {name} and f'{name}: ' in caplog.text


def test_the_same_ground_is_no_change_and_other_fields_are_named(run, caplog):
  assert check(run) == set() and not caplog.text
  optimizer = dataclasses.replace(CONFIG.optimizer, lr=0.5)
  assert check(run, config=dataclasses.replace(CONFIG, optimizer=optimizer, keep=9)) == set()
  lr = CONFIG.optimizer.lr
  assert f'continues with changes: optimizer.lr: {lr} -> 0.5; keep: 3 -> 9' in caplog.text


def test_a_run_that_has_saved_nothing_has_not_begun(run):
  shutil.rmtree(run / 'checkpoints')
  assert check(run, rows=4) == set()


def test_a_field_that_is_none_is_refused_by_name(run):
  with pytest.raises(ValueError, match=r"allow-change=tokeniser: .*nearest is 'tokenizer'"):
    check(run, ['tokeniser'])


def test_a_run_keeps_paths_that_are_found_from_any_folder(run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = dataclasses.replace(
    CONFIG, vae='vae', data=dataclasses.replace(CONFIG.data, mixture='m.json')
  )
  kept = provenance.as_kept(config)
  assert kept['vae'] == f'{tmp_path}/vae' and kept['data']['mixture'] == f'{tmp_path}/m.json'
  assert provenance.as_kept(CONFIG)['data']['mixture'] == 'shapes'


def test_another_tokenizer_takes_the_place_of_the_runs(run):
  saver, words = checkpoint.Checkpoints(str(run), CONFIG), Tokenizer.train(['a b c'], 300)
  saver.begin(words, GROUND)
  saver.begin(Tokenizer.train(['x y z and more'], 310), GROUND)
  saver.close()
  assert Tokenizer.from_dir(run / 'tokenizer').digest != words.digest
  assert store.read_config(run)['notes']['ground'] == GROUND  # and nothing is damaged


def records(path, texts):
  turns = lambda text: [{'from': 'human', 'value': text}, {'from': 'gpt', 'value': 'yes'}]
  path.write_text('\n'.join(json.dumps({'conversations': turns(text)}) for text in texts))
  return fingerprint(open_source(SourceConfig(str(path), 'text'), MediaConfig()))


def test_a_fingerprint_is_of_the_records_and_not_of_their_place(tmp_path):
  (tmp_path / 'b').mkdir()
  texts = [f'question {n}' for n in range(100)]
  first = records(tmp_path / 'a.jsonl', texts)
  assert first == records(tmp_path / 'b' / 'c.jsonl', texts)
  for other in (texts[:-1], [*texts[:-1], 'question xx'], texts[::-1], [t.upper() for t in texts]):
    assert records(tmp_path / 'a.jsonl', other) != first
