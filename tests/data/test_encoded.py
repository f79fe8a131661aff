"""Latents made before training are those that training would have made, to 8 bits."""

import dataclasses
import json

import numpy as np
import pytest

from tuna_jax.data import encoded
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.mixture import DataConfig
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.sources import SourceConfig, open_source
from tuna_jax.data.tokenizer import Tokenizer

MEDIA = MediaConfig(image_size='64', video_size='64', frames=5)
BFLOAT16 = 2**-8  # relative
TASKS = ('t2i', 'edit', 'video_vqa', 'text')


def encode(pixels):
  return pixels[:, ::4, ::16, ::16] / np.float32(255)


def made(folder, task='t2i', count=10, encode=encode, **options):
  source = open_source(SourceConfig('shapes', task, size=100), MEDIA)
  settings = encoded.settings_of(task, MEDIA)
  about = encoded.About(task, source.name, count, 4, settings, 'ab' * 16, {})
  encoded.write(source, folder, about, encode, 4, say=lambda _: None, **options)
  return source


def opened(folder, task='t2i', media=MEDIA):
  return open_source(SourceConfig(f'latents:{folder}', task), media)


@pytest.mark.parametrize('task', TASKS)
def test_records_come_back_with_latents_for_media(tmp_path, task):
  source, found = made(tmp_path / 'a', task), None
  found = opened(tmp_path / 'a', task)
  assert len(found) == 10
  for index in (0, 5, 9):
    before, after = source[index], found[index]
    for field, value in after.items():
      if isinstance(value, np.ndarray):
        pixels = before[field] if before[field].ndim == 4 else before[field][None]
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, encode(pixels[None])[0], rtol=BFLOAT16)
      elif not isinstance(value, list):
        assert value == before[field]


def test_a_batch_of_latents_is_the_batch_of_pixels(tmp_path):
  rows = [{'path': 'shapes', 'task': task, 'size': 8} for task in TASKS]
  (tmp_path / 'pixels.json').write_text(json.dumps(rows))
  for task in TASKS:
    source = open_source(SourceConfig('shapes', task, size=8), MEDIA)
    settings = encoded.settings_of(task, MEDIA)
    about = encoded.About(task, 'shapes', 8, 3, settings, 'ab' * 16, {})
    encoded.write(source, tmp_path / task, about, encode, 4, say=lambda _: None)
  rows = [{'path': f'latents:{task}', 'task': task} for task in TASKS]
  (tmp_path / 'latents.json').write_text(json.dumps(rows))
  tokenizer, batches = Tokenizer.train(['a red ball'], 300), []
  for name, encoder in (('pixels.json', encode), ('latents.json', None)):
    data = DataConfig(mixture=str(tmp_path / name), media=MEDIA, prefetch=0)
    run = Pipeline(
      data, tokenizer, encode=encoder, strides=(4, 16), sizes=(2, 512, 128, 8, 3), seed=0
    )
    batches.append([next(run) for _ in range(3)])
  for one, other in zip(*batches, strict=True):
    np.testing.assert_allclose(one.latents, other.latents, rtol=BFLOAT16)
    for field in set(one._fields) - {'latents'}:
      np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


class Stop(Exception):
  pass


def test_a_stopped_run_keeps_whole_shards_and_goes_on(tmp_path):
  calls = []

  def stopped_within_the_second_shard(pixels):
    calls.append(1)
    if len(calls) == 2:
      raise Stop
    return encode(pixels)

  with pytest.raises(Stop):
    made(tmp_path / 'a', encode=stopped_within_the_second_shard)
  assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['00000.array_record', 'about.json']
  with pytest.raises(ValueError, match='1 of 3 shards are complete'):
    opened(tmp_path / 'a')
  first = (tmp_path / 'a' / '00000.array_record').stat().st_mtime_ns
  made(tmp_path / 'a')
  assert (tmp_path / 'a' / '00000.array_record').stat().st_mtime_ns == first
  assert len(opened(tmp_path / 'a')) == 10


def test_hosts_share_the_shards(tmp_path):
  made(tmp_path / 'a', host=1, hosts=2)
  assert (tmp_path / 'a' / '00001.array_record').exists()
  assert not (tmp_path / 'a' / 'counts.json').exists()
  made(tmp_path / 'a', host=0, hosts=2)
  made(tmp_path / 'b')
  for index in range(10):
    np.testing.assert_array_equal(
      opened(tmp_path / 'a')[index]['image'], opened(tmp_path / 'b')[index]['image']
    )


def test_other_sizes_tasks_and_encoders_are_named(tmp_path):
  source = made(tmp_path / 'a')
  with pytest.raises(ValueError, match="media.image_size='64', this run has '128'"):
    opened(tmp_path / 'a', media=dataclasses.replace(MEDIA, image_size='128'))
  opened(tmp_path / 'a', media=dataclasses.replace(MEDIA, frames=9))  # no clips there
  with pytest.raises(ValueError, match='task t2i, the row says caption'):
    opened(tmp_path / 'a', 'caption')
  about = dataclasses.replace(encoded.read_about(tmp_path / 'a'), digest='cd' * 16)
  with pytest.raises(ValueError, match='was made with digest='):
    encoded.write(source, tmp_path / 'a', about, encode, 4)


def test_unusable_records_are_left_out_and_named(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"image": "none.png", "caption": "x"}\n' * 2)
  source, said = open_source(SourceConfig(str(tmp_path / 'a.jsonl'), 't2i'), MEDIA), []
  about = encoded.About('t2i', 'a', 2, 4, encoded.settings_of('t2i', MEDIA), 'ab' * 16, {})
  encoded.write(source, tmp_path / 'out', about, encode, 4, say=said.append)
  assert 'a.jsonl:1: ' in said[0] and said[-1].endswith('0 records, 2 unusable')
