"""Mutated records, pictures and clips, read one after the other in a process of its own.

  python mutants.py FIRST COUNT     prints one JSON line: verdicts, the largest memory, the slowest

A mutant is a function of its number alone. The process dies where a mutant kills it; the number of
the mutant at work is on the standard error output.
"""

import collections
import functools
import io
import json
import random
import resource
import sys
import tempfile
import time
import warnings

import av
import numpy as np
from PIL import Image

from tuna_jax.data import examples, media
from tuna_jax.data.jsonl import JsonlSource
from tuna_jax.data.records import BadRecord, load, named
from tuna_jax.data.sources import SourceConfig
from tuna_jax.data.tasks import Context
from tuna_jax.data.tokenizer import Letters

CONFIG = media.MediaConfig('64', '64', 5)
PICTURES = (
  *('PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'ICO', 'PPM', 'TGA', 'JPEG2000', 'DDS', 'SGI'),
  *('PCX', 'AVIF', 'QOI', 'ICNS', 'IM', 'MSP', 'XBM'),
)
FILMS = (
  *(('mp4', 'libx264'), ('matroska', 'libx264'), ('avi', 'mpeg4'), ('webm', 'libvpx-vp9')),
  *(('mpegts', 'mpeg2video'), ('mov', 'mjpeg'), ('flv', 'flv'), ('ogg', 'libtheora')),
)


def encoded(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@functools.cache
def pictures():
  noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
  image, exif = Image.fromarray(noise), Image.Exif()
  exif[0x0112], exif[0x010E] = 6, 'x' * 50
  made = [
    encoded(image.convert('1') if kind in ('MSP', 'XBM') else image, kind) for kind in PICTURES
  ]
  made += [
    encoded(image, 'JPEG', exif=exif, progressive=True),
    encoded(image.convert('CMYK'), 'JPEG'),
    encoded(image.convert('P'), 'PNG', transparency=3),
    encoded(image.convert('RGBA'), 'PNG', exif=exif),
    encoded(Image.fromarray(noise[..., 0].astype(np.uint16) << 8), 'PNG'),
    encoded(Image.fromarray(noise[..., 0].astype(np.float32)), 'TIFF'),
    encoded(image, 'TIFF', compression='tiff_lzw'),
    encoded(image.convert('RGBA'), 'WEBP', lossless=True),
  ]
  return made


@functools.cache
def clips():
  noise = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3), np.uint8)
  first, *more = map(Image.fromarray, noise)
  made = [
    encoded(first, kind, save_all=True, append_images=more, duration=[50, 90, 50, 50, 50, 50])
    for kind in ('GIF', 'PNG', 'WEBP', 'AVIF')
  ]
  for container, codec in FILMS:
    if codec not in av.codecs_available:
      continue
    file = io.BytesIO()
    with av.open(file, 'w', format=container) as output:
      stream = output.add_stream(codec, rate=10)
      stream.height, stream.width = 40, 48
      stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
      for pixels in noise:
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, 'rgb24')))
      output.mux(stream.encode())
    made.append(file.getvalue())
  return made


def mutated(data: bytes, rng: random.Random) -> bytes:
  """Bytes set, cut off, put in and taken out, mostly near the start, where headers are."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 4, 8))):
    how, at = rng.random(), rng.randrange(min(len(data), rng.choice((64, 300, 10**6))))
    if how < 0.6:
      data[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    elif how < 0.7:
      del data[rng.randrange(len(data)) :]
    elif how < 0.85:
      data[at:at] = rng.randbytes(rng.randrange(9))
    elif how < 0.95:
      del data[at : at + rng.randrange(20)]
    else:
      data[at : at + 4] = rng.choice((b'\xff' * 4, b'\x7f\xff\xff\xff', b'\0\0\0\0', b'\0\1\0\0'))
    data = data or bytearray(b'\0')
  return bytes(data)


def value(rng: random.Random, depth=0):
  """Any JSON value."""
  kind = rng.randrange(9 if depth < 4 else 7)
  if kind == 7:
    return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
  if kind == 8:
    keys = ('from', 'value', 'image', 'x')
    return {rng.choice(keys): value(rng, depth + 1) for _ in range(rng.randrange(4))}
  texts = (
    '',
    'human',
    'gpt',
    '<image>',
    'a.png',
    '../a.png',
    '\ud83d',
    'a\0',
    'x' * 999,
    '~',
    'gs://b/a',
  )
  return (None, True, -1, 1e308, float('nan'), 10**30, rng.choice(texts))[kind]


def line(rng: random.Random) -> tuple[str, bytes]:
  """(task, a JSON line): fields of other kinds, or bytes changed."""
  talk = [{'from': 'human', 'value': '<image>\nhi'}, {'from': 'gpt', 'value': 'yo'}]
  task, record = rng.choice(
    [
      ('caption', {'image': 'a.png', 'caption': 'a cat'}),
      ('vqa', {'image': ['a.png', 'a.png'], 'conversations': talk}),
      ('text', {'conversations': [{'from': 'human', 'value': 'hi'}, talk[1]]}),
      ('edit', {'raw_image': 'a.png', 'out_image': 'a.png', 'instruction': 'redder'}),
      ('t2v', {'video': ['a.png'] * 3, 'caption': 'a cat'}),
    ]
  )
  if rng.random() < 0.6:
    at, key = record, rng.choice(list(record))
    while rng.random() < 0.5 and isinstance(at[key], (list, dict)) and at[key]:
      at = at[key]
      key = rng.randrange(len(at)) if isinstance(at, list) else rng.choice(list(at))
    at[key] = value(rng)
    return task, json.dumps(record).encode()
  return task, mutated(json.dumps(record).encode(), rng).replace(b'\n', b' ')


class Mutants:
  """One mutant as a source of one record."""

  name = 'mutants'

  def __init__(self, number: int):
    self.task, self.number = ('caption', 't2v')[number % 4 == 3], number

  def __len__(self):
    return 1

  @named
  def __getitem__(self, index):
    return load(self.raw(index), self.task, '/', CONFIG)

  def raw(self, index):
    rng = random.Random(self.number)
    data = mutated(rng.choice(clips() if self.task == 't2v' else pictures()), rng)
    return {'image': data, 'video': data, 'caption': 'x'}

  def where(self, index):
    return f'mutants:{self.number}'


def source_of(number: int, folder: str):
  """The source of a mutant: every second a picture, of the others a clip or a line of JSON."""
  if number % 4 != 1:
    return Mutants(number)
  task, text = line(random.Random(number))
  with open(f'{folder}/{number}.jsonl', 'wb') as file:
    file.write(text + b'  \n')
  return JsonlSource(SourceConfig(f'{folder}/{number}.jsonl', task), CONFIG)


def peak() -> int:
  """The most memory this process had since the last call, in bytes."""
  with open('/proc/self/status') as file:
    high = int(next(v for v in file if v.startswith('VmHWM')).split()[1]) << 10
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')
  return high


def main(first: int, count: int):
  warnings.simplefilter('ignore')
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  folder, context, rng = tempfile.mkdtemp(), Context(Letters()), np.random.default_rng(0)
  Image.new('RGB', (32, 32), 'red').save(f'{folder}/a.png')
  pictures(), clips(), peak()
  verdicts, memory, slowest = collections.Counter(), (0, 0), (0.0, 0)
  for number in range(first, first + count):
    print(number, end='\r', file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
      examples.example(source_of(number, folder), 0, context, rng)
      verdicts['used'] += 1
    except BadRecord:
      verdicts['named'] += 1
    memory = max(memory, (peak(), number))
    slowest = max(slowest, (time.monotonic() - began, number))
  print(json.dumps({**verdicts, 'memory': memory, 'slowest': slowest}))


if __name__ == '__main__':
  main(*map(int, sys.argv[1:]))
