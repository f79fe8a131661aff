"""Packing: sources become the same records in shards, bad ones named; a killed run goes on."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data import pack
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.sources import open_source, read_mixture

CONFIG = MediaConfig(image_size='64', video_size='16', frames=5)
TALK = [{'from': 'human', 'value': '<image>\nwhat?'}, {'from': 'gpt', 'value': 'red'}]


@pytest.fixture
def mixture(tmp_path):
  for n in range(7):
    Image.new('RGB', (20 + n, 30), (30 * n, 0, 0)).save(tmp_path / f'{n}.png')
  (tmp_path / '3.png').write_bytes(b'no picture')
  clip = tmp_path / 'clip'
  clip.mkdir()
  for n in range(5):
    Image.new('RGB', (16, 16), (n, 0, 0)).save(clip / f'{n}.png')
  lines = {
    't2i': [{'image': f'{n}.png', 'caption': str(n), 'id': n} for n in range(7)],
    'vqa': [{'image': ['1.png', '2.png'], 'conversations': TALK}],
    't2v': [{'video': 'clip', 'caption': 'c'}],
    'text': [{'conversations': TALK}] * 3,
  }
  for task, records in lines.items():
    (tmp_path / f'{task}.jsonl').write_text('\n'.join(map(json.dumps, records)))
  rows = [{'path': f'{task}.jsonl', 'task': task, 'weight': 2.0} for task in lines]
  rows.append({'path': 'shapes', 'task': 'edit', 'size': 2})
  (tmp_path / 'm.json').write_text(json.dumps(rows))
  return str(tmp_path / 'm.json')


def packed(mixture, out, **config):
  shards = pack.plan(mixture, str(out), pack.PackConfig(**{'shard_records': 3, **config}), CONFIG)
  for shard in shards:
    pack.make(shard)
  return pack.finish(mixture, str(out), shards)


def records(mixture):
  """All usable records of each row, media read."""
  found = []
  for source in [open_source(row, CONFIG) for row in read_mixture(mixture)]:
    found.append([])
    for index in range(len(source)):
      try:
        found[-1].append(source[index])
      except UserError:
        continue
  return found


def test_packed_records_are_those_of_the_sources_without_the_bad_ones(mixture, tmp_path):
  made = packed(mixture, tmp_path / 'out')
  before, after = records(mixture), records(made.path)
  assert [len(row) for row in after] == [n for _, n in made.rows] == [6, 1, 1, 3, 2]
  for old, new in zip(before, after):
    for a, b in zip(old, new, strict=True):
      assert a.keys() == b.keys()
      for field in a:
        np.testing.assert_equal(b[field], a[field])
  assert [row.weight for row in read_mixture(made.path)] == [2.0, 2.0, 2.0, 2.0, 1.0]
  ((bad,), *others) = made.skipped
  assert f'{tmp_path}/t2i.jsonl:4: {tmp_path}/3.png: not a readable picture' in bad
  assert not any(others)


def test_pictures_stay_the_bytes_that_they_were(mixture, tmp_path):
  row = read_mixture(packed(mixture, tmp_path / 'out').path)[0]
  assert open_source(row, CONFIG).raw(0)['image'] == (tmp_path / '0.png').read_bytes()


def test_pictures_are_encoded_again_and_made_smaller_if_asked(mixture, tmp_path):
  row = read_mixture(packed(mixture, tmp_path / 'out', encode='webp', side=10).path)[0]
  picture = Image.open(io.BytesIO(open_source(row, CONFIG).raw(0)['image']))
  assert (picture.format, picture.size) == ('WEBP', (10, 15))


def test_without_verification_damaged_pictures_are_packed_and_missing_ones_are_not(
  mixture, tmp_path
):
  (tmp_path / '5.png').unlink()
  made = packed(mixture, tmp_path / 'out', verify=False)
  assert made.rows[0][1] == 6 and '5.png' in made.skipped[0][0]


def test_a_run_that_was_killed_makes_only_what_is_missing(mixture, tmp_path):
  first = packed(mixture, tmp_path / 'out')
  shards = sorted((tmp_path / 'out').glob('00-t2i-*.array_record'))
  assert [s.name for s in shards] == [f'00-t2i-0000{n}-of-00003.array_record' for n in range(3)]
  shards[2].unlink()
  times = [s.stat().st_mtime_ns for s in shards[:2]]
  again = packed(mixture, tmp_path / 'out')
  assert again == first and shards[2].exists()
  assert [s.stat().st_mtime_ns for s in shards[:2]] == times


def test_shards_of_other_settings_are_not_mixed(mixture, tmp_path):
  packed(mixture, tmp_path / 'out')
  with pytest.raises(UserError, match='packed with other settings .limit, mixture'):
    packed(mixture, tmp_path / 'out', limit=2)


def test_shards_are_made_by_processes(mixture, tmp_path):
  shards = pack.plan(mixture, str(tmp_path / 'out'), pack.PackConfig(), CONFIG)
  assert sum(pack.make_all(shards, 2, print)) == 14
  assert sum(n for _, n in pack.finish(mixture, str(tmp_path / 'out'), shards).rows) == 13


def test_a_mixture_without_usable_records_is_an_error(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"image": "gone.png", "caption": "a"}\n')
  (tmp_path / 'm.json').write_text(json.dumps([{'path': 'a.jsonl', 'task': 't2i'}]))
  with pytest.raises(UserError, match=r'no record can be used; the first: .*gone\.png'):
    packed(str(tmp_path / 'm.json'), tmp_path / 'out')


def test_beam_makes_the_same_shards(mixture, tmp_path):
  pytest.importorskip('apache_beam', reason='the beam extra is not installed')
  made = packed(mixture, tmp_path / 'out')
  shards = pack.plan(mixture, str(tmp_path / 'beam'), pack.PackConfig(shard_records=3), CONFIG)
  pack.make_with_beam(shards, ['--runner=DirectRunner'])
  beam = pack.finish(mixture, str(tmp_path / 'beam'), shards)
  assert (beam.rows, beam.skipped) == (made.rows, made.skipped)
  for shard in shards:
    name = shard.path.rsplit('/', 1)[1]
    assert (tmp_path / 'beam' / name).read_bytes() == (tmp_path / 'out' / name).read_bytes()


@pytest.mark.parametrize('config', [{'encode': 'gif'}, {'side': 9}, {'shard_records': 0}])
def test_settings_of_packing_are_checked(config):
  with pytest.raises(UserError, match=next(iter(config))):
    pack.PackConfig(**config)
