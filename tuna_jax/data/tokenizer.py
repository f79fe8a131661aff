"""`Tokenizer`: text to ids and back, with Qwen2.5's special tokens and Tuna's four behind them
(docs/architecture.md 5.1).

Special tokens live outside the text model: `encode` sees plain text only, so a user who types
`<|im_start|>` gets its letters, never its id. Chat structure is added as ids by `tasks.py`.
"""

from __future__ import annotations

import base64
import collections
import functools
import itertools
import json
import os
from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tuna_jax import files
from tuna_jax.config import UserError

QWEN_SPECIALS = (
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|object_ref_start|>',
  '<|object_ref_end|>',
  '<|box_start|>',
  '<|box_end|>',
  '<|quad_start|>',
  '<|quad_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|vision_pad|>',
  '<|image_pad|>',
  '<|video_pad|>',
  '<tool_call>',
  '</tool_call>',
  '<|fim_prefix|>',
  '<|fim_middle|>',
  '<|fim_suffix|>',
  '<|fim_pad|>',
  '<|repo_name|>',
  '<|file_sep|>',
)
TUNA_SPECIALS = (
  '[PAD]',
  '<image>',
  '<|vid_start|>',
  '<|vid_end|>',
)  # in the order of docs/architecture.md 5.1
# What a small tokenizer carries: the roles in use, so that its few ids go to words.
SMALL_SPECIALS = (
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|image_pad|>',
  *TUNA_SPECIALS,
)
QWEN_VOCAB = 151_643  # ordinary tokens of Qwen2.5; the first special id

# Qwen2's pre-tokenisation: words with one leading space, single digits, punctuation runs, line
# breaks apart.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class Tokenizer:
  """A text model of the `tokenizers` library plus a table of special tokens.

  bos eos boi eoi img_pad pad image: ids of the roles.   vocab_size: one more than the largest id.
  """

  def __init__(self, core: tokenizers.Tokenizer, specials: Mapping[str, int]):
    """core: the text model, without added tokens. specials: token -> id. Raises ValueError for a
    missing role.
    """
    self._core = core
    self.specials = dict(specials)
    self._names = {i: s for s, i in self.specials.items()}
    roles = {
      'bos': '<|im_start|>',
      'eos': '<|im_end|>',
      'boi': '<|vision_start|>',
      'eoi': '<|vision_end|>',
      'img_pad': '<|image_pad|>',
      'pad': '[PAD]',
      'image': '<image>',
    }
    missing = sorted(t for t in roles.values() if t not in self.specials)
    if missing:
      raise UserError(f'the tokenizer has no {", ".join(missing)}: a Qwen2.5 tokenizer is expected')
    if len(self._names) != len(self.specials):
      raise UserError('two special tokens share one id')
    for role, token in roles.items():
      setattr(self, role, self.specials[token])
    self.vocab_size = max(max(self._names), core.get_vocab_size() - 1) + 1
    self._encode = functools.lru_cache(maxsize=65_536)(self._encode_uncached)

  bos: int
  eos: int
  boi: int
  eoi: int
  img_pad: int
  pad: int
  image: int
  vocab_size: int

  def _encode_uncached(self, text: str) -> tuple[int, ...]:
    return tuple(self._core.encode(text, add_special_tokens=False).ids)

  def encode(self, text: str) -> tuple[int, ...]:
    """Ids of plain text. Strings that look like special tokens are spelled out, never turned into
    their ids.
    """
    return self._encode(text)

  def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
    """The text of `ids`. Special tokens are left out, or written by name. Ids without a token read
    as U+FFFD.
    """
    pieces, run = [], []

    def flush():
      if run:
        pieces.append(self._core.decode(run, skip_special_tokens=False))
        run.clear()

    for i in map(int, ids):
      if i in self._names:
        flush()
        pieces.append('' if skip_special else self._names[i])
      elif self._core.id_to_token(i) is None:
        flush()
        pieces.append('\N{REPLACEMENT CHARACTER}')
      else:
        run.append(i)
    flush()
    return ''.join(pieces)

  def save(self, directory: str | os.PathLike) -> None:
    """Writes `directory/tokenizer.json`, which `from_dir` reads back and Hugging Face libraries
    understand.
    """
    spec = json.loads(self._core.to_str())
    spec['added_tokens'] = [
      {
        'id': i,
        'content': s,
        'special': True,
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
      }
      for s, i in sorted(self.specials.items(), key=lambda item: item[1])
    ]
    folder = files.path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / 'tokenizer.json', spec)

  @classmethod
  def from_dir(cls, directory: str | os.PathLike) -> Tokenizer:
    """Reads `directory/tokenizer.json` (or `qwen.tiktoken`) and adds Tuna's four tokens if they are
    missing.

    Raises FileNotFoundError, or ValueError where a special token of Qwen2.5 has another id than the
    published one.
    """
    folder = files.path(directory)
    path = folder / 'tokenizer.json'
    if not path.exists():
      if (folder / 'qwen.tiktoken').exists():
        return cls.from_tiktoken(folder / 'qwen.tiktoken')
      raise FileNotFoundError(
        f'{directory}: no tokenizer.json there (a Qwen2.5 model directory has one)'
      )
    spec = files.read_json(path)
    specials = {t['content']: t['id'] for t in spec['added_tokens']}
    spec.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    core = tokenizers.Tokenizer.from_str(json.dumps(spec))
    end = max([core.get_vocab_size(), *(i + 1 for i in specials.values())])
    for token in TUNA_SPECIALS:
      if token not in specials:
        specials[token], end = end, end + 1
    if core.get_vocab_size() == QWEN_VOCAB:
      for i, token in enumerate(QWEN_SPECIALS + TUNA_SPECIALS, QWEN_VOCAB):
        if specials.get(token) != i:
          raise UserError(
            f'{path}: {token} is {specials.get(token, "missing")}, Qwen2.5 has it at {i}'
          )
    return cls(core, specials)

  @classmethod
  def from_tiktoken(cls, path: str | os.PathLike) -> Tokenizer:
    """Rebuilds Qwen's tokenizer from a tiktoken file: lines of `base64(token) rank`, the rank being
    the id.

    Raises ValueError naming the line that is not of that form.
    """
    ranks = {}
    with files.path(path).open('rb') as f:
      for number, line in enumerate(f, 1):
        if line.strip():
          try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
          except ValueError as e:
            raise UserError(f'{path}:{number}: expected "base64 rank", found {line[:60]!r}') from e
    if sorted(ranks.values()) != list(range(len(ranks))) or any(
      bytes([b]) not in ranks for b in range(256)
    ):
      raise UserError(
        f'{path}: ranks must be 0..{len(ranks) - 1} without gaps and hold every single byte'
      )
    letters = _byte_letters()
    spell = functools.cache(lambda token: ''.join(letters[b] for b in token))
    merges = [
      tuple(map(spell, _split(token, ranks)))
      for token in sorted((t for t in ranks if len(t) > 1), key=ranks.get)
    ]
    core = _core({spell(t): r for t, r in ranks.items()}, merges)
    return cls(core, {t: i for i, t in enumerate(QWEN_SPECIALS + TUNA_SPECIALS, len(ranks))})

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A small tokenizer of at most `vocab_size` ids: 256 bytes, words of `texts`, and the special
    tokens.

    If every word fits, every word is one token; if not, byte-pair merges are learned. Any other
    text falls back to shorter pieces, in the end bytes. Raises ValueError if not even the bytes and
    special tokens fit.
    """
    specials = SMALL_SPECIALS
    room = vocab_size - 256 - len(specials)
    if room < 0:
      raise UserError(
        f'vocab_size={vocab_size}: bytes and special tokens alone need {256 + len(specials)}'
      )
    letters = _byte_letters()
    vocab = {letters[b]: b for b in range(256)}
    splitter = _core(vocab, [])
    texts, words = list(texts), collections.Counter()
    for text in texts:
      words.update(
        w
        for w, _ in splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(text))
      )
    words = sorted((w for w in words if len(w) > 1), key=lambda w: (-words[w], w))
    if len(words) <= room:
      core = _core({**vocab, **{w: i for i, w in enumerate(words, 256)}}, [], ignore_merges=True)
    else:
      core = splitter
      core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
          vocab_size=256 + room, show_progress=False, initial_alphabet=sorted(vocab)
        ),
      )
    return cls(core, {t: i for i, t in enumerate(specials, core.get_vocab_size())})


class Letters:
  """Stands in for a tokenizer where only the layout counts: one id per letter, and the roles of
  special tokens as the ids 0 to 5.
  """

  pad, boi, eoi, img_pad, bos, eos = range(6)

  def encode(self, text: str) -> tuple[int, ...]:
    """The letters' code points, counted from 6."""
    return tuple(6 + ord(letter) for letter in text)


def _core(vocab, merges, ignore_merges=False):
  core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
  core.normalizer = normalizers.NFC()
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  core.decoder = decoders.ByteLevel()
  return core


@functools.cache
def _byte_letters() -> tuple[str, ...]:
  """The printable letter that byte-level models write for each byte: itself if printable, else from
  U+0100 up.
  """
  keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  spare = iter(range(0x100, 0x200))
  return tuple(chr(b) if b in keep else chr(next(spare)) for b in range(256))


def _split(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
  """The two parts that byte-pair merging joins last to make `token`."""
  parts = [bytes([b]) for b in token]
  while len(parts) > 2:
    rank, at = min(
      (ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))
    )
    if rank >= ranks[token]:
      raise UserError(f'token {token!r} of rank {ranks[token]} cannot be made from earlier ones')
    parts[at : at + 2] = [parts[at] + parts[at + 1]]
  return parts
