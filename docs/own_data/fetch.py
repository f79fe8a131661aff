"""Two public data sets as own data, fetched by package name; nothing of them is part of tuna_jax.

  python docs/own_data/fetch.py easy-vqa --out=DIR       from PyPI with pip (MIT): questions
  python docs/own_data/fetch.py fashion-mnist --out=DIR  from Debian with apt-get (MIT): captions

Each writes DIR/mixture.json and DIR/mixture_test.json, which `tuna-jax fit` takes; the second also
the folder DIR/dyed of pairs with instructions. Fetching again does nothing where the package is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image

CLASSES = (
  *('a t-shirt', 'trousers', 'a pullover', 'a dress', 'a coat'),
  *('a sandal', 'a shirt', 'a sneaker', 'a bag', 'an ankle boot'),
)  # of Fashion-MNIST, by label
DYES = {'red': (200, 40, 40), 'green': (40, 150, 60), 'blue': (50, 80, 210), 'gold': (225, 180, 30)}
PAIRS = 2000  # pictures that are dyed


def easy_vqa(out: pathlib.Path) -> None:
  """4,000 pictures and 38,575 questions to train on, 1,000 and 9,673 to test on."""
  pip = [sys.executable, '-m', 'pip', 'download', 'easy-vqa', '--no-deps', '--quiet']
  if not list(out.glob('*.whl')):
    subprocess.run([*pip, '--dest', str(out)], check=True)
  wheel = zipfile.ZipFile(next(out.glob('*.whl')))
  wheel.extractall(out, [n for n in wheel.namelist() if n.endswith(('.png', '.json'))])
  for split, name in (('train', 'mixture.json'), ('test', 'mixture_test.json')):
    folder = f'easy_vqa/data/{split}'
    with (out / f'{split}.jsonl').open('w') as file:
      for question, answer, number in json.loads((out / folder / 'questions.json').read_text()):
        talk = [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]
        record = {'image': f'{folder}/images/{number}.png', 'conversations': talk}
        file.write(json.dumps(record) + '\n')
    mixture(out / name, {'vqa': f'{split}.jsonl'})


def fashion_mnist(out: pathlib.Path) -> None:
  """60,000 pictures to train on and 10,000 to test on, each with the name of its class."""
  if not list(out.glob('*.deb')):
    subprocess.run(['apt-get', 'download', 'dataset-fashion-mnist'], cwd=out, check=True)
  deb = str(next(out.glob('*.deb')))
  subprocess.run(['dpkg-deb', '-x', deb, str(out / 'package')], check=True)
  packed = out / 'package' / 'usr' / 'share' / 'datasets' / 'fashion-mnist'
  for split, prefix, name in (
    ('train', 'train', 'mixture.json'), ('test', 't10k', 'mixture_test.json')
  ):  # fmt: skip
    kinds = (('images-idx3', 16), ('labels-idx1', 8))  # (name, bytes of the header)
    files = (
      gzip.decompress((packed / f'{prefix}-{k}-ubyte.gz').read_bytes())[n:] for k, n in kinds
    )
    pictures, labels = (np.frombuffer(data, np.uint8) for data in files)
    pictures = pictures.reshape(-1, 28, 28)
    (out / split).mkdir(exist_ok=True)
    with (out / f'{split}.jsonl').open('w') as file:
      for number, (pixels, label) in enumerate(zip(pictures, labels)):
        path = f'{split}/{number:05}.png'
        Image.fromarray(255 - np.pad(pixels, 2)).save(out / path)
        if split == 'train' and number < PAIRS:
          dye(out / 'dyed', number, np.pad(pixels, 2))
        file.write(json.dumps({'image': path, 'caption': CLASSES[label]}) + '\n')
    mixture(out / name, {'t2i': f'{split}.jsonl', 'caption': f'{split}.jsonl'})


def dye(folder: pathlib.Path, number: int, ink: np.ndarray) -> None:
  """A pair of pictures and what changes the first into the second, as files of a folder. ink:
  uint8 [H, W], 255 where the picture is darkest."""
  folder.mkdir(exist_ok=True)
  name = tuple(DYES)[number % len(DYES)]
  share = ink[..., None] / 255
  dyed = 255 * (1 - share) + np.array(DYES[name]) * share
  Image.fromarray(255 - ink).convert('RGB').save(folder / f'{number:05}_before.png')
  Image.fromarray(dyed.astype(np.uint8)).save(folder / f'{number:05}_after.png')
  (folder / f'{number:05}.txt').write_text(f'dye it {name}\n')


def mixture(path: pathlib.Path, files: dict[str, str]) -> None:
  """Writes a mixture file of one JSONL per task."""
  rows = [{'path': name, 'task': task, 'weight': 1.0} for task, name in files.items()]
  path.write_text(json.dumps(rows, indent=2) + '\n')
  print(path)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('name', choices=['easy-vqa', 'fashion-mnist'])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  asked = parser.parse_args()
  asked.out.mkdir(parents=True, exist_ok=True)
  {'easy-vqa': easy_vqa, 'fashion-mnist': fashion_mnist}[asked.name](asked.out)
