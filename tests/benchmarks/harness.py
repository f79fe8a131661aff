"""The real lmms-eval, offline, in a process: python -m tests.benchmarks.harness OUT [PART].

Shipped task files over the invented rows of rows/: prompts, extraction and scores are lmms-eval's.
Writes what it found to OUT/found.json: scores of an oracle, of a wrong oracle, and what a tiny
random model said, beside what `Generator.text` says. PART 'tasks' only writes the task files,
'share' is one host of several, as RANK and WORLD_SIZE say, and 'dies' is killed the first time.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time

ROWS = pathlib.Path(__file__).parent / 'rows'
# task: (shipped file, split, columns of pictures)
TASKS = {
  'mme': ('mme/mme.yaml', 'test', ('image',)),
  'realworldqa': ('realworldqa/realworldqa.yaml', 'test', ('image',)),
  'seedbench': ('seedbench/seedbench.yaml', 'test', ('image',)),
  'mmstar': ('mmstar/mmstar.yaml', 'val', ('image',)),
  'chartqa': ('chartqa/chartqa.yaml', 'test', ('image',)),
  'ocrbench': ('ocrbench/ocrbench.yaml', 'test', ('image',)),
  'ai2d': ('ai2d/ai2d.yaml', 'test', ('image',)),
  'mmmu_val': ('mmmu/mmmu_val.yaml', 'validation', ('image_1',)),
  'mvbench_moving_direction': ('mvbench/mvbench_moving_direction.yaml', 'train', ()),
}
ALIKE = ('mme', 'realworldqa', 'chartqa', 'ai2d')  # one pool: pictures, 16 tokens
CLIPS = 'mvbench_video/clevrer/video_validation'  # where the shipped task looks, in HF_HOME
OFFLINE = ('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE', 'HF_EVALUATE_OFFLINE', 'TRANSFORMERS_OFFLINE')


def rows(task):
  return [json.loads(line) for line in (ROWS / f'{task}.jsonl').read_text().splitlines()]


def write_tasks(home):
  """A file for each task that includes the shipped one by its path, over local parquet."""
  import datasets
  import lmms_eval

  shipped = pathlib.Path(lmms_eval.__file__).parent / 'tasks'
  (home / 'tasks').mkdir(parents=True)
  shutil.copytree(ROWS / 'videos', home / CLIPS)
  for task, (file, split, pictures) in TASKS.items():
    found = rows(task)
    for row in found:
      for column in pictures:
        value = row[column]
        many = isinstance(value, list)
        row[column] = [str(ROWS / v) for v in value] if many else str(ROWS / value)
    data = datasets.Dataset.from_list(found)
    for column in pictures:
      kind = datasets.Image()
      many = isinstance(found[0][column], list)
      data = data.cast_column(column, datasets.Sequence(kind) if many else kind)
    data.to_parquet(str(home / f'{task}.parquet'))
    config = {
      'include': str(shipped / file),
      'task': task,
      'dataset_path': 'parquet',
      'dataset_name': None,
      'dataset_kwargs': {'data_files': {split: str(home / f'{task}.parquet')}},
    }
    (home / 'tasks' / f'{task}.yaml').write_text(json.dumps(config))  # JSON is YAML


def golds():
  """The start of each question and its answer in the form that the task asks for."""
  out = {}
  for task in TASKS:
    for row in rows(task):
      gold = row['answer'][0] if isinstance(row['answer'], list) else row['answer']
      if task == 'ai2d':
        gold = 'ABCD'[int(gold)]
      elif task.startswith('mvbench'):
        gold = f'({"ABC"[row["candidates"].index(gold)]}) {gold}'
      out[_start(row['question'])] = gold
  return out


def _start(question):
  return re.sub(r'<image( \d)?>', '', question.split('\n')[0].split(' Please answer')[0]).strip(
    ' .?'
  )


class Oracle:
  """Answers with the gold, or with another letter or none. Counts what it was asked."""

  batch_size = 4

  def __init__(self, right, media):
    self.known, self.right, self.media, self.asked = golds(), right, media, 0

  def text(self, messages, images, **_):
    self.asked += len(messages)
    return [self.say(turns[-1][1]) for turns in messages]

  def say(self, text):
    text = re.sub(r'<image( \d)?>\n?', '', text).removeprefix('Question:').strip()
    gold = max((len(q), a) for q, a in self.known.items() if text.startswith(q))[1]
    if self.right:
      return gold
    return 'ABCD'[('ABCD'.index(gold) + 1) % 3] if gold in 'ABCD' else 'cannot tell'


def evaluate(model, home, tasks=TASKS, **options):
  from lmms_eval import evaluator
  from lmms_eval.tasks import TaskManager

  return evaluator.simple_evaluate(
    model=model,
    tasks=list(tasks),
    task_manager=TaskManager('ERROR', include_path=str(home / 'tasks'), include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
    **options,
    cli_args=type('Args', (), {'process_with_media': False, 'output_path': str(home / 'out')})(),
  )


def scores(results):
  out = {}
  for task, found in results['results'].items():
    for name, value in found.items():
      name = name.split(',')[0]
      if isinstance(value, int | float) and not name.endswith('stderr') and name != 'samples':
        out[f'{task} {name}'] = value
  return out


def said(results):
  return {t: [s['resps'][0][0] for s in samples] for t, samples in results['samples'].items()}


def tiny(media):
  from tests.sample import small
  from tuna_jax import Generator

  return Generator(
    small.CONFIG, small.params(), small.vae_params(), small.tokenizer(), media=media, batch_size=4
  )


def save_tiny(folder):
  """The same model as a weights directory."""
  from tests.sample import small
  from tuna_jax.weights import store

  store.save(str(folder), small.CONFIG, small.params())
  store.save(str(folder / 'vae'), small.VAE, small.vae_params())
  small.tokenizer().save(str(folder))


def direct(generator, results):
  """What `Generator.text` says to the prompts and pictures of a run, squashed by Pillow."""
  from PIL import Image

  out = {}
  for task, samples in results['samples'].items():
    found, contexts, shown = rows(task), [], []
    for sample in samples:
      row = found[sample['doc_id']]
      context, kwargs = sample['arguments'][0], sample['arguments'][1]
      contexts.append(context.replace('<image>', '').strip())
      if task.startswith('mvbench'):
        shown.append([ROWS / 'videos' / row['video']])
      else:
        picture = row[TASKS[task][2][0]]
        picture = picture[0] if isinstance(picture, list) else picture
        with Image.open(ROWS / picture) as file:
          shown.append([file.convert('RGB').resize((32, 32), Image.Resampling.BICUBIC)])
    answers = generator.text(contexts, shown, max_new_tokens=kwargs.get('max_new_tokens', 512))
    out[task] = [a.split('\n\n')[0].strip() for a in answers]
  return out


def dies(out, media):
  """Answers from and into a cache; is killed at the second pool, unless an earlier process was."""
  from tuna_jax.benchmarks import lmms

  class Mortal(Oracle):
    batch_size = 1

    def text(self, messages, images, **how):
      said = super().text(messages, images, **how)
      if self.asked > len(messages) and not (out / 'died').exists():
        (out / 'died').touch()
        os.kill(os.getpid(), signal.SIGKILL)
      return said

  oracle = Mortal(True, media)
  # A cache names the model by this text, so it must not hold an address.
  lmms.Model.__repr__ = lambda self: 'oracle'
  results = evaluate(lmms.Simple(generator=oracle), out, ALIKE, use_cache=str(out / 'cache'))
  (out / 'found.json').write_text(json.dumps({'asked': oracle.asked, 'scores': scores(results)}))


def share(out, media):
  """One host of several: what it was asked, and on the first the scores of all."""
  from tuna_jax.benchmarks import lmms

  oracle = Oracle(True, media)
  results = evaluate(
    lmms.Simple(generator=oracle), out, ('mme', 'ai2d'), distributed_executor_backend='torchrun'
  )
  found = {'asked': oracle.asked, 'scores': scores(results) if results else None}
  (out / f'found{os.environ["RANK"]}.json').write_text(json.dumps(found))


PARTS = {'share': share, 'dies': dies}


def main(out, part='all'):
  began = time.process_time()
  os.environ.update(dict.fromkeys(OFFLINE, '1'), HF_HOME=str(out), JAX_PLATFORMS='cpu')
  import datasets

  from tuna_jax.benchmarks import lmms
  from tuna_jax.data.media import MediaConfig

  datasets.disable_progress_bars()
  small = MediaConfig('32', '32', 5)
  if part in PARTS:
    return PARTS[part](out, small)
  write_tasks(out)
  if part == 'tasks':
    return
  from lmms_eval.models import get_model

  found = {'kinds': {}, 'seconds': {'imports': time.process_time() - began}}
  found['models'] = [
    get_model('tuna_jax', force_simple=simple).__name__ for simple in (True, False)
  ]
  found['asked'], oracle = [], Oracle(True, small)
  cached = lmms.Simple(generator=oracle)
  for _ in range(2):
    evaluate(cached, out, ('mme', 'ai2d'), use_cache=str(out / 'cache'))
    found['asked'].append(oracle.asked)
  for kind in (lmms.Simple, lmms.Chat):
    found['kinds'][kind.__name__] = {
      'oracle': scores(evaluate(kind(generator=Oracle(True, small)), out)),
      'wrong': scores(evaluate(kind(generator=Oracle(False, small)), out)),
    }
  found['seconds']['oracles'] = time.process_time() - began
  model = lmms.Simple(generator=tiny(small))
  results = evaluate(model, out)
  found['seconds']['model'] = time.process_time() - began
  found['said'], found['direct'] = said(results), direct(model.generator, results)
  chat = lmms.Chat(generator=model.generator)
  found['chat'] = said(evaluate(chat, out))
  found['seconds']['all'] = time.process_time() - began
  (out / 'found.json').write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
