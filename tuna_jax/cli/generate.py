"""Draws, edits, films and answers with a trained model.

  tuna-jax generate t2i 'a red ball' --checkpoint=RUN --output=ball.png
  tuna-jax generate edit 'make it blue' --image=ball.png --checkpoint=RUN --output=blue.png
  tuna-jax generate t2v 'a ball rolls' --frames=13 --checkpoint=RUN --output=ball.mp4
  tuna-jax generate t2v 'it rolls away' --image=ball.png --checkpoint=RUN --output=roll.mp4
  tuna-jax generate ask 'What is this?' --image=ball.png --checkpoint=RUN
  tuna-jax generate story 'A cat went out.' --checkpoint=RUN --output=cat.png
  tuna-jax generate t2i 'a red ball' --model=showo2-1.5b --output=ball.png

Several prompts run in batches; each is one word of the shell, so quote it. '' is an empty prompt.
Files remember prompt, seed and settings. Weights that have no VAE or tokenizer beside them need
--vae and --tokenizer.
"""

import dataclasses
import json
import os

import tqdm
from absl import flags

from tuna_jax import files
from tuna_jax.cli import app, options
from tuna_jax.config import UserError

ACTIONS = {
  't2i': 'Draws a picture of each PROMPT.',
  'edit': 'Changes the pictures of --image as each PROMPT says.',
  't2v': 'Films a clip of each PROMPT, which begins with the picture of --image if there is one.',
  'ask': 'Answers each PROMPT, about the pictures or clips of --image if there are any.',
  'story': 'Continues a PROMPT with texts, which are printed, and pictures in turn.',
  'info': 'Prints the prompt, seed and settings that each named file remembers.',
}

_open = options.define_model(batch_size=16)
_COUNT = flags.DEFINE_integer(
  'count', 1, 'How many results to make per prompt; result i uses the seed --seed + i.', 1
)
_SEED = flags.DEFINE_integer('seed', 42, 'The random seed of the first result.')
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'The file to write: .png, or .mp4 or .gif for a clip. It is out.png or out.mp4 by default, and '
  'several results have a number added to the name.',
)
_IMAGE = flags.DEFINE_multi_string(
  'image', [], 'A picture (or clip, for ask) that the prompt is about; repeat it for several.'
)
_PICTURES = flags.DEFINE_integer('pictures', 4, 'How many pictures a story has at most.', 1)
_drawing = options.define_drawing()
_IMAGE_GUIDANCE = flags.DEFINE_float(
  'image_guidance', None, 'The scale of guidance by the source pictures, which adds a branch.'
)
_INTERVAL = flags.DEFINE_list(
  'guidance_interval', '0,1', 'Guidance is used between these two times, from 0 to 1.'
)
_RESCALE = flags.DEFINE_float(
  'guidance_rescale', 0.0, 'How far, from 0 to 1, guidance is held back from over-saturation.'
)
_sampler = options.define_sampler()
_MAX_NEW = flags.DEFINE_integer(
  'max_new_tokens', 512, 'An answer ends after this many tokens at the latest.'
)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.0, 'The temperature that tokens are drawn at; 0 takes the best one.'
)
_TOP_K = flags.DEFINE_integer('top_k', 0, 'Tokens are drawn from the best k; 0 allows all.')
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Tokens are drawn from the fewest best ones that have this share of probability.'
)

_ENDINGS = {  # of what is drawn
  't2i': ('.png',), 'edit': ('.png',), 't2v': ('.mp4', '.gif'), 'story': ('.png',),
}  # fmt: skip
_DRAWN = (
  'size output negative guidance guidance_interval guidance_rescale points shift solver'
).split()
_MODEL = 'checkpoint model vae tokenizer step ema batch_size count seed'.split()
ONLY = {  # flags that not every action takes
  'image': ('edit', 'ask', 't2v'),
  'pictures': ('story',),
  'image_guidance': ('edit',),
  **dict.fromkeys(('frames', 'fps'), ('t2v',)),
  **dict.fromkeys(_DRAWN, tuple(_ENDINGS)),
  'negative': ('t2i', 'edit', 't2v'),
  **dict.fromkeys(('max_new_tokens', 'temperature', 'top_k', 'top_p'), ('ask', 'story')),
  **dict.fromkeys(_MODEL, (*_ENDINGS, 'ask')),
  'count': ('t2i', 'edit', 't2v', 'ask'),
}


def main(argv):
  action, *prompts = argv[1:]
  if action == 'info':
    return info(prompts)
  if not prompts:
    raise UserError(f"{action}: missing argument PROMPT; '' is an empty one")
  if action == 'edit' and not _IMAGE.value:
    raise UserError('edit: --image is required: the picture to edit')
  for path in _IMAGE.value or ():
    if not files.path(path).exists():
      raise UserError(f'--image={path}: no such file')
  if action == 'ask':
    return ask(prompts)
  if action == 'story' and len(prompts) > 1:
    raise UserError(f'story: {len(prompts)} prompts, expected one')
  draw(action, prompts)


def info(paths):
  """Prints what files remember."""
  from tuna_jax.sample.output import read_info

  if not paths:
    raise UserError('info: missing argument FILE, a picture or clip')
  for path in paths:
    print(json.dumps(read_info(path), indent=1, ensure_ascii=False))


def draw(action, prompts):
  """t2i, edit, t2v and story."""
  from tuna_jax.sample.image import SCALE, Guidance

  ending = _ENDINGS[action]
  output = _OUTPUT.value or f'out{ending[0]}'
  if os.path.splitext(output)[1].lower() not in ending:
    raise UserError(f'--output={output}: expected a name that ends in {" or ".join(ending)}')
  if not files.is_remote(output) and not os.path.isdir(files.absolute(output).parent):
    raise UserError(f'--output={output}: there is no directory {os.path.dirname(output)}')
  scale = SCALE if _drawing['guidance'].value is None else _drawing['guidance'].value
  guidance = Guidance(scale, _IMAGE_GUIDANCE.value, _interval(), _RESCALE.value)
  _, generator = _open()
  if _drawing['guidance'].value is None:
    usual = generator.how('t2i' if action == 'story' else action).guidance.scale
    guidance = dataclasses.replace(guidance, scale=usual)
  how = {
    'size': _drawing['size'].value,
    'negative': _drawing['negative'].value,
    'guidance': guidance,
    **_sampler(),
    'seed': _SEED.value,
  }
  stem, suffix = os.path.splitext(output)
  if action == 'story':
    del how['negative']
    told = generator.story(prompts[0], _PICTURES.value, **how, **_choice())
    paths = (f'{stem}-{n}{suffix}' for n in range(len(told)))
    for part in told:
      if isinstance(part, str):
        print(part)
      else:
        part.save(path := next(paths))
        print(path)
    return
  prompts = [prompt for prompt in prompts for _ in range(_COUNT.value)]
  with tqdm.tqdm(desc=action, unit='evaluation', disable=None) as bar:

    def report(done, total):
      bar.total = total
      bar.update(done - bar.n)

    if action == 't2i':
      results = generator.image(prompts, **how, report=report)
    elif action == 't2v':
      firsts = [list(_IMAGE.value)] * len(prompts) if _IMAGE.value else ()
      how |= {'fps': _drawing['fps'].value, 'images': firsts}
      results = generator.video(prompts, _drawing['frames'].value, **how, report=report)
    else:
      sources = [list(_IMAGE.value)] * len(prompts)
      results = generator.edit(sources, prompts, **how, report=report)
  for n, result in enumerate(results):
    path = output if len(results) == 1 else f'{stem}-{n}{suffix}'
    result.save(path)
    print(f'{path}  seed {result.info["seed"]}  {result.info["prompt"]}')


def ask(questions):
  """Answers on stdout: one as it is decoded, several as one line each."""
  how = {**_choice(), 'seed': _SEED.value}
  _, generator = _open()
  questions = [question for question in questions for _ in range(_COUNT.value)]
  if len(questions) == 1:
    for piece in generator.stream(questions[0], list(_IMAGE.value), **how):
      print(piece, end='', flush=True)
    print()
    return
  for answer in generator.text(questions, [list(_IMAGE.value)] * len(questions), **how):
    print(answer)


def _choice():
  return {
    'max_new_tokens': _MAX_NEW.value,
    'temperature': _TEMPERATURE.value,
    'top_k': _TOP_K.value,
    'top_p': _TOP_P.value,
  }


def _interval() -> tuple[float, float]:
  try:
    low, high = map(float, _INTERVAL.value)
  except ValueError:
    given = ','.join(_INTERVAL.value)
    raise UserError(f'--guidance_interval={given}: expected two numbers, as in 0,0.8') from None
  return low, high


if __name__ == '__main__':
  app.run(main, actions=ACTIONS, positional=('PROMPT*',), only=ONLY)
