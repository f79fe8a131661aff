"""The same seed on the same machine gives the same bits: training, evaluation, drawing, writing."""

import os
import subprocess
import sys

import pytest

from tests import shrink

RUN = """
import dataclasses, hashlib, json, sys
import jax
from tests import shrink
from tuna_jax.sample.open import open_generator
from tuna_jax.train import loop
from tuna_jax.train.config import ReportConfig
from tuna_jax.weights import steps

config = json.loads(sys.argv[2])
report = ReportConfig(
  held_out='shapes', held_out_every=2, held_out_batches=1, samples_every=2, sample_points=3,
  prompts=('a red circle',),
)
data = dataclasses.replace(shrink.stage('stage2').data, threads=4, prefetch=2)
config = shrink.stage('stage2', steps=4, checkpoint_every=2, report=report, data=data, **config)
loop.train(config, sys.argv[1])
timed = 'seconds data_wait tokens_per_second_per_device tflops_per_second_per_device mfu'.split()
for line in open(sys.argv[1] + '/metrics.jsonl'):
  print(sorted((k, v) for k, v in json.loads(line).items() if k not in timed))
print(json.dumps(steps.record(sys.argv[1], 4), sort_keys=True))
made = open_generator(sys.argv[1], batch_size=1)
drawn = made.image('a red circle', points=3)
print(hashlib.sha256(drawn.pixels.tobytes()).hexdigest())
print(made.text('what is this?', images=[drawn], max_new_tokens=8, temperature=1.0, seed=7))
"""


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_bit_by_bit(tmp_path):
  parts = shrink.stage('stage2')
  paths = f'{{"vae": "{parts.vae}", "tokenizer": "{parts.tokenizer}"}}'
  said = []
  for number in range(2):
    done = subprocess.run(
      [sys.executable, '-c', RUN, str(tmp_path / str(number)), paths], cwd=shrink.ROOT, text=True,
      capture_output=True, check=False, timeout=900,
      env=os.environ | {'PYTHONPATH': str(shrink.ROOT), 'PYTHONHASHSEED': str(number)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said.append([line for line in done.stdout.splitlines() if not line.startswith('completed')])
  lines = [[line for line in one if line[:1] in '[{' or len(line) == 64] for one in said]
  assert len(lines[0]) > 6 and 'held_loss' in ''.join(lines[0])
  assert lines[0] == lines[1] and said[0][-1] == said[1][-1]
