"""The verbs that write, each as a command line on the smallest inputs there are."""

import dataclasses
import json

from PIL import Image
from tuna_jax.configs import vae as vae_config

from tests import shrink
from tests.weights.small import random_leaves, small_config
from tests.weights.test_peft import DECODER, written
from tuna_jax import files
from tuna_jax.mappings import to_dict
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.weights import parts, safetensors, store, torchfile
from tuna_jax.weights.tensors import lazies

TALK = [{'from': 'human', 'value': '<image>\nwhat?'}, {'from': 'gpt', 'value': 'red'}]


def album(root):
  """A mixture of nine pictures, of which one cannot be used, and of texts."""
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
    'evaluate', '--workdir={in}/run', '--report={out}/report', '--data={in}/album/mixture.json',
    '--n=1', '--points=2', '--batch_size=1',
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
}  # fmt: skip


def command(verb, inputs, out) -> list[str]:
  """The command line of a verb."""
  return [part.replace('{in}', str(inputs)).replace('{out}', str(out)) for part in VERBS[verb]()]
