"""Records with the sizes of real ones and nothing in them, to measure how full rows are: row
`synthetic` of `data.sources.KINDS`.

Lengths of texts are lognormal; their medians and spreads are assumed, between those of short
captions (ten words) and of long ones (two hundred), and were measured on no data set. Aspect ratios
are those of photos and screens.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tuna_jax.data.media import MediaConfig, buckets, choose_bucket
from tuna_jax.data.records import Made
from tuna_jax.data.sources import SourceConfig
from tuna_jax.data.tasks import TASKS

# task -> (median of the words of its text, standard deviation of their logarithm)
WORDS = {
  't2i': (70, 0.7), 'caption': (110, 0.6), 'vqa': (150, 0.7), 'text': (250, 0.9),
  'edit': (20, 0.6), 't2v': (70, 0.7), 'video_caption': (110, 0.6), 'video_vqa': (100, 0.7),
}  # fmt: skip
# width / height -> share
ASPECTS = {1: 0.2, 4 / 3: 0.3, 3 / 2: 0.15, 3 / 4: 0.15, 2 / 3: 0.05, 16 / 9: 0.12, 9 / 16: 0.03}
QUESTION = {1: 0.85, 2: 0.1, 4: 0.05}  # pictures of a question -> share
EDIT = {1: 0.85, 2: 0.15}  # sources of an edit -> share


class SyntheticSource(Made):
  """`config.size` records of one task; media are zeros of the buckets of `media`."""

  tasks: ClassVar = tuple(TASKS)

  def __init__(self, config: SourceConfig, media: MediaConfig):
    self.task, self.name = config.task, f'{config.path}/{config.task}'
    self._config, self._media = config, media

  def raw(self, index):
    """The fields of the task, filled."""
    rng = np.random.default_rng((self._config.seed, TASKS[self.task].number, int(index)))
    median, spread = WORDS[self.task]
    text = ' '.join(['word'] * max(1, round(median * np.exp(spread * rng.normal()))))
    turns = [{'from': 'human', 'value': 'what is it ?'}, {'from': 'gpt', 'value': text}]
    picture = self._picture(rng)
    make = {
      'text': lambda: text,
      'turns': lambda: turns,
      'picture': lambda: picture,
      'pictures': lambda: [picture] + [
        picture if self.task == 'edit' else self._picture(rng)
        for _ in range(_draw(EDIT if self.task == 'edit' else QUESTION, rng) - 1)
      ],
      'clip': lambda: _zeros(self._media.frames, *buckets(self._media.video_size)[0]),
    }  # fmt: skip
    return {field: make[kind]() for field, kind in TASKS[self.task].fields.items()}

  def _picture(self, rng):
    aspect = _draw(ASPECTS, rng)
    return _zeros(*choose_bucket(1, aspect, buckets(self._media.image_size)))


def _draw(shares, rng):
  """A key, with the probability of its value."""
  return list(shares)[rng.choice(len(shares), p=list(shares.values()))]


def _zeros(*size):
  return np.broadcast_to(np.uint8(0), (*size, 3))
