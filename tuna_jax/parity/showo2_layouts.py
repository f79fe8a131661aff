"""The layouts of the official Show-o2 (docs/showo2.md 5), faults included, for its golden set.

Conversations of its last stage are ours (`tasks.conversation`); the earlier ones lose the question
beside the picture; stories learn to predict the pad id under pictures (F6).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tuna_jax.data import tasks
from tuna_jax.data.segments import Text, layout
from tuna_jax.models.attention import visible
from tuna_jax.parity import official, samples
from tuna_jax.parity.case import Case, Outputs
from tuna_jax.parity.official import IGNORED, Laid
from tuna_jax.sample.showo2 import SYSTEM

MIXED_MULTIPLE = 128  # what the length of a story's prompt is padded to


def story(special, texts: Sequence[Sequence[int]], span: int, length: int, most: int) -> Laid:
  """[bos] text [boi] span [eoi] text ... [eos] [pad]...: all is learned, pads of pictures too."""
  plan = [Text((special.bos,))]
  for ids in texts:
    plan += [Text(tuple(ids)), official.span_of(span, True)]
  laid = official.finish(special, [*plan, Text((special.eos,))], length)
  absent = np.zeros((most - len(laid.positions), 2), np.int32)
  return laid._replace(
    labels=np.where(laid.tokens == special.pad, IGNORED, laid.tokens).astype(np.int32),
    positions=np.concatenate([laid.positions, absent]),
  )


def chat(special, record, span: int, length: int, stage: str) -> Laid:
  """A conversation of a stage: 'tuning', or one of pretraining, without roles."""
  turns, pictures = tasks.turns_of(record), [official.span_of(span)] if 'image' in record else []
  if stage == 'tuning':
    mark = tasks.PLACEHOLDER
    turns = [(role, f'{mark}\n{_rest(text)}' if mark in text else text) for role, text in turns]
    plan = tasks.conversation(special, turns, pictures, system=SYSTEM)
  else:
    plan = [Text((special.bos,)), *pictures]
    for role, text in turns:
      if role == 'assistant':
        plan.append(Text((*special.encode(text), special.eos), True))
      elif tasks.PLACEHOLDER not in text:
        plan.append(Text(special.encode(text)))
  weight = layout(plan, special, (1, 1)).label_weight
  laid = official.finish(special, plan, length)
  learned = np.pad(weight[:-1] > 0, (1, len(laid.tokens) - len(weight)))
  return Laid(
    tokens=laid.tokens[:length],
    labels=np.where(learned, laid.tokens, IGNORED).astype(np.int32)[:length],
    text_mask=laid.text_mask[:length],
    image_mask=(laid.tokens == special.img_pad).astype(np.int32)[:length],
    positions=np.maximum(laid.positions, 0),
  )


def _rest(text: str) -> str:
  """The question beside the mark."""
  return text.replace(tasks.PLACEHOLDER, '').strip('\n')


def prompts(special, texts: Sequence[str], span: int, room: int | None) -> Laid:
  """Rows of text to image; without `room`, those of a story: no eos, padded to MIXED_MULTIPLE."""
  ids = [special.encode(text)[:room] for text in texts]
  if room is not None:
    rows = [official.generation(special, row, span, room + span + 4) for row in ids]
  else:
    plans = [[Text((special.bos, *row)), official.span_of(span, True)] for row in ids]
    longest = max(map(len, ids)) + span + 3
    length = -(-longest // MIXED_MULTIPLE) * MIXED_MULTIPLE
    rows = [official.finish(special, plan, length) for plan in plans]
  return Laid(*(np.stack(field) for field in zip(*rows)))


def layouts(case: Case) -> Outputs:
  """k2: every formatter on ids, records and prompts; masks."""
  special, out = samples.open_tokenizer(case), {}
  for sub, s in case.config['subs'].items():
    if s['fn'] == 'mask':
      positions = case.config['subs'][sub]['mp']
      batch = official.to_batch(
        np.zeros((len(positions), s['L']), np.int32), np.array(positions), None, 1
      )
      seen = visible(batch.kv_limit, batch.segment, batch.segment)
      out[f'out.{sub}.dense'] = jnp.asarray(seen, jnp.int32)
      continue
    if s['fn'].startswith('prompt'):
      texts, nulls = s['prompts'], s.get('nulls', [''] * len(s['prompts']))
      given = prompts(special, texts, s['S'], s.get('max_text_len'))
      null = prompts(special, nulls, s['S'], s.get('max_text_len'))
      out |= {
        f'out.{sub}.text_tokens': given.tokens,
        f'out.{sub}.mp': given.positions,
        f'out.{sub}.null_tokens': null.tokens,
        f'out.{sub}.null_mp': null.positions,
      }
      continue
    if s['fn'] == 'story':
      laid = story(special, s['texts'], s['S'], s['L'], s['max'])
    elif s['fn'] == 'chat':
      laid = chat(special, s['record'], s['S'], s['L'], s['stage'])
    else:
      formatter = {'gen': official.generation, 'und': official.understanding}[s['fn']]
      laid = formatter(special, tuple(case.given(sub, 'ids').tolist()), s['S'], s['L'])
    names = ('text_tokens', 'text_labels', 'text_masks', 'image_masks', 'mp')
    out |= {f'out.{sub}.{name}': value for name, value in zip(names, laid)}
  return out


CASES = {'showo2_layout': layouts}
