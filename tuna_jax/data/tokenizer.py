"""`Tokenizer`: text to ids and back, with Qwen2.5's special tokens and Tuna's four behind them
(docs/architecture.md 5.1).

Special tokens live outside the text model: `encode` sees plain text only, so a user who types
`<|im_start|>` gets its letters, never its id. Chat structure is added as ids by `tasks.py`.
"""

from __future__ import annotations

import base64
import collections
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tuna_jax import files
from tuna_jax.config import UserError

QWEN_SPECIALS = tuple(
  '<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> '
  '<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> '
  '<|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> '
  '<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>'.split()
)
TUNA_SPECIALS = ('[PAD]', '<image>', '<|vid_start|>', '<|vid_end|>')  # docs/architecture.md 5.1
# What bos, eos, boi, eoi and img_pad are.
_ROLES = ('<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>', '<|image_pad|>')
SMALL_SPECIALS = ('<|endoftext|>', *_ROLES, *TUNA_SPECIALS)  # the few that a small tokenizer has
QWEN_VOCAB = 151_643  # ordinary tokens of Qwen2.5; the first special id

# Qwen2's pre-tokenisation: words with one leading space, single digits, punctuation runs, line
# breaks apart.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)

_SHORT = 256  # letters of a text whose ids are remembered


class Tokenizer:
  """A text model of the `tokenizers` library plus a table of special tokens.

  bos eos boi eoi img_pad pad image: ids of the roles. vocab_size: one more than the largest id.
  """

  def __init__(self, core: tokenizers.Tokenizer, specials: Mapping[str, int]):
    """core: the text model, without added tokens. specials: token -> id. Raises UserError for a
    missing role.
    """
    self._core, self.specials = core, dict(specials)
    self._names = {i: s for s, i in self.specials.items()}
    roles = (*_ROLES, '[PAD]', '<image>')
    if missing := sorted(set(roles) - set(specials)):
      raise UserError(f'the tokenizer has no {", ".join(missing)}: a Qwen2.5 tokenizer is expected')
    if len(self._names) != len(self.specials):
      raise UserError('two special tokens share one id')
    ids = (self.specials[token] for token in roles)
    self.bos, self.eos, self.boi, self.eoi, self.img_pad, self.pad, self.image = ids
    self.vocab_size = max(max(self._names), core.get_vocab_size() - 1) + 1
    self._encode = lambda text: tuple(core.encode(text, add_special_tokens=False).ids)
    self._encode_short = functools.lru_cache(maxsize=65_536)(self._encode)

  def encode(self, text: str) -> tuple[int, ...]:
    """Ids of plain text. Strings that look like special tokens are spelled out, never turned into
    their ids. Raises UserError for half of a surrogate pair, which is no Unicode.
    """
    try:
      return self._encode_short(text) if len(text) < _SHORT else self._encode(text)
    except TypeError:
      raise UserError(f'expected Unicode text, found {ascii(text)[:80]}') from None

  def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
    """The text of `ids`. Special tokens are left out, or written by name. Ids without a token read
    as U+FFFD.
    """

    def kind(i):
      if i in self._names:
        return 'special'
      return 'text' if self._core.id_to_token(i) is not None else 'unknown'

    pieces = []
    for what, run in itertools.groupby(map(int, ids), kind):
      if what == 'text':
        pieces.append(self._core.decode(list(run), skip_special_tokens=False))
      elif what == 'unknown':
        pieces += ['\N{REPLACEMENT CHARACTER}' for _ in run]
      elif not skip_special:
        pieces += [self._names[i] for i in run]
    return ''.join(pieces)

  @property
  def digest(self) -> str:
    """Of all that decides how a text becomes tokens."""
    about = self._core.to_str() + json.dumps(sorted(self._names.items()))
    return hashlib.blake2b(about.encode(), digest_size=16).hexdigest()

  def save(self, directory: str | os.PathLike) -> None:
    """Writes `directory/tokenizer.json`, which `from_dir` reads back and Hugging Face libraries
    understand.
    """
    spec = json.loads(self._core.to_str())
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    spec['added_tokens'] = [
      {'id': i, 'content': token, 'special': True, **flags}
      for i, token in sorted(self._names.items())
    ]
    folder = files.path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / 'tokenizer.json', spec)

  @classmethod
  def from_dir(cls, directory: str | os.PathLike) -> Tokenizer:
    """Reads `directory/tokenizer.json` (or `qwen.tiktoken`) and adds Tuna's four tokens if they are
    missing.

    Raises FileNotFoundError, or UserError where a special token of Qwen2.5 has another id than the
    published one.
    """
    folder = files.path(directory)
    path = folder / 'tokenizer.json'
    if not path.exists():
      if (folder / 'qwen.tiktoken').exists():
        return cls.from_tiktoken(folder / 'qwen.tiktoken')
      raise FileNotFoundError(f'{folder}: no tokenizer.json (a Qwen2.5 model directory has one)')
    spec = files.read_object(path)
    try:
      specials = {str(t['content']): int(t['id']) for t in spec['added_tokens']}
      spec.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
      core = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as e:  # the library raises Exception itself
      what = f'{type(e).__name__}: {e}'[:200]
      raise UserError(f'{path}: not a tokenizer of the `tokenizers` library ({what})') from e
    if not all(0 <= i < 1 << 24 for i in specials.values()):
      raise UserError(f'{path}: the ids of added tokens must be 0 to 2**24')
    end = max([core.get_vocab_size(), *(i + 1 for i in specials.values())])
    for token in TUNA_SPECIALS:
      if token not in specials:
        specials[token], end = end, end + 1
    if core.get_vocab_size() == QWEN_VOCAB:
      for i, token in enumerate(QWEN_SPECIALS + TUNA_SPECIALS, QWEN_VOCAB):
        if specials.get(token) != i:
          found = specials.get(token, 'missing')
          raise UserError(f'{path}: {token} is {found}, Qwen2.5 has it at {i}')
    return cls(core, specials)

  @classmethod
  def from_tiktoken(cls, path: str | os.PathLike) -> Tokenizer:
    """Rebuilds Qwen's tokenizer from a tiktoken file: lines of `base64(token) rank`, the rank being
    the id.

    Raises UserError naming the line that is not of that form.
    """
    ranks = {}
    with files.path(path).open('rb') as f:
      for number, line in enumerate(f, 1):
        if line.strip():
          try:
            token, rank = line.removeprefix(b'\xef\xbb\xbf').split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
          except ValueError as e:
            raise UserError(f'{path}:{number}: expected "base64 rank", found {line[:60]!r}') from e
    whole = sorted(ranks.values()) == list(range(len(ranks)))
    if not whole or any(bytes([b]) not in ranks for b in range(256)):
      message = f'ranks must be 0..{len(ranks) - 1} without gaps and hold every single byte'
      raise UserError(f'{path}: {message}')
    letters = _byte_letters()
    spell = functools.cache(lambda token: ''.join(letters[b] for b in token))
    longer = sorted((t for t in ranks if len(t) > 1), key=ranks.get)
    merges = [tuple(map(spell, _split(token, ranks))) for token in longer]
    core = _core({spell(t): r for t, r in ranks.items()}, merges)
    return cls(core, {t: i for i, t in enumerate(QWEN_SPECIALS + TUNA_SPECIALS, len(ranks))})

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A small tokenizer of at most `vocab_size` ids: 256 bytes, words of `texts`, and the special
    tokens.

    If every word fits, every word is one token; if not, byte-pair merges are learned. Any other
    text falls back to shorter pieces, in the end bytes. Raises UserError if not even the bytes and
    special tokens fit.
    """
    letters, least = _byte_letters(), 256 + len(SMALL_SPECIALS)
    room = vocab_size - least
    if room < 0:
      raise UserError(f'vocab_size={vocab_size}: bytes and special tokens alone need {least}')
    vocab = {letters[b]: b for b in range(256)}
    core, texts, words = _core(vocab, []), list(texts), collections.Counter()
    for text in map(core.normalizer.normalize_str, texts):
      words.update(word for word, _ in core.pre_tokenizer.pre_tokenize_str(text))
    words = sorted((w for w in words if len(w) > 1), key=lambda w: (-words[w], w))
    if len(words) <= room:
      core = _core({**vocab, **{w: i for i, w in enumerate(words, 256)}}, [], ignore_merges=True)
    else:
      trainer = trainers.BpeTrainer(
        vocab_size=256 + room, show_progress=False, initial_alphabet=sorted(vocab)
      )
      core.train_from_iterator(texts, trainer)
    return cls(core, {t: i for i, t in enumerate(SMALL_SPECIALS, core.get_vocab_size())})


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
  words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), 'isolated')
  as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  core.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
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
    pairs = enumerate(itertools.pairwise(parts))
    rank, at = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in pairs)
    if rank >= ranks[token]:
      raise UserError(f'token {token!r} of rank {ranks[token]} cannot be made from earlier ones')
    parts[at : at + 2] = [parts[at] + parts[at + 1]]
  return parts
