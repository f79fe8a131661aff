"""How well `tuna-jax plan --advise` predicts steps that it has not seen compiled.

  python -m tests.tools.advice_validation [--compile] [--minutes=60]

Prints each answer of the compiler beside what is predicted without it, and without its whole
family. With --compile, first compiles what is missing of SERIES, one step after the other, and adds
it to the answers that come with the project; the same command continues.
"""

import importlib
import json
import sys
import time

from tuna_jax.configs import common

from tuna_jax.tools import compiled

# (stage:size, topology, what is changed). A refusal takes a tenth of the time of an answer.
_2B, _LORA = 'stage2:2b', 'stage3:2b-lora'
SERIES = (
  (_2B, 'v5e:4x4', {'rows': 16}),
  (_2B, 'v5e:4x4', {'rows': 64}),
  (_2B, 'v5e:4x4', {'model.remat': 'narrow', 'optimizer.accumulate': 64}),
  (_2B, 'v5e:4x4', {'rows': 16, 'model.remat': 'dots'}),
  (_2B, 'v5e:4x4', {'rows': 128}),
  (_2B, 'v5e:4x4', {'rows': 32, 'model.remat': 'narrow'}),
  (_2B, 'v5e:8x8', {'rows': 512}),
  ('stage2:7b', 'v5e:4x4', {'rows': 16}),
  (_2B, 'v6e:4x4', {'rows': 32, 'model.remat': 'dots'}),
  (_2B, 'v6e:4x4', {'rows': 256}),
  (_LORA, 'v5e:1x1', {'optimizer.accumulate': 4}),
  (_LORA, 'v5e:1x1', {}),
  ('stage3:7b-lora', 'v5e:2x4', {}),
  (_2B, 'v5e:4x4', {'rows': 64, 'optimizer.accumulate': 4}),
  ('stage2:2b-video', 'v5p:2x4x4', {'rows': 32}),
  (_2B, 'v6e:4x4', {'rows': 64}),
  (_2B, 'v5e:4x4', {'rows': 16, 'model.remat': 'none'}),
  (_2B, 'v5e:4x4', {'rows': 64, 'model.remat': 'attention'}),
  (_2B, 'v6e:4x4', {'rows': 16, 'model.remat': 'narrow'}),
  (_2B, 'v6e:4x4', {'rows': 16, 'model.remat': 'dots'}),
  (_2B, 'v6e:4x4', {'rows': 128}),
  (_2B, 'v5e:4x4', {'rows': 32, 'model.remat': 'attention'}),
  (_2B, 'v5e:8x8', {'rows': 256}),
  (_LORA, 'v5e:1x1', {'optimizer.accumulate': 2}),
  ('stage2:7b', 'v6e:16x16', {}),
  ('stage2:7b', 'v5e:16x16', {}),
  ('stage2:7b', 'v6e:16x16', {'rows': 2048}),
  ('stage2:7b', 'v6e:16x16', {'rows': 512, 'model.remat': 'dots'}),
  ('stage2:7b', 'v6e:4x4', {'rows': 16}),
)


def config_of(named: str, changes: dict):
  """The TrainConfig of STAGE:SIZE with changes."""
  stage, size = named.split(':')
  config = importlib.import_module(f'tuna_jax.configs.{stage}').get_config(size)
  config.update_from_flattened_dict(changes)
  return common.from_config_dict(config)


def series(minutes: float) -> None:
  """Compiles what is missing of SERIES and ships it, until the minutes are over."""
  answers, end = compiled.Answers(), time.monotonic() + 60 * minutes
  for named, topology, changes in SERIES:
    if time.monotonic() > end:
      return print('the same command continues')
    step = compiled.step_of(config_of(named, changes), topology)
    if not answers.find(step):
      answers.compile(step, lambda line: print(line, flush=True))
      ship(answers.all())


def ship(records) -> None:
  """Writes the answers that come with the project."""
  lines = ',\n'.join(json.dumps(record) for record in records)
  compiled.SHIPPED.write_text(f'[\n{lines}\n]\n')


def main():
  minutes = [float(a.partition('=')[2]) for a in sys.argv if a.startswith('--minutes=')]
  if '--compile' in sys.argv:
    series(minutes[0] if minutes else 60)


if __name__ == '__main__':
  main()
