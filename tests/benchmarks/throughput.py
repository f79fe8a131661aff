"""The plug-in beside `Generator.text` on the same requests, in processor seconds of the tiny model.

python -m tests.benchmarks.throughput SIZE QUESTIONS squash|cover ROUNDS
"""

import sys
import time

import numpy as np
from PIL import Image

from tests.benchmarks import harness
from tuna_jax.benchmarks import lmms
from tuna_jax.data.media import MediaConfig


def main(size, count, resize, rounds):
  generator = harness.tiny(MediaConfig(size, '32', 5))
  generator.batch_size, rng = 16, np.random.default_rng(0)
  sides = rng.integers(60, 400, (count, 2))
  pictures = [Image.fromarray(rng.integers(0, 256, (*s, 3), np.uint8)) for s in sides]
  questions = [f'what is this {n % 7}' for n in range(count)]
  model = lmms.Model(generator=generator, resize=resize)
  model.rank = 1  # no progress bar
  model.question = lambda n: lmms.answers.from_visuals(
    questions[n], [pictures[n]], model.how, size, lmms.Settings.of({'max_new_tokens': 16})
  )
  entries = [[picture] for picture in pictures]
  runs = {
    'the plug-in': lambda: list(model.generate_until(range(count))),
    'Generator.text': lambda: generator.text(questions, entries, max_new_tokens=16),
  }
  seconds = {name: [] for name in runs}
  for number in range(rounds + 1):
    for name, run in runs.items():
      began = time.process_time()
      run()
      if number:  # the first compiles
        seconds[name].append(time.process_time() - began)
  ours, direct = (np.median(seconds[name]) for name in runs)
  for name, found in seconds.items():
    print(f'{name:15}', *(f'{s:.3f}' for s in sorted(found)))
  print(f'{size} pixels, {resize}: {100 * direct / ours:.1f} % of the throughput')


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
