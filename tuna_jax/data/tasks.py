"""`TASKS`: a record becomes a plan, one short function per task; and the prompts of inference, laid
out by the same code (docs/architecture.md 5.3 to 5.6).

    t2i t2v              [bos] caption [boi] span(target) [eoi] [eos]
    edit                 [bos] [boi] span [eoi] instruction [boi] span(target) [eoi] [eos]
    caption vqa video_*  <|im_start|>user \\n [boi] span [eoi] \\n question <|im_end|> \\n
                         <|im_start|>assistant \\n answer <|im_end|>    loss on: answer <|im_end|>
    text                 the same conversation without a span

To add a task, write one function below `@task(...)`; everything else (reading records, checks,
metrics per task, mixtures) asks `TASKS`. Media are uint8 [F, H, W, 3] or [H, W, 3]. A conversation
may have any number of turns and of pictures; `<image>` in a human turn is where a picture stands,
and pictures without a mark stand first. numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tuna_jax.config import UserError, nearest
from tuna_jax.data.segments import Image, Plan, Text, Video
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.ranges import Share, Whole

QWEN_SYSTEM = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'
PLACEHOLDER = '<image>'
_ROLES = {'human': 'user', 'gpt': 'assistant'}
_ROLES |= {role: role for role in ('user', 'assistant', 'system')}


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """How records are laid out.

  caption_dropout: share of generation and editing examples whose text is left out, for guidance.
  system: the system turn of conversations that bring none; None leaves it out. questions,
  video_questions: one is drawn for each record of `caption` and `video_caption`. learn: 'answers'
  puts the text loss on assistant turns, 'everything' on all text (to pretrain a decoder). max_text:
  tokens that the texts of an example with pictures or clips may have, template included; longer
  examples are named, counted and skipped. Text alone may fill a row. 0 sets no bound.
  """

  caption_dropout: Share = 0.1
  system: str | None = QWEN_SYSTEM
  questions: tuple[str, ...] = ('Describe the image.',)
  video_questions: tuple[str, ...] = ('Describe the video.',)
  learn: str = 'answers'
  max_text: Whole = 0

  def __post_init__(self):
    if self.learn not in ('answers', 'everything'):
      raise UserError(f"learn={self.learn!r}: expected 'answers' or 'everything'")


# ---- layouts: the only place that knows where special tokens stand


def generation(tokenizer: Tokenizer, text: str, target: Image | Video) -> Plan:
  """Text, then what it describes. An empty text is guidance's null prompt: `[bos] [boi] span`."""
  return [Text((tokenizer.bos, *tokenizer.encode(text))), target, Text((tokenizer.eos,))]


def editing(
  tokenizer: Tokenizer, sources: Sequence[Image | Video], text: str, target: Image | Video
) -> Plan:
  """Any number of clean sources, the instruction, then the result."""
  before, after = Text((tokenizer.bos,)), Text((tokenizer.eos,))
  return [before, *sources, Text(tokenizer.encode(text)), target, after]


def conversation(
  tokenizer: Tokenizer,
  turns: Sequence[tuple[str, str]],
  visuals: Sequence[Image | Video] = (),
  *,
  system: str | None = None,
  learn: str = 'answers',
  header: bool = False,
  marked: tuple[str, ...] = ('user',),
) -> Plan:
  """A chat in Qwen's template, pictures standing at the `<image>` marks of its user turns.

  turns: (role, text), role one of user, assistant, system. system: inserted in front if the first
  turn is not one. marked: the roles whose marks are pictures; with 'assistant', what was drawn
  earlier in a conversation. header: ends with an open assistant turn, for generation. Raises
  UserError where marks and pictures do not agree.
  """
  turns = list(turns)
  marks = sum(text.count(PLACEHOLDER) for role, text in turns if role in marked)
  if marks > len(visuals):
    raise UserError(f'{marks} {PLACEHOLDER} marks, {len(visuals)} pictures')
  if marks < len(visuals):
    first = next((i for i, (role, _) in enumerate(turns) if role == 'user'), None)
    if first is None:
      raise UserError(f'{len(visuals)} pictures and no user turn to hold them')
    turns[first] = ('user', (PLACEHOLDER + '\n') * (len(visuals) - marks) + turns[first][1])
  if system and (not turns or turns[0][0] != 'system'):
    turns.insert(0, ('system', system))

  plan, visuals, newline = [], iter(visuals), tokenizer.encode('\n')
  opened = lambda role, *before: (*before, tokenizer.bos, *tokenizer.encode(role + '\n'))
  for n, (role, text) in enumerate(turns):
    all_learned = learn == 'everything'
    loss = all_learned or role == 'assistant'
    plan.append(Text(opened(role, *(newline if n else ())), all_learned))
    for k, piece in enumerate(text.split(PLACEHOLDER) if role in marked else [text]):
      plan += [next(visuals)] if k else []
      plan += [Text(tokenizer.encode(piece), loss)] if piece else []
    plan.append(Text((tokenizer.eos,), loss))
  return [*plan, Text(opened('assistant', *newline))] if header else plan


# ---- tasks


@dataclasses.dataclass(frozen=True)
class Context:
  """What a task function needs beside its record."""

  tokenizer: Tokenizer
  config: TaskConfig = TaskConfig()

  def maybe(self, text: str, rng: np.random.Generator) -> str:
    """`text`, or nothing with the probability of caption dropout."""
    return '' if rng.random() < self.config.caption_dropout else text

  def chat(self, turns, visuals=()) -> Plan:
    """A training conversation under this config."""
    config = self.config
    return conversation(self.tokenizer, turns, visuals, system=config.system, learn=config.learn)


@dataclasses.dataclass(frozen=True)
class Task:
  """One task: how its records are read and laid out.

  number: what `Batch.task` holds. fields: what a record must have, name -> kind: 'text' (not
  empty), 'turns' (a conversation), 'picture', 'pictures' (one or a list), or 'clip'.
  """

  number: int
  fields: Mapping[str, str]
  plan: Callable[[Mapping, Context, np.random.Generator], Plan]


KINDS = ('text', 'turns', 'picture', 'pictures', 'clip')
TASKS: dict[str, Task] = {}


def task(**fields: str):
  """Registers the function below it as the task of its name; fields: as in `Task`."""

  def register(plan):
    if plan.__name__ in TASKS or not set(fields.values()) <= set(KINDS):
      raise ValueError(f'task {plan.__name__}: expected a new name and fields of {KINDS}')
    TASKS[plan.__name__] = Task(len(TASKS), fields, plan)
    return plan

  return register


@task(image='picture', caption='text')
def t2i(record, ctx, rng) -> Plan:
  """Draw what the caption says."""
  return generation(ctx.tokenizer, ctx.maybe(record['caption'], rng), Image(record['image'], True))


@task(image='picture', caption='text')
def caption(record, ctx, rng) -> Plan:
  """Say what the picture shows."""
  turns = [('user', _one_of(ctx.config.questions, rng)), ('assistant', record['caption'])]
  return ctx.chat(turns, [Image(record['image'])])


@task(image='pictures', conversations='turns')
def vqa(record, ctx, rng) -> Plan:
  """A conversation about one or several pictures."""
  return ctx.chat(turns_of(record), [Image(p) for p in _list(record['image'])])


@task(conversations='turns')
def text(record, ctx, rng) -> Plan:
  """A conversation without a picture."""
  return ctx.chat(turns_of(record))


@task(raw_image='pictures', out_image='picture', instruction='text')
def edit(record, ctx, rng) -> Plan:
  """Change the raw picture (or several) as the instruction says."""
  sources = [Image(p) for p in _list(record['raw_image'])]
  instruction = ctx.maybe(record['instruction'], rng)
  return editing(ctx.tokenizer, sources, instruction, Image(record['out_image'], True))


@task(video='clip', caption='text')
def t2v(record, ctx, rng) -> Plan:
  """Film what the caption says."""
  return generation(ctx.tokenizer, ctx.maybe(record['caption'], rng), Video(record['video'], True))


@task(video='clip', caption='text')
def video_caption(record, ctx, rng) -> Plan:
  """Say what the clip shows."""
  turns = [('user', _one_of(ctx.config.video_questions, rng)), ('assistant', record['caption'])]
  return ctx.chat(turns, [Video(record['video'])])


@task(video='clip', conversations='turns')
def video_vqa(record, ctx, rng) -> Plan:
  """A conversation about a clip; its mark may also be written `<video>`."""
  mark = lambda role, text: text.replace('<video>', PLACEHOLDER) if role == 'user' else text
  turns = [(role, mark(role, text)) for role, text in turns_of(record)]
  return ctx.chat(turns, [Video(record['video'])])


def check_task(name: str) -> str:
  """Returns `name`; raises UserError with the nearest task if there is no such task."""
  if name not in TASKS:
    known = ', '.join(TASKS)
    raise UserError(f'unknown task {name!r}: expected one of {known}{nearest(name, TASKS)}')
  return name


def turns_of(record: Mapping) -> list[tuple[str, str]]:
  """(role, text) of `record['conversations']`, `[{from: human|gpt, value}]`; raises UserError
  where it is malformed.
  """
  talk, turns = record['conversations'], []
  if not isinstance(talk, (list, tuple)):
    raise UserError(f'conversations: expected a list of turns, found {str(talk)[:80]!r}')
  for n, turn in enumerate(talk):
    given = turn if isinstance(turn, Mapping) else {}
    role, text = given.get('from'), given.get('value')
    if not isinstance(role, str) or role not in _ROLES or not isinstance(text, str):
      wanted = "{'from': 'human' or 'gpt', 'value': text}"
      raise UserError(f'conversations[{n}]: expected {wanted}, found {str(turn)[:80]}')
    turns.append((_ROLES[role], text))
  if not any(role == 'assistant' and value.strip() for role, value in turns):
    raise UserError('conversations: no answer of gpt to learn from')
  return turns


def _one_of(questions: Sequence[str], rng: np.random.Generator) -> str:
  return questions[int(rng.integers(len(questions)))] if len(questions) > 1 else questions[0]


def _list(value) -> Sequence[np.ndarray]:
  return value if isinstance(value, (list, tuple)) else [value]
