"""The files that each official scorer reads: which prompt, which seeds, under which name.

    geneval  00000/metadata.jsonl, 00000/samples/00000.png ...      a folder per row, 4 pictures
    dpg      NAME.png for prompts/NAME.txt                          a 2x2 grid of 4
    oneig    object/MODEL/000.webp                                  a 2x2 grid of 4
    imgedit  KEY.png                                                one edit
    gedit    MODEL/fullset/TASK/LANGUAGE/KEY.png, KEY_SRCIMG.png    one edit of its source's size
    vbench   PROMPT-0.mp4 ... flat, no other suffix beside them     5 clips, 25 for flickering

Facts and sources: docs/benchmarks.md 4. numpy and Pillow only.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from etils import epath
from PIL import Image

from tuna_jax import files
from tuna_jax.benchmarks.answers import whole
from tuna_jax.config import UserError

SEED_STRIDE = 1000  # between the seeds of two prompts: more than any number of samples
GRID = 4  # samples in a 2x2 grid, left to right, then down
ONEIG = MappingProxyType(
  {
    'Anime_Stylization': 'anime',
    'Portrait': 'human',
    'General_Object': 'object',
    'Text_Rendering': 'text',
    'Knowledge_Reasoning': 'reasoning',
    'Multilingualism': 'multilingualism',
  }
)
VBENCH_SAMPLES, FLICKER_SAMPLES = 5, 25  # static_filter.py keeps 5 of the 25


@dataclasses.dataclass(frozen=True)
class Sample:
  """A file to write.

  path: below the folder of samples. prompt: text or instruction. seeds: one, or the four of a grid.
  source: of an edit, the picture's path. also: files written before it, path to content. fitted:
  the result is resized to its source.
  """

  path: str
  prompt: str
  seeds: tuple[int, ...]
  source: str = ''
  also: Mapping[str, Callable[[], bytes]] = dataclasses.field(default_factory=dict)
  fitted: bool = False


@dataclasses.dataclass(frozen=True)
class Seeds:
  """Which seed sample i of prompt n has: base + 1000 n + i, or with `same` base + i for every
  prompt, as GenEval's own sampler sets seed 42 before each.
  """

  base: int = 42
  same: bool = False

  def of(self, prompt: int, sample: int) -> int:
    return self.base + (0 if self.same else SEED_STRIDE * prompt) + sample


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """kind: 'image', 'edit' or 'video'. samples: (path of the prompts, seeds, samples per prompt or
  None for the official number, MODEL, folder of the sources) -> the files in the prompts' order.
  """

  kind: str
  samples: Callable[..., list[Sample]]


def geneval(prompts, seeds: Seeds, count, model, sources) -> list[Sample]:
  out = []
  for n, row in enumerate(_lines(prompts)):
    content = json.dumps(row).encode()
    also = {f'{n:05}/metadata.jsonl': lambda content=content: content}
    for i in range(count or 4):
      path = f'{n:05}/samples/{i:05}.png'
      out.append(Sample(path, row['prompt'], (seeds.of(n, i),), also=also))
  return out


def dpg(prompts, seeds: Seeds, count, model, sources) -> list[Sample]:
  _official(count, GRID, 'dpg')
  found = sorted(p for p in files.path(prompts).iterdir() if p.suffix == '.txt')
  if not found:
    raise UserError(f'{prompts}: no *.txt; expected the folder dpg_bench/prompts')
  return [
    Sample(f'{p.stem}.png', p.read_text().strip(), _grid(seeds, n)) for n, p in enumerate(found)
  ]


def oneig(prompts, seeds: Seeds, count, model, sources) -> list[Sample]:
  _official(count, GRID, 'oneig')
  text = files.path(prompts).read_bytes().decode('utf-8-sig')
  out = []
  for n, row in enumerate(csv.DictReader(io.StringIO(text))):
    prompt = row.get('prompt_en') or row.get('prompt_cn') or row.get('prompt_zh')
    if row.get('category') not in ONEIG or not prompt:
      raise UserError(
        f'{prompts}: row {n + 1} has category {row.get("category")!r} and columns '
        f'{", ".join(row)}; expected a category of {", ".join(ONEIG)}, id and prompt_en'
      )
    path = f'{ONEIG[row["category"]]}/{model}/{row["id"].zfill(3)}.webp'
    out.append(Sample(path, prompt, _grid(seeds, n)))
  return out


def imgedit(prompts, seeds: Seeds, count, model, sources) -> list[Sample]:
  _official(count, 1, 'imgedit')
  root = files.path(sources or files.path(prompts).parent)
  return [
    Sample(f'{key}.png', row['prompt'], (seeds.of(n, 0),), source=str(root / row['id']))
    for n, (key, row) in enumerate(files.read_json(prompts).items())
  ]


def gedit(prompts, seeds: Seeds, count, model, sources) -> list[Sample]:
  _official(count, 1, 'gedit')
  root = files.path(sources or files.path(prompts).parent)
  out = []
  for n, row in enumerate(_lines(prompts)):
    stem = f'{model}/fullset/{row["task_type"]}/{row["instruction_language"]}/{row["key"]}'
    source = str(root / row['input_image'])
    also = {f'{stem}_SRCIMG.png': lambda source=source: png(Image.fromarray(whole(source)))}
    seed = (seeds.of(n, 0),)
    out.append(Sample(f'{stem}.png', row['instruction'], seed, source, also, fitted=True))
  return out


def vbench(prompts, seeds: Seeds, count, model, sources) -> list[Sample]:
  asked: dict[str, set[str]] = {}  # the list names two prompts twice
  for row in files.read_json(prompts):
    asked.setdefault(row['prompt_en'], set()).update(row['dimension'])
  out = []
  for n, (prompt, dimensions) in enumerate(asked.items()):
    if '/' in prompt:
      raise UserError(f'{prompts}: {prompt!r} cannot be the name of a file')
    official = FLICKER_SAMPLES if 'temporal_flickering' in dimensions else VBENCH_SAMPLES
    for i in range(count or official):
      out.append(Sample(f'{prompt}-{i}.mp4', prompt, (seeds.of(n, i),)))
  return out


BENCHMARKS = MappingProxyType(
  {
    'geneval': Benchmark('image', geneval),
    'dpg': Benchmark('image', dpg),
    'oneig': Benchmark('image', oneig),
    'imgedit': Benchmark('edit', imgedit),
    'gedit': Benchmark('edit', gedit),
    'vbench': Benchmark('video', vbench),
  }
)


def digest(prompts) -> str:
  """sha256 of a prompt file, or of the names and contents of a folder's *.txt."""
  where, out = files.path(prompts), hashlib.sha256()
  if not where.is_dir():
    out.update(where.read_bytes())
  else:
    for p in sorted(p for p in where.iterdir() if p.suffix == '.txt'):
      out.update(f'{p.name}\0'.encode() + p.read_bytes() + b'\0')
  return out.hexdigest()


def png(picture: Image.Image) -> bytes:
  """A picture as the bytes of a PNG."""
  file = io.BytesIO()
  picture.save(file, 'PNG')
  return file.getvalue()


def missing(samples: Sequence[Sample], root: epath.Path) -> list[Sample]:
  """The samples that are not in the tree. A file is written whole or not at all."""
  return [sample for sample in samples if not (root / sample.path).exists()]


def _grid(seeds: Seeds, n: int) -> tuple[int, ...]:
  return tuple(seeds.of(n, i) for i in range(GRID))


def _official(count, wanted: int, name: str):
  if count not in (None, wanted):
    raise UserError(f'{name}: its scorer reads {wanted} per prompt; leave --samples out')


def _lines(path) -> list[dict[str, Any]]:
  out = []
  for n, line in enumerate(files.path(path).read_bytes().decode('utf-8-sig').splitlines(), 1):
    if line.strip():
      try:
        out.append(json.loads(line))
      except json.JSONDecodeError as error:
        raise UserError(f'{path}:{n}: not JSON ({error.msg})') from None
  return out
