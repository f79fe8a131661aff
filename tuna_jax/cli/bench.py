"""Times sampling and decoding against what the official code computes, and the train step.

  tuna-jax bench sample [--task=t2i,edit] [--points=5] [--json=FILE]
  tuna-jax bench sample --size=2b --norun --points=50
  tuna-jax bench decode [--new_tokens=64]
  tuna-jax bench train --config=configs/stage2.py:2b [--steps=5] [--peak_tflops=989]

sample  one picture three ways in one process, same weights and noise: naive (the padded sequence and
        the language head at every step, as the official code does), trimmed (nothing after the
        target, no language head), cached (prompt and sources once, then the target alone).
decode  greedy text with and without the key/value cache.
train   steps of a stage on every device of the run, full rows of random data: tokens/s, TFLOP/s a device
        and MFU = useful FLOPs / (seconds x devices x peak); remat and padding are not useful.

FLOPs of sample and decode: 2 for a multiply-add, matrix products and attention only; every query
times every key it is given; without the VAE. Weights are random.
"""

from absl import flags
from ml_collections import config_flags

from tuna_jax import config as configs
from tuna_jax import files
from tuna_jax.cli import app
from tuna_jax.config import UserError

_SIZE = flags.DEFINE_enum(
  'size', 'small', ['small', *sorted(configs.SIZES)], 'The model; small is two layers a tower.'
)
_TASK = flags.DEFINE_list('task', 't2i,edit', 'sample: what to draw, of t2i and edit.')
_SIDE = flags.DEFINE_integer('side', 512, 'sample: pixels of a side.', lower_bound=16)
_POINTS = flags.DEFINE_integer('points', 5, 'sample: points of the time grid; points - 1 steps.', 2)
_PADDED = flags.DEFINE_integer(
  'padded', None, 'sample: padded length of the naive form (default 8192 for t2i, 3072 for edit).'
)
_PROMPT = flags.DEFINE_integer('prompt_tokens', 64, 'Tokens of the prompt.', lower_bound=1)
_NEW = flags.DEFINE_integer('new_tokens', 64, 'decode: tokens to decode.', lower_bound=1)
_ROWS = flags.DEFINE_integer('rows', 4, 'decode: conversations at once.', lower_bound=1)
_RUN = flags.DEFINE_bool('run', True, 'sample: run it; --norun counts FLOPs only.')
_CONFIG = config_flags.DEFINE_config_file('config', None, 'train: stage and size, FILE:SIZE.')
_STEPS = flags.DEFINE_integer('steps', 5, 'train: steps to time, after two that are not.', 1)
_PEAK = flags.DEFINE_float(
  'peak_tflops', None, 'train: bf16 TFLOP/s of a device; default: its data sheet, where known.'
)
_JSON = flags.DEFINE_string('json', None, 'Write all numbers to this file as well.')
_join = app.define_distributed()


def main(argv):
  what = argv[1]
  if what == 'train':
    return train()
  import jax

  from tuna_jax.tools import bench_sample

  config = bench_sample.SMALL if _SIZE.value == 'small' else configs.size(_SIZE.value)
  device = jax.devices()[0]
  found = {'size': _SIZE.value, 'device': f'{device.platform} {device.device_kind}'}
  if what == 'sample':
    unknown = [task for task in _TASK.value if task not in bench_sample.PADDED]
    if unknown:
      raise UserError(f'--task={unknown[0]}: expected t2i, edit, or both')
    for task in _TASK.value:
      found[task] = bench_sample.sample(
        config,
        task,
        side=_SIDE.value,
        points=_POINTS.value,
        prompt_tokens=_PROMPT.value,
        padded=_PADDED.value,
        run=_RUN.value,
      )
      print(sample_table(found[task], _SIZE.value), flush=True)
  else:
    found['decode'] = bench_sample.decode(
      config, rows=_ROWS.value, prompt_tokens=_PROMPT.value, new_tokens=_NEW.value
    )
    print(decode_table(found['decode'], _SIZE.value))
  _write(found)


def train():
  """`bench train`, in every process of the run."""
  if _CONFIG.value is None:
    raise UserError('bench train: --config=FILE:SIZE is needed')
  _join()
  import jax

  from tuna_jax.configs import common
  from tuna_jax.tools import bench_train

  peak = _PEAK.value * 1e12 if _PEAK.value else None
  found = bench_train.bench(common.from_config_dict(_CONFIG.value), _STEPS.value, peak)
  if jax.process_index() == 0:
    print(bench_train.table(found))
    _write(found)


def _write(found):
  if _JSON.value:
    files.write_json(_JSON.value, found)


def sample_table(result, size: str) -> str:
  """What `bench sample` prints of one task."""
  what = f'{size} {result["task"]} {result["side"]}x{result["side"]}'
  steps = f'{result["points"]} points ({result["evaluations"]} evaluations)'
  lines = [
    f'{what}, {steps}, prompt {result["prompt"]}, padded {result["padded"]}',
    f'{"":10}{"TFLOP":>12}{"seconds":>10}{"max difference":>17}',
  ]
  for form in ('naive', 'trimmed', 'cached'):
    row = result[form]
    line = f'{form:10}{row["flops"] / 1e12:12.3f}'
    if 'seconds' in row:
      line += f'{row["seconds"]:10.2f}{row["max_abs_difference"]:17.1e}'
    lines.append(line)
  ratios = [
    f'{result[f"naive_over_cached_{what}"]:.1f}x {name}'
    for what, name in (('flops', 'fewer FLOPs'), ('seconds', 'faster'))
    if f'naive_over_cached_{what}' in result
  ]
  return '\n'.join([*lines, f'cached against naive: {", ".join(ratios)}', ''])


def decode_table(result, size: str) -> str:
  """What `bench decode` prints."""
  lines = [f'{size}: {result["rows"]} rows, {result["new_tokens"]} new tokens each']
  lines += [
    f'{form:12}{result[form]["tokens_per_second"]:10.1f} tokens/s'
    for form in ('recomputed', 'cached')
  ]
  same = 'the same tokens' if result['same'] else 'DIFFERENT TOKENS'
  return '\n'.join([*lines, f'cached: {result["speedup"]:.1f}x faster, {same}'])


if __name__ == '__main__':
  app.run(main, positional=('sample|decode|train',))
