"""Makes data sets and checks them.

  tuna-jax data shapes --out=DIR
  tuna-jax data emoji --out=DIR [--cache=DIR] [--tones] [--all]
  tuna-jax data check MIXTURE.json [--limit=N]
  tuna-jax data preview MIXTURE.json --out=PAGE.html [--tokenizer=DIR] [--count=N]

A mixture file is a JSON list of {"path", "root", "task", "weight"}; a task is t2i, caption, vqa,
text, edit, t2v, video_caption or video_vqa; a path is a JSONL file, "shapes", or "tfds:DIR".
"""

import os
import pathlib
import sys

import numpy as np
from absl import flags

from tuna_jax import files
from tuna_jax.cli import app
from tuna_jax.config import UserError, checked

ACTIONS = {
  'shapes': 'Writes mixture files of the rendered world, whose records are made as they are read.',
  'emoji': 'Makes captioned pictures of three emoji makers, fetched by package name with npm.',
  'check': 'Reads every record and names each unusable one; exits 1 above --max_skip_share.',
  'preview': 'Writes a page of what the model sees: tokens, spans, what is learned, pictures.',
}

_OUT = flags.DEFINE_string('out', None, 'The folder to write; for preview, the page to write.')
_CACHE = flags.DEFINE_string(
  'cache', os.path.join('~', '.cache', 'tuna_jax'), 'The folder that keeps fetched packages.'
)
_TONES = flags.DEFINE_bool('tones', False, 'Whether to include variants of skin tone.')
_ALL = flags.DEFINE_bool(
  'all', False, 'Whether to include styles under a share-alike licence (CC-BY-SA).'
)
_LIMIT = flags.DEFINE_integer('limit', 0, 'How many records to read per source; 0 reads all.')
_SHARE = flags.DEFINE_float(
  'max_skip_share', 0.01, 'The check fails if more than this share of a source is unusable.'
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', None, 'The tokenizer folder; without one, a tokenizer is trained on the texts.'
)
_COUNT = flags.DEFINE_integer('count', 5, 'How many examples to show per source.')
_IMAGE = flags.DEFINE_string(
  'image_size', '512', "The size that pictures are brought to: '512', '1024', 'N' or 'HxW'."
)
_VIDEO = flags.DEFINE_string(
  'video_size', 'video', "The size that clips are brought to: 'video', 'N' or 'HxW'."
)
_FRAMES = flags.DEFINE_integer('frames', 13, 'How many frames of a clip are read, 4k + 1.')
_PROCESSES = flags.DEFINE_integer(
  'processes', 0, 'How many processes decode, so that a crash of a decoder is one bad record.'
)

READERS = ('check', 'preview')
ONLY = {
  'out': ('shapes', 'emoji', 'preview'),
  **dict.fromkeys(('cache', 'tones', 'all'), ('emoji',)),
  **dict.fromkeys(('limit', 'max_skip_share'), ('check',)),
  **dict.fromkeys(('tokenizer', 'count'), ('preview',)),
  **dict.fromkeys(('image_size', 'video_size', 'frames', 'processes'), READERS),
}


def main(argv):
  action, *paths = argv[1:]
  if action in READERS and not paths:
    raise UserError(f'data {action}: missing argument MIXTURE.json')
  if action not in READERS and paths:
    raise UserError(f'data {action}: unexpected argument {paths[0]!r}')
  if action != 'check' and not _OUT.value:
    raise UserError(f'data {action}: --out is required')
  return {'shapes': shapes, 'emoji': emoji, 'check': check, 'preview': preview}[action](*paths)


# Few enough that their latents, which cost nine frames each to make, are soon all remembered.
_CLIPS = {'t2v': 2500, 'video_caption': 500, 'video_vqa': 1000}


def shapes():
  from tuna_jax.toy.records import TASKS

  out = files.path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  for split, name in (('train', 'mixture.json'), ('test', 'mixture_test.json')):
    row = {'path': 'shapes', 'task': '', 'weight': 1.0, 'split': split}
    rows = [{**row, 'task': task, 'size': _CLIPS.get(task, 1_000_000)} for task in TASKS]
    files.write_json(out / name, rows)
    print(f'{out / name}: {len(rows)} tasks of the rendered world, {split} compositions')


def emoji():
  from tuna_jax.tools import emoji as data

  # npm writes local folders only.
  out, cache = (pathlib.Path(flag.value).expanduser() for flag in (_OUT, _CACHE))
  try:
    counts = data.build(out, cache, tones=_TONES.value, everything=_ALL.value)
  except data.EmojiUnavailable as e:
    raise UserError(str(e)) from e
  print(f'{out / "mixture.json"}: ' + ', '.join(f'{n} {name}' for name, n in counts.items()))
  print(f'licences: {out / "licences"}')


def check(path):
  from tuna_jax.data import examples

  failed = []
  for source in _sources(path):
    count = min(_LIMIT.value or len(source), len(source))
    found = examples.check(source, count, print)
    if found.bad > _SHARE.value * count:
      failed.append(source.name)
    sizes = ', '.join(f'{n} of {size}' for size, n in found.sizes.most_common(8)) or 'none'
    print(
      f'{source.name}: {source.task}, {count} of {len(source)} records read, {found.bad} unusable; '
      f'media: {sizes}'
    )
  if failed:
    share = f'--max_skip_share={_SHARE.value:g}'
    print(f'more than {share} of the records are unusable: {", ".join(failed)}', file=sys.stderr)
  return int(bool(failed))


def preview(path):
  from tuna_jax.data import examples, mixture
  from tuna_jax.data.tasks import Context
  from tuna_jax.data.tokenizer import Tokenizer
  from tuna_jax.tools import preview as preview_page

  opened = _sources(path)
  if _TOKENIZER.value:
    tokenizer = Tokenizer.from_dir(_TOKENIZER.value)
  else:
    tokenizer = Tokenizer.train(mixture.texts(mixture.DataConfig(mixture=path), limit=500), 4096)
  context, rng, shown = Context(tokenizer), np.random.default_rng(0), []
  for source in opened:
    for i in range(min(_COUNT.value, len(source))):
      try:
        laid = examples.example(source, i, context, rng)
      except examples.BadRecord as e:
        print(f'left out: {e}', file=sys.stderr)
        continue
      shown.append((f'{source.task}: {source.where(i)}', laid))
  files.write_text(_OUT.value, preview_page.page(shown, tokenizer))
  print(f'{_OUT.value}: {len(shown)} examples')


def _sources(path):
  from tuna_jax.data import media, sources

  config = checked(
    media.MediaConfig(_IMAGE.value, _VIDEO.value, _FRAMES.value, processes=_PROCESSES.value)
  )
  return [sources.open_source(row, config) for row in sources.read_mixture(path)]


if __name__ == '__main__':
  app.run(main, actions=ACTIONS, positional=('MIXTURE.json?',), only=ONLY)
