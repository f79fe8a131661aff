"""Tokenizers: exact ids, special tokens, and text that pretends to be special."""

import base64
import json

import pytest

from tuna_jax.data.tokenizer import (
  QWEN_SPECIALS,
  QWEN_VOCAB,
  SMALL_SPECIALS,
  TUNA_SPECIALS,
  Tokenizer,
)

TEXTS = [
  'a large red circle',
  'two red circles',
  'is there a red circle?\n',
  'user\n',
  'assistant\n',
]


@pytest.fixture(scope='module')
def small():
  return Tokenizer.train(TEXTS, 300)


def tiktoken_file(path, merges):
  tokens = [bytes([b]) for b in range(256)] + merges
  path.write_bytes(b''.join(base64.b64encode(t) + b' %d\n' % i for i, t in enumerate(tokens)))
  return path


def test_every_word_is_one_token_when_all_fit(small):
  assert [len(small.encode(w)) for w in ('a', ' large', ' red', ' circle', ' circles')] == [1] * 5


@pytest.mark.parametrize(
  'text', ['a red circle', 'Zürich, 日本 \U0001f600!\n\n x', '', '  two  spaces', 'tab\tend\r\n']
)
def test_decoding_gives_the_text_back(small, text):
  assert small.decode(small.encode(text)) == text


def test_text_is_normalised_to_nfc(small):
  assert small.encode('e\u0301') == small.encode('\u00e9')


def test_without_room_for_words_merges_are_learned():
  tokenizer = Tokenizer.train(TEXTS, 256 + len(SMALL_SPECIALS) + 5)
  assert tokenizer.vocab_size == 256 + len(SMALL_SPECIALS) + 5
  assert len(tokenizer.encode(' circle')) < len(' circle')
  assert tokenizer.decode(tokenizer.encode('Anything, at all.')) == 'Anything, at all.'


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
  with pytest.raises(ValueError, match='vocab_size=200'):
    Tokenizer.train(TEXTS, 200)


@pytest.mark.parametrize('special', SMALL_SPECIALS)
def test_a_special_token_typed_by_a_user_never_becomes_its_id(small, special, tmp_path):
  small.save(tmp_path)
  for tokenizer in (small, Tokenizer.from_dir(tmp_path)):
    ids = tokenizer.encode(f'x{special}y')
    assert not set(ids) & set(tokenizer.specials.values())
    assert tokenizer.decode(ids) == f'x{special}y'


def test_special_ids_are_left_out_or_written_by_name(small):
  ids = [small.bos, *small.encode('a red'), small.eos]
  assert small.decode(ids) == 'a red'
  assert small.decode(ids, skip_special=False) == '<|im_start|>a red<|im_end|>'


def test_an_id_without_a_token_reads_as_a_replacement_character(small):
  assert small.decode([small.vocab_size + 3]) == '\N{REPLACEMENT CHARACTER}'


def test_saving_and_reading_changes_no_id(small, tmp_path):
  small.save(tmp_path)
  again = Tokenizer.from_dir(tmp_path)
  assert again.specials == small.specials and again.vocab_size == small.vocab_size
  assert all(again.encode(t) == small.encode(t) for t in [*TEXTS, 'unseen Words 12'])


def test_a_tiktoken_file_keeps_its_ranks_as_ids(tmp_path):
  merges = [b'he', b'll', b'llo', b'hello', b' w', b' wo']
  tokenizer = Tokenizer.from_tiktoken(tiktoken_file(tmp_path / 'qwen.tiktoken', merges))
  assert tokenizer.encode('hello wo') == (259, 261)
  assert tokenizer.encode('hell') == (256, 257)
  assert tokenizer.specials['<|endoftext|>'] == 262
  assert tokenizer.specials['[PAD]'] == 262 + len(QWEN_SPECIALS)
  assert tokenizer.vocab_size == 262 + 22 + 4


def test_behind_the_published_vocabulary_special_tokens_have_the_ids_of_architecture_5_1():
  ids = {token: i for i, token in enumerate(QWEN_SPECIALS + TUNA_SPECIALS, QWEN_VOCAB)}
  assert (
    len(ids) == 26
    and ids
    | {
      '<|endoftext|>': 151_643,
      '<|im_start|>': 151_644,
      '<|im_end|>': 151_645,
      '<|vision_start|>': 151_652,
      '<|vision_end|>': 151_653,
      '<|image_pad|>': 151_655,
      '<|video_pad|>': 151_656,
      '[PAD]': 151_665,
      '<image>': 151_666,
      '<|vid_start|>': 151_667,
      '<|vid_end|>': 151_668,
    }
    == ids
  )


def test_digits_are_single_tokens(tmp_path):
  tokenizer = Tokenizer.from_tiktoken(tiktoken_file(tmp_path / 'f', [b'12']))
  assert len(tokenizer.encode('12')) == 2


def test_a_directory_may_hold_the_tiktoken_file(tmp_path):
  tiktoken_file(tmp_path / 'qwen.tiktoken', [b'he'])
  assert Tokenizer.from_dir(tmp_path).encode('he') == (256,)


def test_a_broken_tiktoken_line_is_named(tmp_path):
  path = tiktoken_file(tmp_path / 'f', [])
  path.write_bytes(path.read_bytes() + b'???\n')
  with pytest.raises(ValueError, match='f:257'):
    Tokenizer.from_tiktoken(path)


def test_tuna_s_tokens_are_added_behind_qwen_s_in_order(small, tmp_path):
  small.save(tmp_path)
  spec = json.loads((tmp_path / 'tokenizer.json').read_text())
  spec['added_tokens'] = [t for t in spec['added_tokens'] if t['content'] not in TUNA_SPECIALS]
  end = max(t['id'] for t in spec['added_tokens']) + 1
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
  read = Tokenizer.from_dir(tmp_path)
  assert [read.specials[t] for t in TUNA_SPECIALS] == [end, end + 1, end + 2, end + 3]


def test_a_directory_without_a_tokenizer_says_what_is_expected(tmp_path):
  with pytest.raises(FileNotFoundError, match='tokenizer.json'):
    Tokenizer.from_dir(tmp_path)


def test_a_tokenizer_without_vision_tokens_is_refused(small, tmp_path):
  small.save(tmp_path)
  spec = json.loads((tmp_path / 'tokenizer.json').read_text())
  spec['added_tokens'] = [t for t in spec['added_tokens'] if 'vision' not in t['content']]
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
  with pytest.raises(ValueError, match='vision_end.*vision_start'):
    Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize('text', ['half \ud83d', '\udcff' * 300, None, 7])
def test_what_is_no_text_is_named(small, text):
  with pytest.raises(ValueError, match='expected Unicode text'):
    small.encode(text)
