"""Draws, edits, films and answers with a trained model.

  tuna-jax generate t2i 'a red ball' --checkpoint=RUN --output=ball.png
  tuna-jax generate edit 'make it blue' --image=ball.png --checkpoint=RUN --output=blue.png
  tuna-jax generate t2v 'a ball rolls' --frames=13 --checkpoint=RUN --output=ball.mp4
  tuna-jax generate ask 'What is this?' --image=ball.png --checkpoint=RUN

Several prompts run in batches; each is a word of the shell, so quote it. '' is an empty prompt.
Files remember prompt, seed and settings (`tuna-jax generate info FILE` prints them). Weights
without a VAE or a tokenizer beside them need --vae and --tokenizer.
"""

import json
import os
import sys

from absl import flags

from tuna_jax.cli import app
from tuna_jax.config import UserError

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A run or a weights directory.')
_VAE = flags.DEFINE_string('vae', '', 'Directory of the VAE, where the checkpoint does not say.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Directory of the tokenizer, likewise.')
_STEP = flags.DEFINE_integer('step', None, 'The step of a run; default the latest.')
_EMA = flags.DEFINE_bool('ema', True, 'Use the averages of a run.')
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'File to write: .png, .mp4 or .gif, out.png or out.mp4 where none is given; with several results a number is added.',
)
_IMAGE = flags.DEFINE_multi_string(
  'image', [], 'edit, ask: a picture (ask: or a clip); may be given several times.'
)
_SIZE = flags.DEFINE_string(
  'size',
  None,
  "'HxW' or 'N', multiples of 16, or a class. Default: as trained; edit: the last source's, "
  'rounded to 16 and no larger than trained.',
)
_FRAMES = flags.DEFINE_integer('frames', None, 't2v: pictures of the clip, 4k + 1.')
_FPS = flags.DEFINE_integer('fps', 16, 't2v: pictures a second.', lower_bound=1)
_COUNT = flags.DEFINE_integer('count', 1, 'Results a prompt; result i has seed + i.', 1)
_NEGATIVE = flags.DEFINE_string('negative', '', 'What guidance moves away from.')
_SEED = flags.DEFINE_integer('seed', 42, 'Of the first result.')
_GUIDANCE = flags.DEFINE_float(
  'guidance', None, 'Scale of guidance by text; 1 is none. Default: 7.5, of t2v 6.'
)
_IMAGE_GUIDANCE = flags.DEFINE_float('image_guidance', None, 'edit: guidance by the sources, too.')
_INTERVAL = flags.DEFINE_list('guidance_interval', '0,1', 'Times from 0 to 1 that are guided.')
_RESCALE = flags.DEFINE_float('guidance_rescale', 0.0, 'Against over-saturation: 0 to 1.')
_POINTS = flags.DEFINE_integer('points', 50, 'Points of the time grid: points - 1 steps.')
_SHIFT = flags.DEFINE_float('shift', 3.0, 'Shift of the time grid towards noise; 1 is none.')
_SOLVER = flags.DEFINE_string('solver', 'euler', 'euler or heun.')
_BATCH = flags.DEFINE_integer('batch_size', 16, 'Results at once.', lower_bound=1)
_MAX_NEW = flags.DEFINE_integer('max_new_tokens', 512, 'ask: the longest answer.')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.0, 'ask: 0 takes the best token.')
_TOP_K = flags.DEFINE_integer('top_k', 0, 'ask: draw from the best k; 0 is all.')
_TOP_P = flags.DEFINE_float('top_p', 1.0, 'ask: draw from the best with this share.')

_ENDINGS = {'t2i': ('.png',), 'edit': ('.png',), 't2v': ('.mp4', '.gif')}  # of the verbs that draw
_SAMPLER = (
  'negative',
  'guidance',
  'guidance_interval',
  'guidance_rescale',
  'points',
  'shift',
  'solver',
)
_WRITING = ('max_new_tokens', 'temperature', 'top_k', 'top_p')
_FOR = {  # flags that only some verbs take
  'image': ('edit', 'ask'),
  'image_guidance': ('edit',),
  **dict.fromkeys(('frames', 'fps'), ('t2v',)),
  **dict.fromkeys(('size', 'output', *_SAMPLER), tuple(_ENDINGS)),
  **dict.fromkeys(_WRITING, ('ask',)),
}


def main(argv):
  action, *prompts = argv[1:]
  if action == 'info':
    return info(prompts)
  if not prompts:
    raise UserError(f"generate {action}: missing argument PROMPT ('' for an empty one)")
  if not _CHECKPOINT.value:
    raise UserError('--checkpoint is required: a run or a weights directory')
  if action == 'edit' and not _IMAGE.value:
    raise UserError('edit: --image is required: the picture to edit')
  for name, verbs in _FOR.items():
    if flags.FLAGS[name].present and action not in verbs:
      raise UserError(f'{action}: takes no --{name}, which is for {" and ".join(verbs)}')
  if action == 'ask':
    return ask(prompts)
  draw(action, prompts)


def info(paths):
  """Prints what files written here remember."""
  from tuna_jax.sample.output import read_info

  if not paths:
    raise UserError('info: missing argument FILE')
  for path in paths:
    print(json.dumps(read_info(path), indent=1, ensure_ascii=False))


def draw(action, prompts):
  """t2i, edit and t2v."""
  from tuna_jax.sample.image import FILM_SCALE, SCALE, Guidance

  scale = _GUIDANCE.value
  if scale is None:
    scale = FILM_SCALE if action == 't2v' else SCALE
  ending = _ENDINGS[action]
  output = _OUTPUT.value or f'out{ending[0]}'
  if os.path.splitext(output)[1].lower() not in ending:
    raise UserError(f'--output={output}: expected a name that ends in {" or ".join(ending)}')
  if not os.path.isdir(os.path.dirname(output) or '.'):
    raise UserError(f'--output={output}: no directory {os.path.dirname(output)}')
  how = {
    'size': _SIZE.value,
    'negative': _NEGATIVE.value,
    'guidance': Guidance(scale, _IMAGE_GUIDANCE.value, _interval(), _RESCALE.value),
    'points': _POINTS.value,
    'shift': _SHIFT.value,
    'solver': _SOLVER.value,
    'seed': _SEED.value,
    'report': _bar,
  }
  generator = _open()
  prompts = [prompt for prompt in prompts for _ in range(_COUNT.value)]
  if action == 't2i':
    results = generator.image(prompts, **how)
  elif action == 't2v':
    results = generator.video(prompts, _FRAMES.value, fps=_FPS.value, **how)
  else:
    results = generator.edit([list(_IMAGE.value)] * len(prompts), prompts, **how)
  stem, suffix = os.path.splitext(output)
  for n, result in enumerate(results):
    path = output if len(results) == 1 else f'{stem}-{n}{suffix}'
    result.save(path)
    print(f'{path}  seed {result.info["seed"]}  {result.info["prompt"]}')


def ask(questions):
  """Answers on stdout: one as it is decoded, several a line each."""
  how = {
    'max_new_tokens': _MAX_NEW.value,
    'temperature': _TEMPERATURE.value,
    'top_k': _TOP_K.value,
    'top_p': _TOP_P.value,
    'seed': _SEED.value,
  }
  generator = _open()
  questions = [question for question in questions for _ in range(_COUNT.value)]
  if len(questions) == 1:
    for piece in generator.stream(questions[0], list(_IMAGE.value), **how):
      print(piece, end='', flush=True)
    print()
    return
  for answer in generator.text(questions, [list(_IMAGE.value)] * len(questions), **how):
    print(answer)


def _open():
  from tuna_jax.sample.open import open_generator

  return open_generator(
    _CHECKPOINT.value,
    vae=_VAE.value,
    tokenizer=_TOKENIZER.value,
    step=_STEP.value,
    ema=_EMA.value,
    batch_size=_BATCH.value,
  )


def _interval() -> tuple[float, float]:
  try:
    low, high = map(float, _INTERVAL.value)
  except ValueError:
    given = ','.join(_INTERVAL.value)
    raise UserError(f'--guidance_interval={given}: expected two numbers, as in 0,0.8') from None
  return low, high


def _bar(done: int, total: int):
  """A progress bar, on a terminal only."""
  if sys.stderr.isatty():
    filled = 30 * done // total
    end = '\n' if done == total else ''
    print(
      f'\r[{"#" * filled}{"." * (30 - filled)}] {done}/{total}',
      end=end,
      file=sys.stderr,
      flush=True,
    )


if __name__ == '__main__':
  app.run(main, positional=('t2i|edit|t2v|ask|info', 'PROMPT*'))
