"""Makes data sets and checks them.

  tuna-jax data shapes --out=DIR
  tuna-jax data emoji --out=DIR [--cache=DIR] [--tones] [--all]
  tuna-jax data check MIXTURE.json [--limit=N]
  tuna-jax data check --config=configs/stage2.py:2b --config.data.mixture=MIXTURE.json [--limit=N]
  tuna-jax data fill --config=configs/stage2.py:2b --config.data.mixture=synthetic
  tuna-jax data encode MIXTURE.json --vae=DIR --out=DIR [--config=configs/stage2.py:2b]
  tuna-jax data preview MIXTURE.json --out=PAGE.html [--tokenizer=DIR] [--vae=DIR] [--count=N]
  tuna-jax data bench MIXTURE.json [--seconds=10] [--plan=PLAN.json]
  tuna-jax data pack MIXTURE.json --out=DIR [--processes=N] [--encode=webp --side=1024]
  tuna-jax data replay RUN/bad/STEP-PROCESS.npz

A mixture file is a JSON list of {"path", "root", "task", "weight"}; a task is t2i, caption, vqa,
text, edit, t2v, video_caption or video_vqa; a path names files: JSONL, a .json list, .parquet,
WebDataset .tar or .array_record, with patterns such as "x-*.tar"; or it is "shapes", "synthetic" or
"tfds:DIR". With --config, check also lays every record out in the rows of that run, with the
tokenizer of --config.tokenizer; without one, a word counts as one token. "synthetic" has blank
media, and texts of lengths as real data have.
"""

import os
import pathlib
import sys

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from tuna_jax import files
from tuna_jax.cli import app, packing
from tuna_jax.config import UserError
from tuna_jax.mappings import checked

ACTIONS = {
  'shapes': 'Writes mixture files of the rendered world, whose records are made as they are read.',
  'emoji': 'Makes captioned pictures of three emoji makers, fetched by package name with npm.',
  'check': 'Reads every record and names each unusable one; exits 1 above --max_skip_share.',
  'fill': 'Packs the mixture of a config without training, and prints how full its rows are.',
  'encode': 'Makes the latents of a mixture, so that training on them needs no VAE; it can go on.',
  'preview': 'Writes a page of what the model sees: tokens, spans, what is learned, pictures.',
  'replay': 'Shows the loss of each record of a batch that a run could not train on.',
  'bench': 'Times the reading of a mixture, beside what a planned pod needs (plan --json).',
  'pack': 'Writes ArrayRecord shards with the media inside; run again, it makes what is missing.',
}

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The stage and size whose rows the records must fit, FILE:SIZE.'
)
_BATCHES = flags.DEFINE_integer('batches', 50, 'How many batches of 16 rows to pack per phase.', 1)
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
  'max_skip_share', 0.01, 'The command fails if more than this share of a source is unusable.'
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
  'processes',
  0,
  'How many processes decode, so that a crash of a decoder is one bad record. '
  'For pack, how many processes work; 0 is one per core.',
)

_VAE = flags.DEFINE_string(
  'vae', None, 'The weights directory of the VAE: whose encoder is used, or that preview checks.'
)
_SHARD = flags.DEFINE_integer('shard_records', 2048, 'How many records a shard holds.', 1)
_HOST = flags.DEFINE_integer('host', 0, 'Which of the --hosts machines this is, from 0.', 0)
_HOSTS = flags.DEFINE_integer('hosts', 1, 'How many machines share the files of latents.', 1)
_THREADS = flags.DEFINE_integer('threads', 8, 'How many records are read at once.', 1)

_SECONDS = flags.DEFINE_float('seconds', 10.0, 'How long to read, all sources together.', 0.1)
_PLAN = flags.DEFINE_string('plan', None, 'The file that plan --json wrote.')

_PACK = packing.define_pack()

READERS = ('bench', 'check', 'encode', 'pack', 'preview')
ONLY = {
  'out': ('shapes', 'emoji', 'encode', 'pack', 'preview'),
  **dict.fromkeys(('host', 'hosts', 'threads'), ('encode',)),
  'vae': ('encode', 'preview'),
  **dict.fromkeys(packing.PACK_FLAGS, ('pack',)),
  'shard_records': ('encode', 'pack'),
  **dict.fromkeys(('cache', 'tones', 'all'), ('emoji',)),
  'max_skip_share': ('check', 'pack'),
  'limit': ('check', 'encode', 'pack'),
  **dict.fromkeys(('tokenizer', 'count'), ('preview',)),
  'config': ('check', 'encode', 'fill'),
  'batches': ('fill',),
  **dict.fromkeys(('seconds', 'plan'), ('bench',)),
  **dict.fromkeys(('image_size', 'video_size', 'frames', 'processes'), READERS),
}


def main(argv):
  action, *paths = argv[1:]
  if action == 'replay':
    return replay(*paths)
  configured = _CONFIG.value is not None
  if action in READERS and not paths and (action in ('bench', 'encode', 'pack') or not configured):
    raise UserError(f'data {action}: missing argument MIXTURE.json')
  if paths and (action not in READERS or (configured and action != 'encode')):
    instead = '; give --config.data.mixture' if configured else ''
    raise UserError(f'data {action}: unexpected argument {paths[0]!r}{instead}')
  if action == 'fill' and not configured:
    raise UserError('data fill: --config=FILE:SIZE is required')
  if action not in ('bench', 'check', 'fill') and not _OUT.value:
    raise UserError(f'data {action}: --out is required')
  every = {'shapes': shapes, 'emoji': emoji, 'check': check, 'fill': fill, 'preview': preview}
  every |= {'encode': encode, 'pack': pack, 'bench': bench}
  return check_config() if configured and action == 'check' else every[action](*paths)


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
  return _check(_sources(path))


def check_config():
  """`data check --config`: every record in the rows of the run, then what `train` checks first."""
  from tuna_jax.data import fit, mixture
  from tuna_jax.data.tasks import Context

  config, tokenizer = _config()
  if _PROCESSES.value:
    raise UserError('data check: --processes is --config.data.media.processes with --config')
  opened = mixture.open_sources(config.data)
  rows = Context(tokenizer, config.data.tasks), config.model.strides, config.sizes[1:4]
  phases = mixture.phases_of(config.data, opened, config.seed, config.steps)
  used = sorted({number for phase in phases for number in phase.numbers})
  code = _check([opened[number] for number in used], *rows)
  fit.check_rows(phases, opened, *rows)
  return code


def bench(path):
  from tuna_jax.data import sources
  from tuna_jax.tools import loading

  rows, media = sources.read_mixture(path), _media()
  each = _SECONDS.value / len(rows)
  rates = [loading.measure(sources.open_source(row, media), row.weight, each) for row in rows]
  print(loading.table(rates, files.read_json(_PLAN.value) if _PLAN.value else None))


def fill():
  from tuna_jax.tools import fill as packing

  config, tokenizer = _config()
  logging.set_verbosity(logging.ERROR)
  print(packing.table(packing.fill(config, tokenizer, _BATCHES.value)))


def _config():
  """The TrainConfig, and its tokenizer or the stand-in that counts words."""
  from tuna_jax.configs import common
  from tuna_jax.data.tokenizer import Tokenizer
  from tuna_jax.tools.fill import Words

  config = common.from_config_dict(_CONFIG.value)
  return config, Tokenizer.from_dir(config.tokenizer) if config.tokenizer else Words()


def _check(opened, *rows):
  """Prints what each source holds. rows: context, strides and room of `examples.check`."""
  from tuna_jax.data import examples

  failed = []
  for source in opened:
    count = min(_LIMIT.value or len(source), len(source))
    found = examples.check(source, count, print, *rows)
    if found.bad - found.large > _SHARE.value * count:
      failed.append(source.name)
    if rows:
      print(
        f'{source.name}: {1 - found.large / max(count, 1):.1%} of the first {count} records are '
        f'small enough for a row of {examples.shape(rows[-1])}; {found.large} are too large'
      )
    sizes = ', '.join(f'{n} of {size}' for size, n in found.sizes.most_common(8)) or 'none'
    print(
      f'{source.name}: {source.task}, {count} of {len(source)} records read, {found.bad} unusable; '
      f'media: {sizes}'
    )
  return _verdict(failed)


def pack(path):
  packed = _PACK(path, _OUT.value, _media(0), _SHARD.value, _LIMIT.value, _PROCESSES.value)
  failed = []
  for (name, count), skipped in zip(packed.rows, packed.skipped):
    print(*skipped, f'{name}: {count} records packed, {len(skipped)} unusable', sep='\n')
    if len(skipped) > _SHARE.value * (count + len(skipped)):
      failed.append(name)
  print(packed.path)
  return _verdict(failed)


def _verdict(failed):
  if failed:
    share = f'--max_skip_share={_SHARE.value:g}'
    print(f'more than {share} of the records are unusable: {", ".join(failed)}', file=sys.stderr)
  return int(bool(failed))


def encode(path):
  import json

  from tuna_jax.configs import common
  from tuna_jax.data import encoded, sources
  from tuna_jax.mappings import to_dict
  from tuna_jax.train import encoder
  from tuna_jax.train.config import EncoderConfig

  if not _VAE.value:
    raise UserError('data encode: --vae is required')
  if _HOST.value >= _HOSTS.value:
    raise UserError(f'--host={_HOST.value}: expected a number below --hosts={_HOSTS.value}')
  media, settings, model = _media(), EncoderConfig(dtype='bfloat16'), None
  if _CONFIG.value is not None:
    config = common.from_config_dict(_CONFIG.value)
    media, settings, model = config.data.media, config.encoder, config.model
    if model.vae is None:
      raise UserError(f'data encode: {model.design!r} has no VAE: it trains on pixels')
  made = encoder.load(_VAE.value, settings, model=model)
  out, rows = files.path(_OUT.value), []
  vae = json.loads(json.dumps(to_dict(made.config)))
  for number, row in enumerate(sources.read_mixture(path)):
    source, name = sources.open_source(row, media), f'{number:02}-{row.task}'
    count = min(_LIMIT.value or len(source), len(source))
    sizes = encoded.settings_of(row.task, media)
    about = encoded.About(row.task, source.name, count, _SHARD.value, sizes, made.digest, vae)
    encoded.write(
      source, out / name, about, made, made.group, host=_HOST.value, hosts=_HOSTS.value,
      threads=_THREADS.value,
    )  # fmt: skip
    rows.append({'path': encoded.PREFIX + name, 'task': row.task, 'weight': row.weight})
  files.write_json(out / 'mixture.json', rows)
  print(
    f'{out / "mixture.json"}: train with --config.data.mixture and --config.encoder.online=False'
  )
  return 0


def replay(path=None):
  from tuna_jax.train import replay as replaying

  if path is None:
    raise UserError('data replay: missing argument RUN/bad/STEP-PROCESS.npz')
  for found in replaying.replay(path):
    print(
      f'loss {found.loss:.4f}  {found.place}' + ('' if found.finite else ': latents not finite')
    )


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
  vae, strides, rebuilt = None, examples.STRIDES, None
  if _VAE.value:
    from tuna_jax.evals import reconstruct
    from tuna_jax.weights import store

    vae = store.load_vae(_VAE.value)
    strides = vae[0].temporal_stride, vae[0].spatial_stride
  for source in opened:
    for i in range(min(_COUNT.value, len(source))):
      try:
        laid = examples.example(source, i, context, rng, strides)
      except examples.BadRecord as e:
        print(f'left out: {e}', file=sys.stderr)
        continue
      shown.append((f'{source.task}: {source.where(i)}', laid))
  if vae and (stills := [m[0] for _, laid in shown for m in laid.media if len(m) == 1]):
    rebuilt = reconstruct.rebuild(*vae, stills)
    print(f'VAE: {rebuilt.psnr:.1f} dB on {len(stills)} pictures')
    print(rebuilt.warning, end='\n' if rebuilt.warning else '', file=sys.stderr)
  files.write_text(_OUT.value, preview_page.page(shown, tokenizer, rebuilt))
  print(f'{_OUT.value}: {len(shown)} examples')


def _media(processes=None):
  from tuna_jax.data.media import MediaConfig

  count = _PROCESSES.value if processes is None else processes
  return checked(MediaConfig(_IMAGE.value, _VIDEO.value, _FRAMES.value, processes=count))


def _sources(path):
  from tuna_jax.data import sources

  config = _media()
  return [sources.open_source(row, config) for row in sources.read_mixture(path)]


if __name__ == '__main__':
  app.run(main, actions=ACTIONS, positional=('MIXTURE.json?',), only=ONLY)
