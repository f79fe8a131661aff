"""The plug-in for lmms-eval (entry point group `lmms_eval.models`): model id `tuna_jax`.

    lmms_eval --model tuna_jax --model_args checkpoint=runs/stage3 --tasks mme,gqa --batch_size 16

lmms-eval and torch are imported only when lmms-eval itself asks for the manifest or for a class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools

from tuna_jax.benchmarks import answers
from tuna_jax.benchmarks.answers import Reading, Settings
from tuna_jax.config import UserError

KINDS = ('Simple', 'Chat')


def manifest():
  """What the entry point gives to lmms-eval: the classes of the model id, by name."""
  from lmms_eval.models.registry_v2 import ModelManifest

  return ModelManifest(
    'tuna_jax',
    simple_class_path='tuna_jax.benchmarks.lmms.Simple',
    chat_class_path='tuna_jax.benchmarks.lmms.Chat',
  )


def __getattr__(name):
  if name in KINDS:
    return _classes()[name]
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


class Model:
  """What both kinds of model share. model_args:

  checkpoint: a run or a weights directory. vae, tokenizer: their directories, where the checkpoint
  does not say. images, resize: of `answers.Reading`. image_size, video_size, frames: instead of the
  checkpoint's own (`data.media.MediaConfig`); frames is how many of a clip are seen. seed: of tasks
  that sample. generator: an open Generator instead of a checkpoint, from Python.
  lmms-eval itself adds batch_size, max_batch_size and device; the last two have no effect.
  """

  def __init__(
    self,
    checkpoint='',
    *,
    generator=None,
    images='first',
    resize='squash',
    image_size='',
    video_size='',
    frames='',
    vae='',
    tokenizer='',
    seed=42,
    batch_size=1,
    max_batch_size=None,
    device=None,
  ):
    super().__init__()
    del max_batch_size, device
    self.how, self.seed = Reading(images, resize), int(seed)
    self.devices = contextlib.nullcontext
    if (generator is None) == (not checkpoint):
      raise UserError('model_args: expected checkpoint=RUN, a run or a weights directory')
    if generator is None:
      from tuna_jax.benchmarks.host import open_on_host

      where = {'vae': vae, 'tokenizer': tokenizer, 'batch_size': int(batch_size)}
      generator, self.devices = open_on_host(checkpoint, **where)
    changes = {'image_size': str(image_size), 'video_size': str(video_size)}
    changes['frames'] = int(frames or 0)
    changes = {name: value for name, value in changes.items() if value}
    generator.media = dataclasses.replace(generator.media, **changes)
    self.generator = generator

  @property
  def device(self):
    """Where lmms-eval keeps its counts of requests: the host."""
    return 'cpu'

  def generate_until(self, requests):
    """Yields answers in the order of the requests; every host of a run is given its own share.

    lmms-eval pairs them with the requests one by one, so its cache holds each as soon as it is
    there, and a run that was killed goes on from it.
    """
    from tqdm import tqdm  # lmms-eval brings it

    with tqdm(total=len(requests), disable=self.rank != 0, desc='tuna_jax') as bar, self.devices():
      yield from answers.answer(
        self.generator, map(self.question, requests), seed=self.seed, report=bar.update
      )

  def question(self, request) -> answers.Question:
    """One request of lmms-eval as a question."""
    raise NotImplementedError

  def loglikelihood(self, requests):
    raise NotImplementedError(
      'tuna_jax answers in text: tasks of multiple_choice are not supported'
    )

  def generate_until_multi_round(self, requests):
    raise NotImplementedError('tuna_jax answers one round: tasks of several are not supported')


@functools.cache
def _classes() -> dict[str, type]:
  from lmms_eval.api.model import lmms

  class Simple(Model, lmms):
    """Pictures first, then the text of the task: what the authors' adapter shows."""

    is_simple = True

    def question(self, request):
      context, kwargs, doc_to_visual, doc_id, task, split = request.args
      visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
      size = self.generator.media.image_size
      return answers.from_visuals(context, visuals, self.how, size, Settings.of(kwargs))

  class Chat(Model, lmms):
    """The task's own messages, pictures where they stand."""

    is_simple = False

    def question(self, request):
      _, doc_to_messages, kwargs, doc_id, task, split = request.args
      messages = doc_to_messages(self.task_dict[task][split][doc_id])
      size = self.generator.media.image_size
      return answers.from_messages(messages, self.how, size, Settings.of(kwargs))

  for kind in (Simple, Chat):
    kind.__module__, kind.__qualname__ = __name__, kind.__name__
  return {'Simple': Simple, 'Chat': Chat}
