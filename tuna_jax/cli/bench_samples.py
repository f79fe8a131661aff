"""Draws what the official scorer of a benchmark reads, under its exact names.

  tuna-jax bench-samples geneval --prompts=evaluation_metadata.jsonl --checkpoint=RUN --out=OUT
  tuna-jax bench-samples gedit --prompts=rows.jsonl --checkpoint=RUN --out=OUT --model=mine

docs/benchmarks.md has the command of every benchmark. OUT/samples is the folder for the scorer,
OUT/manifest.json says how it was made. A run that was killed goes on where it was when the same
command is given again. Several hosts share the work: the processes of one run, or machines that are
each given their --shard.
"""

from absl import flags

from tuna_jax.cli import app, options
from tuna_jax.config import UserError

ACTIONS = {
  'geneval': 'Writes 4 pictures of each row of evaluation_metadata.jsonl.',
  'dpg': 'Writes a 2x2 grid of each file of the folder dpg_bench/prompts.',
  'oneig': 'Writes a 2x2 grid of each row of OneIG-Bench.csv.',
  'imgedit': 'Writes an edit of each entry of basic_edit.json.',
  'gedit': 'Writes an edit of each row of a jsonl file, and its source beside it.',
  'vbench': 'Writes 5 clips of each prompt of VBench_full_info.json, 25 to judge flickering.',
}
ONLY = {  # flags that not every benchmark takes
  **dict.fromkeys(('frames', 'fps'), ('vbench',)),
  'sources': ('imgedit', 'gedit'),
  'samples': ('geneval', 'vbench'),
  'model': ('oneig', 'gedit'),
}

_PROMPTS = flags.DEFINE_string(
  'prompts', None, 'The prompts of the benchmark, a file or for dpg a folder.', required=True
)
_OUT = flags.DEFINE_string('out', None, 'The folder to write or to continue.', required=True)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A run or a weights directory.', required=True
)
_model_options = options.define_generator(batch_size=16)
_SOURCES = flags.DEFINE_string(
  'sources', '', 'The folder of the pictures to edit. By default it is that of the prompts.'
)
_MODEL = flags.DEFINE_string('model', 'tuna', 'The folder that is named after the model.')
_SHARD = flags.DEFINE_string(
  'shard', '', "The share of this machine, as in '0/4'. By default it is that of the process."
)
_SEED = flags.DEFINE_integer('seed', 42, 'The seed that the rule starts from.', lower_bound=0)
_RULE = flags.DEFINE_enum(
  'seeds',
  'distinct',
  ['distinct', 'same'],
  'With distinct, sample i of prompt n has seed + 1000 n + i; with same it has seed + i.',
)
_SAMPLES = flags.DEFINE_integer(
  'samples', None, 'Samples per prompt. By default it is the official number.', 1
)
_drawing = options.define_drawing()
_sampler = options.define_sampler()
join = options.define_distributed()


def main(argv):
  name = argv[1]
  shard = _shard()
  from tuna_jax.benchmarks import layouts, samples
  from tuna_jax.benchmarks.host import open_on_host, wait_for_others
  from tuna_jax.sample.image import Drawing

  video = layouts.BENCHMARKS[name].kind == 'video'
  generator, devices = open_on_host(_CHECKPOINT.value, **_model_options())
  task = {'video': 't2v', 'edit': 'edit'}.get(layouts.BENCHMARKS[name].kind, 't2i')
  how = Drawing.of(generator.config.design, task, _drawing['guidance'].value, **_sampler())
  settings = {
    'negative': _drawing['negative'].value,
    'guidance': how.guidance.scale,
    'points': how.points,
    'shift': how.shift,
    'solver': how.solver,
    **({'frames': _drawing['frames'].value, 'fps': _drawing['fps'].value} if video else {}),
  }
  request = samples.Request(
    name,
    _PROMPTS.value,
    _OUT.value,
    sources=_SOURCES.value,
    model=_MODEL.value,
    samples=_SAMPLES.value,
    seeds=layouts.Seeds(_SEED.value, _RULE.value == 'same'),
    size=_drawing['size'].value,
    shard=shard,
    settings=settings,
  )
  with devices():
    say = lambda line: print(line, flush=True)
    left = samples.write(generator, request, say, wait_for_others)
  if left:
    print(f'{name}: {len(left)} files of other shares are not there yet, first {left[0].path}')
  else:
    print(f'{name}: complete')


def _shard() -> tuple[int, int]:
  if _SHARD.value:
    parts = _SHARD.value.split('/')
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
      raise UserError(f"--shard={_SHARD.value}: expected two numbers, as in '0/4'")
    return int(parts[0]), int(parts[1])
  join()
  import jax

  return jax.process_index(), jax.process_count()


if __name__ == '__main__':
  app.run(main, actions=ACTIONS, only=ONLY)
