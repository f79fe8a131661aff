"""What one request may ask for."""

from __future__ import annotations

import dataclasses
import re

from tuna_jax.config import UserError
from tuna_jax.ranges import Count, Few, Positive


@dataclasses.dataclass(frozen=True)
class RequestLimits:
  """side: pixels of the longer side of what is drawn. points: of its time grid. frames: of a clip.
  pictures: drawn by one request, or given to it. prompt: characters of all texts of a request.
  answer: its tokens. upload_mb: of a request. waiting: requests that may wait for the device.
  """

  side: Count = 1024
  points: Count = 100
  frames: Count = 49
  pictures: Few = 4
  prompt: Count = 8000
  answer: Count = 1024
  upload_mb: Positive = 20.0
  waiting: Count = 32

  @property
  def upload(self) -> int:
    """Bytes of a request."""
    return int(self.upload_mb * 1e6)

  def check(self, **asked) -> None:
    """Raises UserError where a number of `asked`, named as a limit, is larger than it; `size`, as
    `media.buckets` reads it, is held against `side`."""
    if (size := asked.pop('size', None)) is not None:
      from tuna_jax.data.media import buckets  # numpy, which --help does not need

      sides = re.findall('[0-9]+', str(size))
      self.check(side=max(map(int, sides), default=None))  # before what a size has to be
      asked['side'] = max(buckets(str(size))[0])
    for name, value in asked.items():
      if value is not None and value > (most := getattr(self, name)):
        raise UserError(f'{value:,g} {WORDS[name]}; at most {most:,g} are allowed here')


WORDS = {
  'side': 'pixels on the longer side',
  'points': 'points of the time grid',
  'frames': 'frames of a clip',
  'pictures': 'pictures of one request',
  'prompt': 'characters of a prompt',
  'answer': 'tokens of an answer',
  'upload_mb': 'MB of one request',
  'waiting': 'requests that wait',
}
