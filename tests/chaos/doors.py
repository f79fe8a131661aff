"""The doors: files of every kind with what reads them, and words with what takes them."""

import functools
import json
import os
import sys
import tempfile
import traceback

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from tuna_jax.configs import vae as vae_config

from tests import shrink
from tests.chaos.strange import WORDS, changed
from tests.chaos.test_damage import make_run, make_weights
from tests.weights.small import small_config
from tests.weights.test_peft import DECODER, written
from tuna_jax import batch
from tuna_jax.cli import app, main
from tuna_jax.config import UserError
from tuna_jax.data import pack, sources
from tuna_jax.data.latents import LatentCache
from tuna_jax.data.media import MediaConfig
from tuna_jax.data.segments import layout
from tuna_jax.data.tasks import TASKS, Context
from tuna_jax.data.tokenizer import Letters, Tokenizer
from tuna_jax.mappings import from_dict, to_dict
from tuna_jax.parity import cases
from tuna_jax.sample import requests
from tuna_jax.sample.image import Guidance
from tuna_jax.sample.output import Picture, read_info
from tuna_jax.small.fit import Progress
from tuna_jax.train import checkpoint, replay
from tuna_jax.train.goodput import Goodput
from tuna_jax.weights import open as opening
from tuna_jax.weights import peft, steps, store, torchfile
from tuna_jax.weights.tensors import lazies

MEDIA = MediaConfig('64', '64', 5)
VAE = vae_config.from_config_dict(vae_config.get_config())
TALK = [{'from': 'human', 'value': '<image>\nhi'}, {'from': 'gpt', 'value': 'yo'}]
RECORDS = {
  'caption': {'image': 'a.png', 'caption': 'a cat'},
  'vqa': {'image': ['a.png', 'a.png'], 'conversations': TALK},
  'edit': {'raw_image': 'a.png', 'out_image': 'a.png', 'instruction': 'redder'},
}


def read_all(path):
  """All values of a checkpoint, compared with what it records."""
  opening.verify(path)
  for leaf in opening.open_checkpoint(path).values():
    leaf[()]


def files(root) -> dict:
  """{name: (file, what reads it)} of good files of every kind, made in `root`."""
  found = {}
  make_run(root / 'run')
  make_weights(root / 'weights')
  run, out = root / 'run', root / 'weights' / 'out'
  found['config of a run'] = run / 'config.json', lambda: checkpoint.read_config(run)
  at = run / 'checkpoints' / '8'
  for item in ('digests', 'data'):
    found[f'{item} of a checkpoint'] = at / item / 'metadata', lambda: steps.check(run, 8)
  found['arrays of a checkpoint'] = at / 'ema' / '_METADATA', lambda: steps.check(run, 8)
  bare = root / 'bare' / 'config.json'  # as somebody has edited it
  bare.parent.mkdir()
  about = json.loads((run / 'config.json').read_text())
  bare.write_text(json.dumps({'kind': about['kind'], 'config': about['config']}))
  found['an edited config'] = bare, lambda: checkpoint.read_config(bare.parent)
  found['config of weights'] = out / 'config.json', lambda: store.open_stored(out)
  found['config of a VAE'] = out / 'vae' / 'config.json', lambda: store.load_vae(out / 'vae')
  return found | _weights(root) | _data(root) | _state(root)


def _weights(root) -> dict:
  """Weights of others."""
  values = {'a': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'b': np.ones(4, np.float16)}
  for name in ('safe', 'torch', 'peft'):
    (root / name).mkdir()
  opening.safetensors.write_folder(root / 'safe', lazies(values), shard_bytes=20)
  torchfile.write_file(root / 'torch' / 'model.pt', lazies(values))
  written(root / 'peft', DECODER)
  shard = sorted((root / 'safe').glob('*.safetensors'))[0]
  adapter = lambda: [leaf[()] for leaf in peft.read(root / 'peft', small_config()).values()]
  return {
    'safetensors': (shard, lambda: read_all(shard)),
    'an index of shards': (
      root / 'safe' / 'model.safetensors.index.json', lambda: read_all(root / 'safe')
    ),
    'a torch file': (root / 'torch' / 'model.pt', lambda: read_all(root / 'torch' / 'model.pt')),
    'settings of an adapter': (root / 'peft' / 'adapter_config.json', adapter),
    'tensors of an adapter': (root / 'peft' / 'adapter_model.safetensors', adapter),
  }  # fmt: skip


def _data(root) -> dict:
  """Records, mixtures, pictures and tokenizers."""
  found, data = {}, root / 'data'
  data.mkdir()
  Image.new('RGB', (40, 30), 'red').save(data / 'a.png')
  words = Tokenizer.train(['a cat, redder', 'hi yo'], 384)
  words.save(data / 'words')
  context = Context(words)

  def examples(path, task):
    source = sources.open_source(sources.SourceConfig(str(path), task), MEDIA)
    plan = TASKS[task].plan(source[0], context, np.random.default_rng(0))
    layout(plan, words, (4, 16))

  for task, record in RECORDS.items():
    file = data / f'{task}.jsonl'
    file.write_text(json.dumps(record))
    found[f'a record of {task}'] = file, lambda file=file, task=task: examples(file, task)
  rows = [{'path': 'caption.jsonl', 'task': 'caption', 'weight': 2.0, 'root': '.'}]
  (data / 'mixture.json').write_text(json.dumps(rows))

  def mixture():
    for row in sources.read_mixture(data / 'mixture.json'):
      if row.path.endswith('caption.jsonl'):
        sources.open_source(row, MEDIA)

  found['a mixture'] = data / 'mixture.json', mixture
  (data / 'list.json').write_text(json.dumps([RECORDS['caption']]))
  found['a list of records'] = data / 'list.json', lambda: examples(data / 'list.json', 'caption')
  shards = pack.plan(str(data / 'mixture.json'), str(data / 'out'), pack.PackConfig(), MEDIA)
  pack.make(shards[0])
  pack.finish(str(data / 'mixture.json'), str(data / 'out'), shards)
  shard = next((data / 'out').glob('*.array_record'))
  found['a packed shard'] = shard, lambda: examples(shard, 'caption')
  found['a tokenizer'] = data / 'words' / 'tokenizer.json', lambda: _speak(data / 'words')
  Picture(np.zeros((16, 16, 3), np.uint8), {'prompt': 'a'}).save(data / 'made.png')
  found['a picture of ours'] = data / 'made.png', lambda: read_info(data / 'made.png')
  found['a picture'] = data / 'a.png', lambda: requests.read(str(data / 'a.png'), MEDIA, 1)
  return found


def _speak(folder):
  words = Tokenizer.from_dir(folder)
  words.decode(words.encode('a cat <|im_end|>'))


def _state(root) -> dict:
  """What runs write for themselves."""
  state = root / 'state'
  state.mkdir()
  Goodput(state).write()
  Progress.open(str(state / 'fit.json'), 'my.json', 1.0).save()
  cache = LatentCache(0, state / 'cache', 'a' * 32)
  cache.put('b' * 32, np.ones((1, 2, 2, 4), np.float32))
  (latents,) = (p for p in (state / 'cache').rglob('*') if p.is_file())
  dump = root / 'run' / 'bad.npz'
  config = checkpoint.read_config(root / 'run')
  about = {'seed': 0, 'rows': config.rows, 'numbers': [0], 'places': [['a']], 'step': 1}
  rows = batch.empty(*config.sizes)
  np.savez_compressed(
    dump, about=json.dumps(about), **{k: v[:1] for k, v in rows._asdict().items()}
  )
  (state / 'golden').mkdir()
  (state / 'golden' / 'index.json').write_text(json.dumps({'cases': [{'file': 'a'}]}))
  return {
    'times of a run': (state / 'goodput.json', lambda: Goodput(state)),
    'progress of fit': (
      state / 'fit.json', lambda: Progress.open(str(state / 'fit.json'), 'my.json', 1.0)
    ),
    'remembered latents': (latents, lambda: cache.get('b' * 32)),
    'a dump of a batch': (dump, lambda: replay.read_dump(dump)),
    'an index of goldens': (
      state / 'golden' / 'index.json', lambda: cases.read_index(state / 'golden')
    ),
  }  # fmt: skip


# ---- words

VERBS = {  # what a command line may hold beside flags
  'train': ('--config=configs/stage2.py:tiny', '--workdir=x'),
  'pretrain': ('--component=vae', '--workdir=x'),
  'convert': ('import', '--input=x', '--output=y', '--size=tiny'),
  'data': ('check', 'pack', 'm.json', '--out=x', '--limit=3'),
  'generate': ('t2i', 'a cat', '--checkpoint=x', '--points=3', '--size=64'),
  'evaluate': ('--workdir=x', '--n=3', '--guidance=1.5'),
  'fit': ('my', '--out=x', '--minutes=1'),
}
FLAGS = (
  '--config.optimizer.lr', '--config.rows', '--config.data.phases', '--config', '--points', '--n',
  '--seed', '--helpfull', '--verbosity', '--minutes', '--flagfile', '--', '-', '--image', '-x',
)  # fmt: skip


@st.composite
def command_lines(draw):
  """A verb, some of what it takes, and what it does not."""
  verb = draw(st.sampled_from(list(VERBS)))
  some = st.sampled_from(VERBS[verb])
  words = st.one_of(st.text(max_size=8), st.sampled_from(WORDS))
  flag = st.builds('{}={}'.format, st.sampled_from(FLAGS), words)
  parts = st.one_of(some, some, flag, st.sampled_from(FLAGS), words)
  return [verb, *draw(st.lists(parts, max_size=6))]


def parse(arguments):
  """Reads a command line in a forked process, as the verb does before it works."""
  with tempfile.TemporaryFile('w+') as said:
    child = os.fork()
    if not child:
      code = 1
      try:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        app.absl_app.run = lambda main, flags_parser: flags_parser(sys.argv)
        # An argument of a process holds no NUL.
        given = [a.encode('utf-8', 'replace').decode().replace('\0', '') for a in arguments]
        sys.argv = ['tuna-jax', *given]
        main.main()
        code = 0
      except SystemExit as end:
        code = end.code or 0
      except BaseException:
        traceback.print_exc()
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said.seek(0)
    text = said.read()
  assert code in (0, 2), f'{arguments}: exit {code}: {text}'
  if code == 2:
    assert len(text.strip().splitlines()) == 1, f'{arguments}: {text}'
    raise UserError(text)


def ask(value):
  """A request of text or a conversation, and what else a generator takes."""
  requests.strings(value, 'prompt') if not isinstance(value, list) else None
  for request in requests.conversations(value)[0]:
    turns, visuals, _ = requests.turns_of(request, ())
    for _, text in turns:
      Letters().encode(text)
    for visual in visuals:
      requests.read(visual, MEDIA, 1)


def settle(value):
  """Settings of drawing."""
  Guidance(value)
  requests.seeds_of(value, 2)
  requests.size_name(value)


def words(values) -> dict:
  """{name: (inputs, what takes them)} of what is typed. The first forks, which wants no threads."""
  turn = st.fixed_dictionaries({'role': st.sampled_from(('user', 'assistant', 'x', None))},
                               optional={'content': values})  # fmt: skip
  found = {'a command line': (command_lines(), parse)}
  for name, config in {'a stage': shrink.real('stage2'), 'the VAE': VAE}.items():
    good, kind = to_dict(config), type(config)
    found[f'settings of {name}'] = changed(good), functools.partial(from_dict, kind)
  found['a prompt'] = st.one_of(values, st.lists(turn, max_size=3)), ask
  found['settings of drawing'] = values, settle
  return found
