"""Emoji of several makers as captioned pictures: fetched by package name with npm, written as JSONL
and mixture files.

    fetch  npm pack NAME@VERSION into a cache directory, unpack; nothing is installed, no script run
    join   one codepoint sequence (without fe0f) names a picture of every maker and its label
    split  by concept, over all makers: skin tone, gender and direction collapsed, identical
           pictures together
    write  OUT/pictures/STYLE/CODE.png (64x64 on white), OUT/SPLIT.TASK.jsonl, OUT/mixture.json,
           OUT/licences/
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping

from PIL import Image

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.data import media

SIDE = 64
TASKS = ('t2i', 'caption', 'vqa', 'text')
SPLITS = ('train', 'test')


class EmojiUnavailable(RuntimeError):
  """The packages could not be fetched; the message says why in one line."""


@dataclasses.dataclass(frozen=True)
class Maker:
  """One style: its package, where its pictures are (a glob whose `*` is the codepoints), and their
  licence.
  """

  style: str
  package: str
  pictures: str
  licence: str
  by_default: bool = True


_SOURCE = 'emoji-datasource'
# fmt: off
MAKERS = (
  Maker('noto', f'{_SOURCE}-google@16.0.0', 'img/google/64/*.png', 'Apache-2.0, Google Noto Emoji'),
  Maker('twemoji', f'{_SOURCE}-twitter@16.0.0', 'img/twitter/64/*.png',
        'CC-BY-4.0, Twemoji by Twitter'),
  Maker('fluent', '@lobehub/fluent-emoji-3d@1.1.0', 'assets/*.webp',
        'MIT, Fluent Emoji by Microsoft'),
  Maker('openmoji', 'openmoji@17.0.0', 'color/72x72/*.png', 'CC-BY-SA-4.0, OpenMoji', False),
)
# fmt: on
WORDS = 'emojibase-data@17.0.0'  # MIT: labels and groups

_TONES = {f'1f3f{d}' for d in 'bcdef'}
_DROPPED = {'fe0f', '2640', '2642', '27a1', '2194', *_TONES}  # also gender signs and directions
# A gendered person and the person without a gender.
_PERSON = dict(
  pair.split(':')
  for pair in '1f468:1f9d1 1f469:1f9d1 1f466:1f9d2 1f467:1f9d2 1f474:1f9d3 1f475:1f9d3 '
  '1f934:1fac5 1f478:1fac5 1f385:1f9d1-1f384 1f936:1f9d1-1f384 1f57a:1f483 1f46b:1f46b '
  '1f46c:1f46b 1f46d:1f46b'.split()
)
_PEOPLE = {'1f9d1', '1f9d2', '1f9d3', '1f46a'}


def codes(name: str) -> str:
  """The codepoints of a file name, lower case, joined by '-', without fe0f and leading zeros."""
  parts = name.lower().replace('_', '-').split('-')
  return '-'.join(p.lstrip('0') for p in parts if p != 'fe0f')


def concept(code: str) -> str:
  """`codes` with skin tone, gender and direction collapsed: what is split into train and test."""
  parts = [_PERSON.get(p, p) for p in code.split('-') if p not in _DROPPED]
  joined = ' '.join(parts).split('200d')  # the joiner between what is left, once
  parts = ' 200d '.join(part.strip() for part in joined if part.strip()).split()
  bare = [p for p in parts if p != '200d']
  if '1f48b' in bare and '2764' in bare:
    return '1f48f'  # a kiss
  if '2764' in bare and len(set(bare) & _PEOPLE):
    return '1f491'  # a couple with a heart
  if '1f91d' in bare and bare.count('1f9d1') > 1:
    return '1f46b'  # two people holding hands
  if len(bare) > 1 and set(bare) <= _PEOPLE:
    return '1f46a'  # a family
  return '-'.join(parts)


def has_tone(code: str) -> bool:
  """Whether a skin tone is part of it."""
  return bool(_TONES & set(code.split('-')))


def fetch(package: str, cache: pathlib.Path) -> pathlib.Path:
  """The unpacked directory of an npm package, fetched once. Raises EmojiUnavailable."""
  folder = cache / package.replace('/', '-').lstrip('@')
  if folder.is_dir():
    return folder
  cache.mkdir(parents=True, exist_ok=True)
  command = [
    'npm',
    'pack',
    package,
    '--silent',
    '--ignore-scripts',
    '--pack-destination',
    str(cache),
  ]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
  except FileNotFoundError as e:
    raise EmojiUnavailable('emoji are fetched with npm, which is not installed here') from e
  except subprocess.TimeoutExpired as e:
    raise EmojiUnavailable(f'npm pack {package}: no answer within 10 minutes') from e
  if done.returncode:
    reason = (done.stderr.strip().splitlines() or ['no reason given'])[0]
    raise EmojiUnavailable(f'npm pack {package} failed ({reason}): is a registry within reach?')
  archive = cache / done.stdout.split()[-1]
  unpack(archive, folder)
  archive.unlink()
  return folder


def inside(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
  """The members of a tar file; raises ValueError for a link, a device or a path that leads out of
  the archive.
  """
  for member in tar.getmembers():
    path = pathlib.PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()) or path.is_absolute() or '..' in path.parts:
      raise UserError(f'{tar.name}: {member.name} is no plain file inside the archive')
  return tar.getmembers()


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
  """Unpacks a package's tar file into `folder`, all or nothing."""
  part = folder.with_name(folder.name + '.part')
  shutil.rmtree(part, ignore_errors=True)
  with tarfile.open(archive) as tar:
    if hasattr(tarfile, 'data_filter'):
      tar.extractall(part, filter='data')
    else:  # Python before 3.11.4
      tar.extractall(part, members=inside(tar))
  (inner,) = part.iterdir()  # npm packs one directory
  inner.rename(folder)
  part.rmdir()


def labels(words: pathlib.Path) -> dict[str, tuple[str, str]]:
  """codes -> (English label, group), skin tone variants included."""
  groups = files.read_json(words / 'en' / 'messages.json')['groups']
  group = {g['order']: g['message'] for g in groups}
  out = {}
  for entry in files.read_json(words / 'en' / 'data.json'):
    if 'group' in entry:
      for one in (entry, *entry.get('skins', ())):
        out[codes(one['hexcode'])] = (one['label'], group[entry['group']])
  return out


def build(
  out: pathlib.Path,
  cache: pathlib.Path,
  *,
  tones: bool = False,
  everything: bool = False,
  test_share: float = 0.1,
  makers: Iterable[Maker] = MAKERS,
) -> dict[str, int]:
  """Writes the data set and returns its counts.

  out: directory to write. cache: where packages are kept. tones: skin tone variants too.
  everything: share-alike styles too (CC-BY-SA: what you train and publish may have to carry that
  licence). test_share: of the concepts. Raises EmojiUnavailable.
  """
  makers = [m for m in makers if m.by_default or everything]
  names = labels(fetch(WORDS, cache))
  pictures: dict[tuple[str, str], str] = {}  # (code, style) -> path below out
  digests: dict[str, list[str]] = collections.defaultdict(list)  # picture -> concepts
  for maker in makers:
    package = fetch(maker.package, cache)
    _write_licence(out / 'licences', maker, package)
    for path in sorted(package.glob(maker.pictures)):
      code = codes(path.stem)
      if code not in names or (has_tone(code) and not tones) or (code, maker.style) in pictures:
        continue
      pixels = media.read_image(path, str(SIDE))
      relative = f'pictures/{maker.style}/{code}.png'
      (out / relative).parent.mkdir(parents=True, exist_ok=True)
      with files.writing(out / relative) as file:
        Image.fromarray(pixels).save(file, 'PNG')
      pictures[code, maker.style] = relative
      digests[hashlib.blake2b(pixels.tobytes()).hexdigest()].append(concept(code))
  group = united(map(concept, (code for code, _ in pictures)), digests.values())
  counts = collections.Counter(pictures=len(pictures), concepts=len(set(group.values())))
  by_label = sorted({names[code][0] for code, _ in pictures})
  split_of = lambda concepts: 'test' if _share(concepts) < test_share else 'train'
  lines: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
  for (code, style), path in sorted(pictures.items()):
    label, kind = names[code]
    split = split_of(group[concept(code)])
    counts[f'{split} pictures'] += 1
    for task, record in _records(path, label, kind, style, by_label).items():
      lines[split, task].append(json.dumps(record, ensure_ascii=False) + '\n')
  for split in SPLITS:
    counts[f'{split} concepts'] = len({g for g in group.values() if split_of(g) == split})
    rows = []
    for task in TASKS:
      files.write_text(out / f'{split}.{task}.jsonl', ''.join(lines[split, task]))
      rows.append({'path': f'{split}.{task}.jsonl', 'root': '.', 'task': task, 'weight': 1.0})
    name = 'mixture.json' if split == 'train' else 'mixture_test.json'
    files.write_json(out / name, rows)
  return dict(counts)


def _records(path: str, label: str, kind: str, style: str, by_label: list[str]) -> dict[str, dict]:
  """The record of each task for one picture; `text` is what a decoder reads without pictures."""
  draw = int(_share(path) * 2**32)
  other = by_label[draw % len(by_label)]
  asked = label if draw % 2 else other
  talk = [
    ('<image>\nWhat is this?', label),
    ('Who drew it?', style),
    ('Which group is it of?', kind),
    (f'Is it "{asked}"?', 'yes' if asked == label else 'no'),
  ]
  words = [(f'Which group is "{label}" of?', kind), (f'Name one of the group {kind}.', label)]
  return {
    't2i': {'image': path, 'caption': f'{label}, drawn by {style}'},
    'caption': {'image': path, 'caption': label},
    'vqa': {'image': path, 'conversations': _talk(talk)},
    'text': {'conversations': _talk(words)},
  }


def _talk(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
  turns = ((('human', question), ('gpt', answer)) for question, answer in pairs)
  return [{'from': who, 'value': text} for pair in turns for who, text in pair]


def _share(name: str) -> float:
  """A number in [0, 1) of the name alone: a split does not depend on what else was fetched."""
  return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), 'big') / 2**32


def united(concepts: Iterable[str], same: Iterable[list[str]]) -> Mapping[str, str]:
  """concept -> the first concept of its group; concepts with an identical picture are one group."""
  parent = {c: c for c in concepts}

  def root(c):
    while parent[c] != c:
      c = parent[c]
    return c

  for together in same:
    for other in together[1:]:
      a, b = sorted((root(together[0]), root(other)))
      parent[b] = a
  return {c: root(c) for c in parent}


def _write_licence(folder: pathlib.Path, maker: Maker, package: pathlib.Path) -> None:
  """The pictures' licence by name, and what the package says of its own."""
  folder.mkdir(parents=True, exist_ok=True)
  text = [
    f'{maker.style}: pictures of the package {maker.package}',
    f'pictures: {maker.licence}',
    '',
  ]
  for name in ('LICENSE', 'LICENSE.txt', 'LICENSE.md', 'package.json'):
    if (package / name).is_file():
      body = (package / name).read_text(encoding='utf-8', errors='replace')
      body = str(json.loads(body).get('license')) if name == 'package.json' else body
      text += [f'--- {name} of the package', body]
  files.write_text(folder / f'{maker.style}.txt', '\n'.join(text) + '\n')
