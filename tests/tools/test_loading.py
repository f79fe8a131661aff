"""The rate of reading is told beside what a plan needs."""

import json

import pytest
from PIL import Image

from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.sources import SourceConfig, open_source
from tuna_jax.tools.loading import Rate, measure, table, together

PLAN = {'topology': 'v5e:4x4', 'hosts': 4, 'pictures': 1000.0, 'roofline': {'estimate': 2.0}}


def source(tmp_path, task, record):
  Image.new('RGB', (16, 16)).save(tmp_path / 'a.png')
  (tmp_path / 'a.jsonl').write_text(json.dumps(record))
  media = MediaConfig(image_size='16', video_size='16', frames=5)
  return open_source(SourceConfig(str(tmp_path / 'a.jsonl'), task), media)


def test_every_frame_of_a_clip_and_every_picture_counts(tmp_path):
  clip = source(tmp_path, 't2v', {'video': ['a.png', 'a.png'], 'caption': 'x'})
  found = measure(clip, 1.0, 0.02)
  assert found.records > 0 and found.pictures == 5 * found.records and found.core > 0
  edit = {'raw_image': ['a.png', 'a.png'], 'out_image': 'a.png', 'instruction': 'x'}
  found = measure(source(tmp_path, 'edit', edit), 1.0, 0.02)
  assert found.pictures == 3 * found.records


def test_a_source_without_a_usable_record_is_named(tmp_path):
  with pytest.raises(UserError, match=r'a\.jsonl: .* unusable records; .*gone\.png'):
    measure(source(tmp_path, 't2i', {'image': 'gone.png', 'caption': 'x'}), 1.0, 0.02)


def test_weights_mix_the_rates_and_a_plan_says_how_many_cores_it_needs():
  slow = Rate('a', 't2i', 3.0, 10, 10, 1.0, 1.0)  # 0.1 s a record
  fast = Rate('b', 'vqa', 1.0, 10, 20, 0.2, 2.0)  # 0.02 s a record of two pictures
  assert together([slow, fast]) == pytest.approx((3 * 1 + 1 * 2) / (3 * 0.1 + 1 * 0.02))
  said = table([slow, fast], PLAN).splitlines()
  assert 'a: t2i, 10.0 pictures/s per core' in said[0] and '10.0/s in one thread' in said[1]
  assert '500.0 pictures/s' in said[-1] and '125.0 on each of its 4 hosts, 8.0 cores' in said[-1]
  with pytest.raises(UserError, match='the plan has no hosts, pictures; '):
    table([slow], {'topology': 'v5e:4x4', 'roofline': {}})


def test_a_file_that_is_no_plan_is_named():
  with pytest.raises(UserError, match='no plan'):
    table([], [])
