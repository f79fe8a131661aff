"""Every kind of source on gs:// gives what it gives on a disk, against an emulator on loopback."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tuna_jax import files
from tuna_jax.data import arrayrecord, shards
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.records import BadRecord
from tuna_jax.data.sources import SourceConfig, open_source, read_mixture

storage = pytest.importorskip('tests.storage', reason='needs the emulator of the extra `test`')
MEDIA = MediaConfig(image_size='16', video_size='16', frames=5)


@pytest.fixture(scope='module')
def bucket():
  with storage.bucket('sources') as url:
    yield url


def png(level: int) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (16, 16), (level,) * 3).save(file, 'PNG')
  return file.getvalue()


def check(source, count: int):
  """Record n is a picture of grey n with the caption 'n', in any order of reading."""
  assert len(source) == count
  for n in np.random.default_rng(0).permutation(count):
    record = source[int(n)]
    assert record['caption'] == str(n) and (record['image'] == n).all(), n


def test_webdataset(bucket):
  for shard in range(2):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as tar:
      for n in range(3 * shard, 3 * shard + 3):
        for name, data in ((f'{n:03}.png', png(n)), (f'{n:03}.txt', str(n).encode())):
          member = tarfile.TarInfo(name)
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))
    files.write_bytes(f'{bucket}/tars/{shard}.tar', file.getvalue())
  row = {'path': 'tars/*.tar', 'task': 't2i'}  # beside the mixture, which lies in the bucket too
  files.write_json(f'{bucket}/mixture.json', [row])
  check(open_source(read_mixture(f'{bucket}/mixture.json')[0], MEDIA), 6)


def test_parquet(bucket):
  rows = {'image': [png(n) for n in range(6)], 'caption': [str(n) for n in range(6)]}
  file = io.BytesIO()
  pq.write_table(pa.table(rows), file, row_group_size=2)
  files.write_bytes(f'{bucket}/a.parquet', file.getvalue())
  check(open_source(SourceConfig(f'{bucket}/a.parquet', 't2i'), MEDIA), 6)


def test_array_record(bucket):
  with arrayrecord.writing(f'{bucket}/packed/0.array_record') as add:
    for n in range(6):
      add({'image': png(n), 'caption': str(n)})
  check(open_source(SourceConfig(f'{bucket}/packed/*.array_record', 't2i'), MEDIA), 6)


def test_the_index_of_json_lines_is_kept_in_the_bucket_until_the_file_changes(bucket, monkeypatch):
  monkeypatch.setattr(shards, 'SMALL', 0)
  for n in range(6):
    files.write_bytes(f'{bucket}/lines/{n}.png', png(n))
  path, index = f'{bucket}/lines/a.jsonl', files.path(f'{bucket}/lines/a.jsonl.index.npz')

  def opened(count):
    lines = (json.dumps({'image': f'{n}.png', 'caption': str(n)}) for n in range(count))
    files.write_text(path, '\n'.join(lines))
    return open_source(SourceConfig(path, 't2i'), MEDIA)

  check(opened(5), 5)
  assert index.exists()
  with monkeypatch.context() as once:
    once.setattr(shards, 'map_chunks', None)  # the file is not gone through again
    check(open_source(SourceConfig(path, 't2i'), MEDIA), 5)
  changed = opened(6)
  check(changed, 6)
  files.path(f'{bucket}/lines/3.png').unlink()
  with pytest.raises(BadRecord, match=r'a\.jsonl:4: .*3\.png'):
    changed[3]
