"""Stories: a model writes until it opens a picture, draws it, and goes on from both.

    bos prompt text boi [picture] eoi text boi [picture] eoi ... eos      (docs/showo2.md 5.5 and 8)

A picture is drawn behind everything before it, and then stands there as a clean one, t = 1, except
that Show-o2 with `compat='official'` writes behind pictures of t = 0 (F4). The other branch of
guidance has neither text nor pictures.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tuna_jax.data import tasks
from tuna_jax.data.segments import Image, Text, layout
from tuna_jax.sample import asking, showo2
from tuna_jax.sample.image import Drawing
from tuna_jax.sample.output import Picture
from tuna_jax.sample.prompt import collate
from tuna_jax.sample.text import Choice, generate_text


def tell(
  generator, prompt: str, pictures: int, how: Drawing, *, size, seed: int, max_new_tokens: int,
  choice: Choice,
) -> list[str | Picture]:  # fmt: skip
  """What follows `prompt`: texts and at most `pictures` pictures in turn. It ends where the model
  ends it, or where a text has `max_new_tokens` without opening a picture.

  seed: picture n uses seed + n. A Show-o2 story begins with its flag, and has guidance LATER_SCALE
  from the second picture on.
  """
  words, config = generator.tokenizer, generator.config
  show_o2 = config.design == 'late_fusion'
  flag = showo2.STORY if show_o2 else ''
  time = float(not (show_o2 and config.compat == 'official'))
  plan = [Text((words.bos, *words.encode(flag), *words.encode(prompt)))]
  target, told = generator.target(Image, size, 1), []
  for n in range(pictures):
    example = layout(plan, words, config.strides)
    asking.check_length(generator, example, max_new_tokens)
    ids = generate_text(
      config, generator.params, collate([example], config.token_dim), eos=(words.eos, words.boi),
      max_new_tokens=max_new_tokens, choice=choice, seeds=[seed], time=time,
    )[0]  # fmt: skip
    opened = ids[-1] == words.boi
    ids = ids[:-1] if opened else ids
    if text := words.decode(ids):
      told.append(text)
    if not opened:
      return told
    if n == 1 and show_o2:
      scale = dataclasses.replace(how.guidance, scale=showo2.LATER_SCALE)
      how = dataclasses.replace(how, guidance=scale)
    plan.append(Text(tuple(ids.tolist())))
    branches = [[*plan, target], tasks.generation(words, '', target)][: how.guidance.branches]
    drawn = generator.draw([branches], [seed + n], how)[0]
    pixels = generator.decode([drawn])[0]
    info = {'prompt': prompt, 'seed': seed + n, **dataclasses.asdict(how)}
    told.append(Picture(pixels[0], info))
    clean = generator.encode([pixels])[0] if config.seen_dim else np.asarray(drawn)
    plan.append(Image(clean))
  return told
