"""Emoji data sets, from tiny packages made on the spot."""

import io
import json
import pathlib
import tarfile

import pytest
from PIL import Image

from tuna_jax.data import sources
from tuna_jax.data.media import MediaConfig
from tuna_jax.tools import emoji

MAKERS = (
  emoji.Maker('one', 'maker-one@1', 'img/*.png', 'MIT, one'),
  emoji.Maker('two', '@x/maker-two@2', '*.png', 'CC-BY-4.0, two'),
  emoji.Maker('shared', 'maker-shared@3', '*.png', 'CC-BY-SA-4.0, shared', by_default=False),
)
CODES = [f'1f3{i:02x}' for i in range(0x40, 0x7F)]


def package(cache, name, files):
  """A package as npm would pack it, unpacked into the cache by our own code."""
  cache.mkdir(exist_ok=True)
  archive = cache / 'p.tgz'
  with tarfile.open(archive, 'w:gz') as tar:
    for path, data in {
      'LICENSE': b'words of a licence',
      'package.json': b'{"license": "MIT"}',
      **files,
    }.items():
      entry = tarfile.TarInfo(f'package/{path}')
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  emoji.unpack(archive, cache / name.replace('/', '-').lstrip('@'))


def drawing(colour, side=72):
  out = io.BytesIO()
  picture = Image.new('RGBA', (side, side))
  picture.paste(colour, (10, 10, 30, 30))
  picture.save(out, 'png')
  return out.getvalue()


@pytest.fixture
def cache(tmp_path):
  folder = tmp_path / 'cache'
  words = [{'label': f'thing {i}', 'hexcode': c.upper(), 'group': 4} for i, c in enumerate(CODES)]
  words += [
    {
      'label': 'person',
      'hexcode': '1F9D1',
      'group': 1,
      'skins': [{'label': 'person: dark', 'hexcode': '1F9D1-1F3FF'}],
    },
    {'label': 'no group', 'hexcode': '1F1E6'},
  ]
  messages = {'groups': [{'order': 1, 'message': 'people'}, {'order': 4, 'message': 'food'}]}
  package(
    folder,
    emoji.WORDS,
    {'en/data.json': json.dumps(words).encode(), 'en/messages.json': json.dumps(messages).encode()},
  )
  shades = [(i * 3, 255 - i * 2, i) for i in range(len(CODES))]
  shades[1] = shades[0]  # two concepts, one picture
  one = {f'img/{c}-fe0f.png': drawing(s) for c, s in zip(CODES, shades, strict=True)}
  one |= {
    'img/1f9d1.png': drawing('red'),
    'img/1f9d1-1f3ff.png': drawing('blue'),
    'img/1f1e6.png': drawing('blue'),
  }
  package(folder, 'maker-one@1', one)
  package(
    folder,
    '@x/maker-two@2',
    {f'{c}.png': drawing(s[::-1], 128) for c, s in zip(CODES, shades, strict=True)},
  )
  package(folder, 'maker-shared@3', {f'{CODES[0]}.png': drawing('red')})
  return folder


def lines(path):
  return [json.loads(line) for line in pathlib.Path(path).read_text(encoding='utf-8').splitlines()]


def by_concept(out, split):
  return {emoji.concept(pathlib.Path(r['image']).stem) for r in lines(out / f'{split}.t2i.jsonl')}


@pytest.mark.parametrize(
  'a, b',
  [
    ('1f44d-1f3fd', '1f44d'),  # thumbs up
    ('1f3c3-1f3fb-200d-2642', '1f3c3'),
    ('1f3c3-200d-2640-200d-27a1', '1f3c3'),  # running
    ('1f468-200d-1f373', '1f9d1-200d-1f373'),
    ('1f469-1f3ff-200d-1f373', '1f9d1-200d-1f373'),  # a cook
    ('1f468-200d-1f469-200d-1f466', '1f46a'),  # a family
    ('1f469-200d-2764-200d-1f48b-200d-1f468', '1f48f'),
    ('1f468-200d-2764-200d-1f468', '1f491'),  # couples
    ('1f469-1f3fb-200d-1f91d-200d-1f468-1f3ff', '1f46b'),
  ],
)
def test_skin_tone_and_gender_are_one_concept(a, b):
  assert emoji.concept(a) == emoji.concept(b)


@pytest.mark.parametrize(
  'a, b',
  [
    ('1f34e', '1f34f'),
    ('1f1e9-1f1ea', '1f1eb-1f1f7'),
    ('1f441-200d-1f5e8', '1f441'),
    ('2764', '2764-200d-1f525'),
    ('1f9d1-200d-1f373', '1f9d1'),
  ],
)
def test_different_things_are_different_concepts(a, b):
  assert emoji.concept(a) != emoji.concept(b)


def test_codepoints_join_whatever_the_maker_writes():
  assert emoji.codes('00A9-FE0F') == emoji.codes('a9') == 'a9'
  assert emoji.codes('2764-FE0F-200D-1F525') == '2764-200d-1f525'


def test_no_concept_is_in_both_splits(cache, tmp_path):
  emoji.build(tmp_path, cache, makers=MAKERS, test_share=0.4)
  train, test = by_concept(tmp_path, 'train'), by_concept(tmp_path, 'test')
  assert train and test and not train & test


def test_identical_pictures_are_in_one_split(cache, tmp_path):
  emoji.build(tmp_path, cache, makers=MAKERS)
  assert (
    len({CODES[0] in by_concept(tmp_path, 'test'), CODES[1] in by_concept(tmp_path, 'test')}) == 1
  )
  assert emoji.united('abcd', [['a', 'b'], ['c'], ['b', 'd']]) == {
    'a': 'a',
    'b': 'a',
    'c': 'c',
    'd': 'a',
  }


def test_pictures_are_64_on_white(cache, tmp_path):
  emoji.build(tmp_path, cache, makers=MAKERS)
  with Image.open(tmp_path / 'pictures' / 'two' / f'{CODES[0]}.png') as picture:
    assert (
      picture.size == (64, 64)
      and picture.mode == 'RGB'
      and picture.getpixel((63, 63)) == (255, 255, 255)
    )


def test_counts_tell_what_was_written(cache, tmp_path):
  counts = emoji.build(tmp_path, cache, makers=MAKERS)
  assert (
    counts['pictures'] == 2 * len(CODES) + 1 == counts['train pictures'] + counts['test pictures']
  )
  assert counts['concepts'] == len(CODES) == counts['train concepts'] + counts['test concepts']
  assert (
    sum(len(lines(tmp_path / f'{s}.caption.jsonl')) for s in emoji.SPLITS) == counts['pictures']
  )


def test_skin_tones_and_share_alike_styles_come_when_asked(cache, tmp_path):
  counts = emoji.build(tmp_path, cache, makers=MAKERS, tones=True, everything=True)
  assert counts['pictures'] == 2 * len(CODES) + 3
  assert (tmp_path / 'licences' / 'shared.txt').exists()


def test_licences_stand_beside_the_pictures(cache, tmp_path):
  emoji.build(tmp_path, cache, makers=MAKERS)
  text = (tmp_path / 'licences' / 'one.txt').read_text()
  assert 'MIT, one' in text and 'words of a licence' in text
  assert not (tmp_path / 'licences' / 'shared.txt').exists()


@pytest.mark.parametrize('name', ['mixture.json', 'mixture_test.json'])
def test_every_written_record_reads(cache, tmp_path, name):
  emoji.build(tmp_path, cache, makers=MAKERS)
  for row in sources.read_mixture(tmp_path / name):
    source = sources.open_source(row, MediaConfig(image_size='64'))
    records = [source[i] for i in range(len(source))]
    assert records and all(r['image'].shape == (64, 64, 3) for r in records if row.task != 'text')


def test_without_npm_the_message_is_plain(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(emoji.EmojiUnavailable, match='npm, which is not installed'):
    emoji.fetch('x@1', tmp_path / 'cache')


def test_a_failing_npm_is_quoted(tmp_path, monkeypatch):
  script = tmp_path / 'npm'
  script.write_text('#!/bin/sh\necho "npm error code ENOTFOUND" >&2\nexit 1\n')
  script.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:/bin:/usr/bin')
  with pytest.raises(emoji.EmojiUnavailable, match='x@1 failed .*ENOTFOUND'):
    emoji.fetch('x@1', tmp_path / 'cache')


@pytest.mark.parametrize('name', ['../out', '/out', 'link'])
def test_an_archive_that_leads_out_of_itself_is_refused_on_every_python(tmp_path, name):
  member = tarfile.TarInfo(name)
  if name == 'link':
    member.type, member.linkname = tarfile.SYMTYPE, '/out'
  with tarfile.open(tmp_path / 'a.tgz', 'w:gz') as tar:
    tar.addfile(member)
  with tarfile.open(tmp_path / 'a.tgz') as tar, pytest.raises(ValueError, match='no plain file'):
    emoji.inside(tar)
