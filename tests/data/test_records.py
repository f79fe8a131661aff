"""Whatever a record holds, it is used or named: file, line and reason; never an end of the run."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data import examples, media, mixture
from tuna_jax.data.jsonl import JsonlSource, nesting
from tuna_jax.data.limits import Limits
from tuna_jax.data.records import BadRecord, guard, usable
from tuna_jax.data.sources import SourceConfig, read_mixture
from tuna_jax.data.tasks import Context
from tuna_jax.data.tokenizer import Tokenizer

CONFIG = media.MediaConfig('64', '64', 9)
TALK = [{'from': 'human', 'value': 'hi'}, {'from': 'gpt', 'value': 'yo'}]
TOKENIZER = Tokenizer.train(['a cat. what is this?'], 384)
BOM = b'\xef\xbb\xbf'


@pytest.fixture
def root(tmp_path):
  Image.new('RGB', (64, 64), 'red').save(tmp_path / 'a.png')
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'empty.png').touch()
  (tmp_path / 'empty.mp4').touch()
  (tmp_path / 'noise.mp4').write_bytes(np.random.default_rng(0).bytes(10_000))
  (tmp_path / 'noise.gif').write_bytes(b'GIF89a' + np.random.default_rng(0).bytes(5_000))
  os.symlink('/dev/zero', tmp_path / 'zero.png')
  return tmp_path


def source(root, task, *records, config=CONFIG):
  lines = [
    r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode()
    for r in records
  ]
  (root / 'x.jsonl').write_bytes(b'\n'.join(lines) + b'\n')
  return JsonlSource(SourceConfig(str(root / 'x.jsonl'), task), config)


def picture(**fields):
  return {'image': 'a.png', 'caption': 'x', 'conversations': TALK, **fields}


def clip(value):
  return {'video': value, 'caption': 'x'}


BAD = [
  ('vqa', picture(conversations=None), 'expected a list of turns'),
  ('vqa', picture(conversations=5), 'expected a list of turns'),
  ('vqa', picture(conversations=True), 'expected a list of turns'),
  ('vqa', picture(conversations='hello'), 'expected a list of turns'),
  ('vqa', picture(conversations={'a': 1}), 'expected a list of turns'),
  ('vqa', picture(conversations=[None]), r'conversations\[0\]'),
  ('vqa', picture(conversations=[{'from': ['human'], 'value': 'x'}]), r'conversations\[0\]'),
  ('text', {'conversations': [{'from': {}, 'value': 'x'}]}, r'conversations\[0\]'),
  ('text', {'conversations': []}, 'no answer'),
  ('text', '{"conversations": NaN}', 'expected a list of turns'),
  ('text', '{"conversations": 1e999}', 'expected a list of turns'),
  ('text', '{"conversations": ' + '9' * 5000 + '}', 'not JSON'),
  ('text', {'conversations': [TALK[0], {'from': 'gpt', 'value': '\udcff'}]}, 'surrogate'),
  ('caption', picture(caption='lone \ud800'), 'letter 5 is half of a surrogate pair'),
  ('caption', picture(caption=7), 'caption is empty'),
  ('caption', picture(caption=['a']), 'caption is empty'),
  ('caption', picture(caption=None), 'caption is empty'),
  ('caption', picture(caption='x' * 2_000_000), 'limits.text'),
  ('caption', picture(image='a\0.png'), 'null'),
  ('caption', picture(image='\ud800.png'), 'surrogate'),
  ('caption', picture(image='x' * 5000), 'File name too long|leaves'),
  ('caption', picture(image='sub'), 'Is a directory|not a regular file'),
  ('caption', picture(image='.'), 'Is a directory|not a regular file'),
  ('caption', picture(image='zero.png'), 'leaves the root'),
  ('caption', picture(image='gs://bucket/a.png'), 'gs://bucket/a.png'),
  ('caption', picture(image='https://example.com/a.png'), 'download it'),
  ('caption', picture(image={'a': 1}), 'expected a path'),
  ('caption', picture(image=None), 'expected a path'),
  ('caption', picture(image=3.5), 'expected a path'),
  ('caption', picture(image=['a.png']), 'expected one path'),
  ('caption', picture(image='empty.png'), 'empty file'),
  ('vqa', picture(image=[['a.png']]), 'expected a path'),
  ('vqa', picture(image=['a.png', None]), 'expected a path'),
  ('vqa', picture(image=[]), 'one or more paths'),
  ('edit', {'raw_image': [['a.png']], 'out_image': 'a.png', 'instruction': 'x'}, 'expected a path'),
  ('edit', {'raw_image': {}, 'out_image': 'a.png', 'instruction': 'x'}, 'expected a path'),
  ('t2v', clip(5), 'expected a path'),
  ('t2v', clip([]), 'one or more paths'),
  ('t2v', clip([[]]), 'expected a path'),
  ('t2v', clip(['a.png', ['a.png']]), 'expected a path'),
  ('t2v', clip('a\0.mp4'), 'null'),
  ('t2v', clip('empty.mp4'), 'empty file'),
  ('t2v', clip('noise.mp4'), 'noise.mp4'),
  ('t2v', clip('noise.gif'), 'noise.gif'),
  ('t2v', clip('sub'), 'no frames'),
  ('t2v', clip('gone.mp4'), 'No such file'),
  ('text', '[' * 100_000, 'limits.nesting'),
  ('text', '{"a":' * 50_000, 'limits.nesting'),
  ('t2i', '{"image": "a.png", "meta": ' + '[' * 100_000 + ']' * 100_000 + '}', 'limits.nesting'),
  ('text', '"x"', 'expected a JSON object, found str'),
  ('text', 'null', 'expected a JSON object, found None'),
  ('text', b'\xff\xfe{}', 'not JSON'),
  ('text', b'\0' * 1000, 'not JSON'),
  ('caption', '{"image": "a.png", "capt', 'not JSON'),
]


@pytest.mark.parametrize('task, record, words', BAD)
def test_a_record_that_cannot_be_used_is_named_by_all_who_read_it(root, task, record, words):
  opened = source(root, task, record)
  context, rng = Context(TOKENIZER), np.random.default_rng(0)
  said = []
  for read in (lambda: opened[0], lambda: examples.example(opened, 0, context, rng)):
    with pytest.raises(BadRecord, match=words) as e:
      read()
    assert str(e.value).startswith(f'{root}/x.jsonl:1: ')
    assert len(str(e.value)) <= 1000 and str(e.value).encode()  # printable in one line
  found = examples.check(opened, 1, said.append)
  assert found.bad == 1 and said == [str(e.value)]


@pytest.mark.parametrize(
  'text', ['nul \0 here', 'ü 猫 🐈', '[[[[[[[[[[' * 20, '<|im_start|>', '\u202e']
)
def test_odd_texts_are_texts(root, text):
  opened = source(root, 'caption', picture(caption=text))
  assert opened[0]['caption'] == text
  examples.example(opened, 0, Context(TOKENIZER), np.random.default_rng(0))


def test_limits_of_text_and_nesting_are_settings(root):
  few = media.MediaConfig('64', '64', 9, Limits(nesting=2, text=200))
  for record, words in (
    (picture(), 'limits.nesting=2'),
    (picture(caption='x' * 200), 'limits.text=200'),
  ):
    with pytest.raises(BadRecord, match=words):
      source(root, 'caption', record, config=few)[0]
  deep = picture(meta=[[[[[[[[[[1]]]]]]]]]])
  assert source(root, 'caption', deep)[0]['caption'] == 'x'


def test_brackets_in_strings_are_no_nesting():
  assert nesting(b'{"a": "[[[[[[[[[[[[\\"[[[[[", "b": [[{}]]}') == 4
  assert nesting(b'[' * 500) == 500


def test_interrupts_pass_the_guard(root):
  opened = source(root, 'caption', picture())
  for error in (KeyboardInterrupt, SystemExit):
    with pytest.raises(error), guard(opened, 0):
      raise error
  for error in (MemoryError('m'), RecursionError('r'), KeyError('k'), AssertionError('a')):
    with pytest.raises(BadRecord, match=f'x.jsonl:1: {type(error).__name__}'), guard(opened, 0):
      raise error


def test_files_of_windows_editors_are_read(root):
  lines = ('{"image": "a.png", "caption": "x"}\r\n' * 3).encode()
  (root / 'a.jsonl').write_bytes(BOM + lines)
  (root / 'm.json').write_bytes(BOM + json.dumps([{'path': 'a.jsonl', 'task': 't2i'}]).encode())
  TOKENIZER.save(root / 'tok')
  saved = root / 'tok' / 'tokenizer.json'
  saved.write_bytes(BOM + saved.read_bytes())
  assert Tokenizer.from_dir(root / 'tok').encode('a cat') == TOKENIZER.encode('a cat')
  row = read_mixture(root / 'm.json')[0]
  assert [JsonlSource(row, CONFIG)[i]['caption'] for i in range(3)] == ['x'] * 3


@pytest.mark.parametrize(
  'content, words',
  [
    (b'', 'not JSON'),
    (b'<!DOCTYPE html><html>404</html>', 'web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:12\n', 'git lfs pull'),
    (b'{"model": ', 'not JSON'),
    (b'\xff\xfe{}', 'not UTF-8'),
    (b'[' * 100_000, 'nested too deeply'),
    (b'[]', 'expected a JSON object'),
    (b'{}', 'not a tokenizer'),
    (b'{"added_tokens": null}', 'not a tokenizer'),
    (b'{"added_tokens": [{"content": "x"}]}', 'not a tokenizer'),
    (b'{"added_tokens": [], "model": null}', 'not a tokenizer'),
  ],
)
def test_a_tokenizer_that_is_none_is_named(tmp_path, content, words):
  (tmp_path / 'tokenizer.json').write_bytes(content)
  with pytest.raises(ValueError, match=rf'tokenizer\.json.*{words}'):
    Tokenizer.from_dir(tmp_path)


def test_unusable_records_are_left_out_of_the_texts_for_a_tokenizer(root):
  source(root, 'caption', picture(caption='a cat'), '{"image": "a.', picture(caption='\ud800'), {})
  (root / 'm.json').write_text(json.dumps([{'path': 'x.jsonl', 'task': 'caption'}]))
  texts = mixture.texts(mixture.DataConfig(mixture=str(root / 'm.json')))
  assert 'a cat' in texts and Tokenizer.train(texts, 384)
  assert len(list(usable(source(root, 'caption', picture(), {}, '{', picture()), 9))) == 2
