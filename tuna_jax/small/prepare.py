"""Own data become two mixture files: what is trained on, and what is held out.

a mixture file                    rows of any kind and task (docs/data.md)
a folder with metadata.jsonl      {"file_name", "text"} per line, as Hugging Face writes it;
                                  "question" and "answer", or "conversations";
                                  "instruction" and "edited_file_name"; or several of these
a folder of NAME.jpg, NAME.txt    the text is the caption
  NAME_before.jpg, NAME_after.jpg the text of NAME.txt is the instruction of an edit
a folder of folders of pictures   the name of a folder is the caption of its pictures
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data.limits import locate, naming
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.pictures import open_image
from tuna_jax.data.records import BadRecord, guard, texts_of
from tuna_jax.data.sources import MADE, SourceConfig, open_source, read_mixture
from tuna_jax.data.tasks import TASKS

PICTURES = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.avif')
# The tasks of a record of a folder, by a field that it has.
_TASKS = {'caption': ('t2i', 'caption'), 'conversations': ('vqa',), 'instruction': ('edit',)}
NAMES = {'train': 'mixture.json', 'test': 'mixture_test.json'}


def prepare(
  data: str,
  out: str,
  test: str = '',
  share: float = 0.1,
  most: int = 10_000,
  say: Callable[[str], None] = print,
) -> tuple[str, str]:
  """Writes OUT/mixture.json and OUT/mixture_test.json and returns their paths.

  share: of the pictures (texts, where there are none) that are held out, with all records that
  show them; by content, so that no picture is in both. test: a mixture or folder that is held out
  instead; what `data` shares with it is left out of training. most: pictures that are used of
  either, since each must be seen several times. Raises UserError where nothing is
  left to train on or to hold out.
  """
  root = files.absolute(out)
  root.mkdir(parents=True, exist_ok=True)
  rows = {'train': _rows(data, root / 'folder')}
  rows['test'] = _rows(test, root / 'folder_test') if test else rows['train']
  faults: list[str] = []
  found = {
    split: _read(rows[split], faults) for split in ({'train', 'test'} if test else {'train'})
  }
  if faults:
    say(f'{len(faults)} records cannot be used, the first: {faults[0]}')
  if test:
    held = {key for keys in found['test'] for k in keys.values() for key in k}
    chosen = {
      'train': [[i for i, k in keys.items() if not held & set(k)] for keys in found['train']],
      'test': [list(keys) for keys in found['test']],
    }
    dropped = sum(map(len, found['train'])) - sum(map(len, chosen['train']))
    if dropped:
      say(f'{dropped} records show pictures of {test}: they are not trained on')
  else:
    chosen = _split(found['train'], share)
  for split in NAMES:
    used = _fewer(found['train' if split == 'train' or not test else 'test'], chosen[split], most)
    if used:
      say(f'{NAMES[split]}: the records of {most} pictures are used, of {used}; --most changes it')
  for split, name in NAMES.items():
    written = []
    for n, (row, numbers) in enumerate(zip(rows[split], chosen[split])):
      if row.path in MADE:
        written.append(dataclasses.asdict(row) | {'split': split})
      elif numbers:
        with files.writing(root / f'{split}.{n}.npy') as file:
          np.save(file, np.array(sorted(numbers), np.int64))
        written.append(dataclasses.asdict(row) | {'records': f'{split}.{n}.npy'})
    if not written:
      why = '; all there are is held out, or nothing is: more pictures are needed'
      if faults:
        why = f'; the first of {len(faults)} unusable ones: {faults[0]}'
      what = 'to train on' if split == 'train' else 'to hold out'
      raise UserError(f'{data}: no record {what}{why}')
    counts = ', '.join(f'{len(c)} {r.task}' for r, c in zip(rows[split], chosen[split]) if c)
    say(f'{"training" if split == "train" else "held out"}: {counts or rows[split][0].path}')
    files.write_json(root / name, written)
  return str(root / NAMES['train']), str(root / NAMES['test'])


def _rows(data: str, out) -> list[SourceConfig]:
  """The rows of a mixture file or of a folder, with absolute paths."""
  where = files.absolute(data)
  if where.is_dir():
    return list(read_mixture(read_folder(pathlib.Path(str(where)), out)))
  return list(read_mixture(str(where)))


def read_folder(folder: pathlib.Path, out) -> str:
  """Writes the records of a folder of pictures as a mixture below `out`, and returns its path."""
  lines: dict[str, list[dict]] = collections.defaultdict(list)
  for record in _records(folder):
    for task in next(tasks for field, tasks in _TASKS.items() if field in record):
      lines[task].append(record)
  if not lines:
    raise UserError(
      f'{folder}: no pictures with texts; expected NAME.txt beside NAME.jpg, which holds its '
      'caption, or beside NAME_before.jpg and NAME_after.jpg, or lines such as '
      '{"file_name": "1.jpg", "text": "a red fox"} in metadata.jsonl, or folders whose names are '
      'captions, such as red_fox/1.jpg'
    )
  out = files.path(out)
  out.mkdir(parents=True, exist_ok=True)
  rows = []
  for task, records in lines.items():
    text = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
    files.write_text(out / f'{task}.jsonl', text)
    rows.append({'path': f'{task}.jsonl', 'root': str(folder), 'task': task, 'weight': 1.0})
  files.write_json(out / 'mixture.json', rows)
  return str(out / 'mixture.json')


def _records(folder: pathlib.Path) -> Iterator[dict]:
  """Those of each picture of a folder that has a text, with a field of _TASKS."""
  if (folder / 'metadata.jsonl').exists():
    for n, line in enumerate((folder / 'metadata.jsonl').read_text('utf-8-sig').splitlines(), 1):
      where = f'{folder / "metadata.jsonl"}:{n}'
      try:
        if line.strip():
          yield from _of_metadata(where, json.loads(line))
      except json.JSONDecodeError as error:
        raise UserError(f'{where}: not JSON ({error.msg})') from None
    return
  pictures = sorted(
    path for path in folder.rglob('*') if path.suffix.lower() in PICTURES and path.name[0] != '.'
  )
  named = {path.with_suffix(''): path for path in pictures}
  text_of = lambda stem: stem.with_name(f'{stem.name}.txt')
  pair_of = lambda stem: stem.with_name(stem.name.removesuffix('_before'))
  beside = any(text_of(s).exists() or text_of(pair_of(s)).exists() for s in named)
  for stem, path in named.items():
    name, pair = str(path.relative_to(folder)), pair_of(stem)
    after = named.get(pair.with_name(f'{pair.name}_after'))
    if text_of(stem).exists():
      yield {'image': name, 'caption': _text(text_of(stem))}
    if pair != stem and after and text_of(pair).exists():
      edited = str(after.relative_to(folder))
      yield {'raw_image': name, 'out_image': edited, 'instruction': _text(text_of(pair))}
    elif not beside and path.parent != folder:
      yield {'image': name, 'caption': path.parent.name.replace('_', ' ')}


def _text(path: pathlib.Path) -> str:
  return path.read_text('utf-8-sig', errors='replace').strip()


def _of_metadata(where: str, line) -> Iterator[dict]:
  """The records of one line of metadata.jsonl."""
  given = line if isinstance(line, Mapping) else {}
  image = given.get('file_name') or given.get('image')
  caption = given.get('text') or given.get('caption')
  talk, edited = given.get('conversations'), given.get('edited_file_name')
  if 'question' in given and 'answer' in given:
    pair = (('human', given['question']), ('gpt', str(given['answer'])))
    talk = talk or [{'from': who, 'value': text} for who, text in pair]
  edited = edited if 'instruction' in given else None
  if not image or not (caption or talk or edited):
    wanted = (
      '"file_name" with "text", with "question" and "answer", with "conversations", or with '
      '"instruction" and "edited_file_name"'
    )
    raise UserError(f'{where}: expected {wanted}, found {str(line)[:80]}')
  if caption:
    yield {'image': image, 'caption': caption}
  if talk:
    yield {'image': image, 'conversations': talk}
  if edited:
    yield {'raw_image': image, 'out_image': edited, 'instruction': given['instruction']}


def _read(rows: list[SourceConfig], faults: list[str]) -> list[dict[int, list[str]]]:
  """For each row {record number: what it shows, by content}; why others cannot be used is added to
  `faults`."""
  digests: dict[str, str] = {}
  found = []
  for row in rows:
    keys: dict[int, list[str]] = {}
    source = open_source(row, MediaConfig()) if row.path not in MADE else ()
    for i in range(len(source)):
      try:
        with guard(source, i):
          keys[i] = list(_contents(source, source.raw(i), digests))
      except BadRecord as e:
        faults.append(str(e))
    found.append(keys)
  return found


def _contents(source, record: Mapping, digests: dict[str, str]) -> Iterator[str]:
  """A digest of each picture and clip of a raw record; of its texts, if it shows nothing."""
  fields = TASKS[source.task].fields
  media = [(record[name], kind) for name, kind in fields.items() if kind not in ('text', 'turns')]
  for value, kind in media:
    for one in value if isinstance(value, list) else [value]:
      if not isinstance(one, str):
        yield _digest(np.ascontiguousarray(one) if isinstance(one, np.ndarray) else one)
        continue
      if (name := f'{source.root}:{one}') not in digests:
        path = str(locate(one, source.root))
        content = path.encode() if os.path.isdir(path) else files.path(path).read_bytes()
        if kind != 'clip':
          with naming(path, 'picture'):
            open_image(content)  # reads the header alone
        digests[name] = _digest(content)
      yield digests[name]
  if not media:
    yield _digest('\n'.join(texts_of(record, source.task)).encode())


def _fewer(found, chosen: list[list[int]], most: int) -> int:
  """Leaves the records of `most` pictures in `chosen`, those of the highest digests, and returns
  how many pictures there were; 0 where they are no more than that."""
  pictures = sorted({keys[i][0] for keys, numbers in zip(found, chosen) for i in numbers})
  if len(pictures) <= most:
    return 0
  kept = set(pictures[-most:])
  for keys, numbers in zip(found, chosen):
    numbers[:] = [i for i in numbers if keys[i][0] in kept]
  return len(pictures)


def _digest(data) -> str:
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def _split(found: list[dict[int, list[str]]], share: float) -> dict[str, list[list[int]]]:
  """Record numbers by split and row. Records that show one picture stay together, and so do
  pictures of one record; a digest decides, so that more data do not change what is held out."""
  parent: dict[str, str] = {}

  def root(key: str) -> str:
    while parent.setdefault(key, key) != key:
      parent[key] = key = parent[parent[key]]
    return key

  for keys in found:
    for several in keys.values():
      for key in several:
        a, b = sorted((root(several[0]), root(key)))
        parent[b] = a
  groups = sorted({root(key) for key in parent})
  # The lowest digest of a group is the lower the more pictures it has: it is hashed again.
  low = lambda group: int(_digest(group.encode())[:8], 16) < share * 2**32
  held = set(filter(low, groups)) or set(groups[:1])
  test = [[i for i, k in keys.items() if root(k[0]) in held] for keys in found]
  train = [[i for i, k in keys.items() if root(k[0]) not in held] for keys in found]
  return {'train': train, 'test': test}
