"""Times sampling and decoding against what the official code computes, and the train step.

  tuna-jax bench sample [--task=t2i,edit] [--points=5] [--json=FILE]
  tuna-jax bench sample --size=2b,showo2-1.5b,tuna-2-7b --norun --points=50
  tuna-jax bench decode [--new_tokens=64]
  tuna-jax bench train --config=configs/stage2.py:2b [--steps=5] [--peak_tflops=989]
  tuna-jax bench train --config=configs/stage2.py:2b --sweep

FLOPs of sample and decode: 2 for a multiply-add; matrix products and attention only, in which every
query meets every key it is given; without the VAE. Weights are random. The three forms of sampling
are naive (the padded sequence and the language head at every step, as the official code does),
trimmed (nothing after the target, no language head) and cached (prompt and sources once, then the
target alone). MFU = useful FLOPs / (seconds x devices x peak), where remat and padding are not
useful. A sweep times seven steps of other rows, turns and remat, and keeps a fit by which `tuna-jax
plan --advise` predicts times on devices of this kind.
"""

from absl import flags
from ml_collections import config_flags

from tuna_jax import files
from tuna_jax.cli import app, options
from tuna_jax.config import UserError

ACTIONS = {
  'sample': 'Draws one picture in three ways, in one process with the same weights and noise.',
  'decode': 'Decodes greedy text with and without the key/value cache.',
  'train': 'Times steps of a stage on every device of the run, on full rows of random data.',
}

_SIZE = flags.DEFINE_list(
  'size',
  'small',
  'The sizes of the model, in any designs. small has two layers per tower; small-DESIGN, such as '
  'small-late_fusion, is the same in another design.',
)
_TASK = flags.DEFINE_list('task', 't2i,edit', 'What to draw: t2i, edit, or both.')
_SIDE = flags.DEFINE_integer('side', 512, 'The pixels of a side of the picture.', lower_bound=16)
_POINTS = flags.DEFINE_integer(
  'points', 5, 'The points of the time grid; the sampler takes one step fewer.', 2
)
_PADDED = flags.DEFINE_integer(
  'padded', None, 'The padded length of the naive form; by default that of the official sampler.'
)
_PROMPT = flags.DEFINE_integer('prompt_tokens', 64, 'How many tokens the prompt has.', 1)
_NEW = flags.DEFINE_integer('new_tokens', 64, 'How many tokens to decode.', lower_bound=1)
_ROWS = flags.DEFINE_integer('rows', 4, 'How many conversations are decoded at once.', 1)
_RUN = flags.DEFINE_bool('run', True, 'Whether to run it; --norun only counts FLOPs.')
_CONFIG = config_flags.DEFINE_config_file('config', None, 'The stage and size, FILE:SIZE.')
_STEPS = flags.DEFINE_integer('steps', 5, 'How many steps to time, after two that are not.', 1)
_PEAK = flags.DEFINE_float(
  'peak_tflops', None, 'The bf16 TFLOP/s of one device; those of its data sheet by default.'
)
_SWEEP = flags.DEFINE_bool('sweep', False, 'Whether to fit the time of steps to a few of them.')
_JSON = flags.DEFINE_string('json', None, 'All numbers are also written to this file.')
_join = options.define_distributed()

ONLY = {
  **dict.fromkeys(('task', 'side', 'points', 'padded', 'run'), ('sample',)),
  **dict.fromkeys(('new_tokens', 'rows'), ('decode',)),
  **dict.fromkeys(('size', 'prompt_tokens'), ('sample', 'decode')),
  **dict.fromkeys(('steps', 'peak_tflops', 'config', 'sweep'), ('train',)),
  **dict.fromkeys(options.DISTRIBUTED, ('train',)),
}


def main(argv):
  what = argv[1]
  if what == 'train':
    return train()
  import jax

  from tuna_jax.tools import bench_sample

  configs = {name: bench_sample.named(name) for name in _SIZE.value}
  unknown = [task for task in _TASK.value if task not in bench_sample.TASKS]
  if unknown:
    raise UserError(f'--task={unknown[0]}: expected t2i, edit, or both')
  device = jax.devices()[0]
  found = {'device': f'{device.platform} {device.device_kind}', 'sizes': {}}
  for size, config in configs.items():
    result = found['sizes'][size] = {}
    for task in _TASK.value if what == 'sample' else ():
      result[task] = bench_sample.sample(
        config,
        task,
        side=_SIDE.value,
        points=_POINTS.value,
        prompt_tokens=_PROMPT.value,
        padded=_PADDED.value,
        run=_RUN.value,
      )
      print(sample_table(result[task], size), flush=True)
    if what == 'decode':
      result['decode'] = bench_sample.decode(
        config, rows=_ROWS.value, prompt_tokens=_PROMPT.value, new_tokens=_NEW.value
      )
      print(decode_table(result['decode'], size))
  _write(found)


def train():
  """`bench train`, in every process of the run."""
  if _CONFIG.value is None:
    raise UserError('bench train: --config=FILE:SIZE is required')
  _join()
  import jax

  from tuna_jax.configs import common
  from tuna_jax.tools import bench_train, speed

  config = common.from_config_dict(_CONFIG.value)
  if _SWEEP.value:
    return _write(speed.sweep(config, bench_train.bench, _STEPS.value))
  peak = _PEAK.value * 1e12 if _PEAK.value else None
  found = bench_train.bench(config, _STEPS.value, peak)
  if jax.process_index() == 0:
    print(bench_train.table(found))
    _write(found)


def _write(found):
  if _JSON.value:
    files.write_json(_JSON.value, found)


def sample_table(result, size: str) -> str:
  """What `bench sample` prints for one task."""
  side = result['side']
  points = f'{result["points"]} points ({result["evaluations"]} evaluations, {result["solver"]})'
  lines = [
    f'{size} {result["task"]} {side}x{side}, {points}, prompt {result["prompt"]}, '
    f'padded {result["padded"]}',
    f'{"":10}{"TFLOP":>12}{"seconds":>10}{"max difference":>17}',
  ]
  for form in ('naive', 'trimmed', 'cached'):
    row = result[form]
    timed = f'{row["seconds"]:10.2f}{row["max_abs_difference"]:17.1e}' if 'seconds' in row else ''
    lines.append(f'{form:10}{row["flops"] / 1e12:12.3f}{timed}')
  ratios = [
    f'{result[key]:.1f}x {name}'
    for what, name in (('flops', 'fewer FLOPs'), ('seconds', 'faster'))
    if (key := f'naive_over_cached_{what}') in result
  ]
  return '\n'.join([*lines, f'cached against naive: {", ".join(ratios)}', ''])


def decode_table(result, size: str) -> str:
  """What `bench decode` prints."""
  speed = lambda form: f'{form:12}{result[form]["tokens_per_second"]:10.1f} tokens/s'
  same = 'the same tokens' if result['same'] else 'DIFFERENT TOKENS'
  return '\n'.join(
    [
      f'{size}: {result["rows"]} rows, {result["new_tokens"]} new tokens each',
      speed('recomputed'),
      speed('cached'),
      f'cached: {result["speedup"]:.1f}x faster, {same}',
    ]
  )


if __name__ == '__main__':
  app.run(main, actions=ACTIONS, only=ONLY)
