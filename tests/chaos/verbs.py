"""The verbs that write, each as a command line on the smallest inputs there are."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

from PIL import Image
from tuna_jax.configs import vae as vae_config

from tests import shrink
from tests.sample import small
from tests.weights.small import random_leaves, small_config
from tests.weights.test_peft import DECODER, written
from tuna_jax import files
from tuna_jax.mappings import to_dict
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.weights import parts, safetensors, store, torchfile
from tuna_jax.weights.tensors import lazies

TALK = [{'from': 'human', 'value': '<image>\nwhat?'}, {'from': 'gpt', 'value': 'red'}]


def album(root):
  """A mixture of nine pictures, of which one cannot be used, and of questions; one of texts."""
  root.mkdir()
  for n in range(9):
    Image.new('RGB', (20 + n, 30), (25 * n, 0, 0)).save(root / f'{n}.png')
  (root / '3.png').write_bytes(b'no picture')
  lines = {
    't2i': [{'image': f'{n}.png', 'caption': f'number {n}'} for n in range(9)],
    'vqa': [{'image': '1.png', 'conversations': TALK}] * 2,
  }
  for task, records in lines.items():
    (root / f'{task}.jsonl').write_text('\n'.join(map(json.dumps, records)) + '\n')
  rows = [{'path': f'{task}.jsonl', 'task': task} for task in lines]
  for name in ('mixture.json', 'mixture_test.json'):
    files.write_json(root / name, rows)
  files.write_json(root / 'remote.json', [{**rows[0], 'root': 'gs://bucket/pictures'}])
  text = [{'conversations': [{**TALK[0], 'value': f'{n}?'}, TALK[1]]} for n in range(20)]
  (root / 'text.jsonl').write_text('\n'.join(map(json.dumps, text)) + '\n')
  files.write_json(root / 'text.json', [{'path': 'text.jsonl', 'task': 'text'}])


def weights(root):
  """Official files, and what is needed to read them."""
  config = small_config()
  leaves, vae = random_leaves(tuna_shapes(config)), random_leaves(vae_shapes(config.vae), 1)
  stored = store.Stored(config, lazies(leaves), config.vae, lazies(vae), {})
  for name in ('decoder', 'vision', 'tuna'):
    (root / name).mkdir(parents=True)
    tensors, _, stem = parts.export_part(name, stored)
    safetensors.write_folder(root / name, tensors, stem=stem, shard_bytes=100_000)
  torchfile.write_file(root / 'VAE.pth', parts.export_part('vae', stored)[0])
  files.write_json(root / 'decoder' / 'tokenizer.json', {})
  files.write_json(root / 'model.json', to_dict(config))
  store.write(root / 'ours', config, leaves, vae, {}, [root / 'decoder' / 'tokenizer.json'])
  (root / 'lora').mkdir()
  written(root / 'lora', DECODER)


def _train():
  config = shrink.stage('stage2', steps=4, rows=2, keep=2)
  return [
    'train',
    '--config=configs/stage2.py:tiny',
    '--workdir={out}/run',
    *shrink.overrides(config, shrink.real('stage2')),
  ]


def _decoder():
  real = shrink.real('decoder')
  config = dataclasses.replace(shrink.shrink(real), steps=4, rows=2, keep=2)
  more = shrink.overrides(config, real)
  return ['pretrain', '--component=decoder', '--workdir={out}/decoder', *more]


def _vae():
  real = vae_config.from_config_dict(vae_config.get_config())
  config = dataclasses.replace(
    real, model=shrink.vae(real.model), steps=4, stills=2, clips=1, measured=8, warmup=1,
    data=dataclasses.replace(real.data, size=60),
  )  # fmt: skip
  more = shrink.overrides(config, real)
  return ['pretrain', '--component=vae', '--workdir={out}/vae', *more]


_MODEL = '--model={in}/weights/model.json'
VERBS = {  # name: its command line; {in} holds what `make` made, {out} is where it writes
  'train': _train,
  'decoder': _decoder,
  'vae': _vae,
  'evaluate': lambda: [
    'evaluate', '--workdir={in}/run', '--report={out}/report', '--n=1', '--points=2',
    '--batch_size=1',
  ],
  'generate': lambda: [
    'generate', 't2i', 'a red circle', '--checkpoint={in}/run', '--output={out}/a.png',
    '--points=2', '--count=3', '--batch_size=1',
  ],
  'import': lambda: [
    'convert', 'import', _MODEL, '--input={in}/weights/tuna', '--vae={in}/weights/VAE.pth',
    '--output={out}/imported',
  ],
  'export': lambda: [
    'convert', 'export', '--input={in}/weights/ours', '--part=tuna', '--output={out}/exported',
  ],
  'assemble': lambda: [
    'convert', 'assemble', _MODEL, '--decoder={in}/weights/decoder',
    '--vision={in}/weights/vision', '--vae={in}/weights/VAE.pth', '--output={out}/assembled',
  ],
  'merge': lambda: [
    'convert', 'merge', '--input={in}/weights/ours', '--lora={in}/weights/lora',
    '--output={out}/merged',
  ],
  'pack': lambda: [
    'data', 'pack', '{in}/album/mixture.json', '--out={out}/packed', '--shard_records=2',
    '--processes=2', '--max_skip_share=0.2',
  ],
  'encode': lambda: [
    'data', 'encode', '{in}/album/mixture.json', f'--vae={shrink.assets()}/vae',
    '--out={out}/latents', '--config=configs/stage2.py:tiny', '--config.data.media.image_size=64',
    '--config.data.media.frames=5', '--shard_records=2',
  ],
  'shapes': lambda: ['data', 'shapes', '--out={out}/shapes'],
  'preview': lambda: [
    'data', 'preview', '{in}/album/mixture.json', '--out={out}/page.html', '--count=1',
    f'--tokenizer={shrink.assets()}/tokenizer', '--image_size=64',
  ],
  'verify': lambda: ['ckpt', 'verify', '{in}/weights/ours'],
  'index': lambda: ['data', 'check', '{out}/long.json', '--limit=10'],
  'get': lambda: ['get', 'wan2.1-vae'],
  'align': lambda: [
    'align', '--a={in}/ball', '--b={in}/ball:visual', '--out={out}/align',
    '--n=20', '--topk=2',
  ],
  'fit': lambda: [
    'fit', '{in}/album/text.json', '--out={out}/fit', '--held_out=0.3', '--n=2', '--minutes=1',
  ],
}  # fmt: skip
# What does not end by itself, or takes a program of its own at every start: {verb: command line}.
LONG = {
  'compare': [
    'compare', '--rows=7', '--seeds=1', '--steps=10', '--decoder=10', '--vae=10', '--n=1',
    '--out={out}/compare',
  ],
  'serve': ['serve', '--checkpoint={in}/ball', '--port=0'],
  'demo': ['demo', '--checkpoint={in}/ball', '--port=0'],
}  # fmt: skip
# Scripts that run a verb: {script: (flags, verb, a file from which on it is at work)}.
SCRIPTS = {
  'supervise': (['--wait=0'], 'pack', 'packed/*'),
  'local': (['--name=decoder', '--out={out}'], 'decoder', 'decoder/checkpoints/[0-9]*'),
}


def begin(verb, inputs, out):
  """Empties the folder that a verb writes to, but for what it finds there."""
  shutil.rmtree(out, ignore_errors=True)
  pathlib.Path(out).mkdir()
  if verb in ('align', 'serve', 'demo') and not (ball := inputs / 'ball').exists():
    store.save(ball, small.CONFIG, small.params(), {'pictures': [16]})
    store.save(ball / 'vae', small.VAE, small.vae_params())
    small.tokenizer().save(ball)
  if verb == 'index':  # of more than 16 MB, whose index is kept
    record = json.dumps({'conversations': TALK[1:], 'more': 'x' * 100_000}) + '\n'
    (out / 'long.jsonl').write_text(170 * record)
    os.utime(out / 'long.jsonl', (0, 0))
    files.write_json(out / 'long.json', [{'path': 'long.jsonl', 'task': 'text'}])
  if verb == 'fit':  # its steps are chosen by the clock; these are as if chosen before
    steps = dict.fromkeys(('decoder', 'stage1', 'stage2', 'stage3'), 4)
    (out / 'fit').mkdir()
    files.write_json(
      out / 'fit' / 'fit.json', {'data': str(inputs / 'album' / 'text.json'), 'steps': steps}
    )


def command(verb, inputs, out) -> list[str]:
  """The command line of a verb."""
  parts = LONG[verb] if verb in LONG else script(verb) if verb in SCRIPTS else VERBS[verb]()
  return [part.replace('{in}', str(inputs)).replace('{out}', str(out)) for part in parts]


def script(name) -> list[str]:
  """A script of launch/ and the command that it runs, which it tells where to work."""
  flags, verb, _ = SCRIPTS[name]
  module, *parts = VERBS[verb]()
  parts = [part for part in parts if not part.startswith('--workdir')]
  return [f'launch/{name}.sh', *flags, '--', sys.executable, '-m', f'tuna_jax.cli.{module}', *parts]
