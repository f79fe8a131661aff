"""Text from prompts: one prefill, then one token per step from the key/value cache.

Axes:  R conversations   P prompt   T room for new tokens   W padded vocabulary
Rows of different length share a cache: prompts are padded on the right, and the positions of each
row continue from its own end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.batch import Batch
from tuna_jax.config import TunaConfig, UserError
from tuna_jax.models.tuna import Cache, Tuna, init_cache
from tuna_jax.sample.prompt import bucket, lengths
from tuna_jax.weights import storage


@dataclasses.dataclass(frozen=True)
class Choice:
  """How a token is chosen: greedily at temperature 0, else drawn from what top_k and top_p keep.

  top_k: the k best and those equal to the k-th; 0 keeps all. top_p: the fewest best tokens whose
  share of the remaining probability reaches this, at least one; 1 keeps all.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not self.temperature >= 0:
      raise UserError(
        f'temperature={self.temperature}: must not be negative; 0 takes the best token'
      )
    if self.top_k < 0:
      raise UserError(f'top_k={self.top_k}: must not be negative; 0 keeps all tokens')
    if not 0 < self.top_p <= 1:
      raise UserError(f'top_p={self.top_p}: expected above 0 and at most 1')


class State(NamedTuple):
  """Where decoding stands.

  logits: float32[R, W] of the next token. tokens: int32[R, T], of which `count` are decoded. done:
  bool[R], whether the row has ended. position: int32[R] of the next token.
  """

  cache: Cache
  logits: jax.Array
  tokens: jax.Array
  count: jax.Array
  done: jax.Array
  position: jax.Array


def generate_text(
  config: TunaConfig, params, prompts: Batch, *, eos: int | Sequence[int],
  max_new_tokens: int = 512, choice: Choice | None = None, seeds: Sequence[int] | None = None,
  live=None, features=None, time: float = 1.0,
) -> list[np.ndarray]:  # fmt: skip
  """int32 arrays of at most `max_new_tokens` ids that continue the rows of `prompts` (from
  `prompt.collate`); an `eos` (or one of several) that ended one is its last id.

  seeds: one per row, below 2**32; a row's draws depend on its own seed alone. live: bool[R], the
  rows that are wanted; others are padding and do not keep the loop running. features, time: of
  `start`.
  """
  state = start(config, params, prompts, max_new_tokens, live, features, time)
  state = advance(config, params, state, max_new_tokens, eos=eos, choice=choice, seeds=seeds)
  return finished(state, eos)


def stream_text(
  config: TunaConfig, params, prompts: Batch, *, eos: int, max_new_tokens: int = 512,
  choice: Choice | None = None, seeds: Sequence[int] | None = None, every: int = 1, features=None,
) -> Iterator[list[np.ndarray]]:  # fmt: skip
  """As `generate_text`, yielding all ids so far after every `every` tokens."""
  state = start(config, params, prompts, max_new_tokens, features=features)
  count = 0
  while count < max_new_tokens and not bool(state.done.all()):
    state = advance(
      config, params, state, min(count + every, max_new_tokens), eos=eos, choice=choice, seeds=seeds
    )
    count = int(state.count)
    yield finished(state, eos)


def start(
  config: TunaConfig, params, prompts: Batch, max_new_tokens: int, live=None, features=None,
  time: float = 1.0,
) -> State:  # fmt: skip
  """The state after the prompts, with room for `max_new_tokens`.

  features: [R, V, D], visual tokens made earlier, in place of those of the prompts' latents. time:
  that of the prompts' pictures, which are clean.
  """
  if max_new_tokens < 1:
    raise UserError(f'max_new_tokens={max_new_tokens}: must be at least 1')
  live = np.ones(len(prompts.tokens), bool) if live is None else np.asarray(live)
  room = bucket(max_new_tokens)
  return _start(params, prompts, live, features, np.float32(time), config=config, room=room)


def advance(
  config: TunaConfig, params, state: State, until: int, *, eos: int | Sequence[int],
  choice: Choice | None = None, seeds: Sequence[int] | None = None,
) -> State:  # fmt: skip
  """Decodes until there are `until` tokens or every row has ended. `state` is donated."""
  rows, choice = len(state.done), choice or Choice()
  seeds = np.zeros(rows, np.uint32) if seeds is None else np.asarray(seeds, np.uint32)
  numbers = np.float32([choice.temperature, choice.top_k, choice.top_p])
  filtered = choice.temperature > 0 and (choice.top_k > 0 or choice.top_p < 1)
  return _advance(
    params, state, np.int32(until), np.atleast_1d(np.int32(eos)), numbers, seeds,
    config=config, greedy=choice.temperature == 0, filtered=filtered,
  )  # fmt: skip


def finished(state: State, eos: int | Sequence[int]) -> list[np.ndarray]:
  """The ids of each row up to its `eos`, included."""
  out = []
  for row in np.asarray(state.tokens)[:, : int(state.count)]:
    ends = np.flatnonzero(np.isin(row, eos))
    out.append(row[: ends[0] + 1] if len(ends) else row)
  return out


def keep(logits, top_k, top_p):
  """float32[R, W] in which what top_k and top_p exclude is -inf; both may be traced."""
  best = jnp.sort(logits, axis=-1)[:, ::-1]
  k = jnp.where(top_k > 0, jnp.minimum(top_k, logits.shape[-1]), logits.shape[-1]).astype(jnp.int32)
  kth = jnp.take_along_axis(best, jnp.broadcast_to(k - 1, (len(best), 1)), axis=-1)
  best = jnp.where(best >= kth, best, -jnp.inf)
  probability = jax.nn.softmax(best, axis=-1)
  before = jnp.cumsum(probability, axis=-1) - probability  # 0 for the best, which is always kept
  worst = jnp.min(jnp.where(before < top_p, best, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= jnp.maximum(kth, worst), logits, -jnp.inf)


@storage.program(static_argnames=('config', 'room'))
def _start(params, prompts, live, features, time, *, config, room):
  rows, length, _, images, _ = prompts.sizes
  model, variables = Tuna(config), {'params': params}
  cache = init_cache(config, rows, length + room, flow=False)
  time = jnp.full((rows, images), time)
  out = model.apply(variables, prompts, prompts.latents, time, cache, flow=False, features=features)
  count = lengths(prompts)
  last = jnp.take_along_axis(out.hidden, (count - 1)[:, None, None], axis=1)
  logits = model.apply(variables, last[:, 0], method='logits')
  return State(out.cache, logits, jnp.zeros((rows, room), jnp.int32), jnp.int32(0), ~live, count)


@storage.program(static_argnames=('config', 'greedy', 'filtered'), donate_argnames='state')
def _advance(params, state, until, eos, numbers, seeds, *, config, greedy, filtered):
  temperature, top_k, top_p = numbers
  model, variables = Tuna(config), {'params': params}

  def choose(logits, count):
    if greedy:
      return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if filtered:
      logits = keep(logits, top_k, top_p)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), count))(seeds)
    return jax.vmap(jax.random.categorical)(keys, logits)

  def step(state):
    token = jnp.where(state.done, eos[0], choose(state.logits, state.count)).astype(jnp.int32)
    out = model.apply(
      variables,
      _one_token(token, state),
      jnp.zeros((len(token), 0, config.token_dim)),
      jnp.zeros((len(token), 0)),
      state.cache,
      flow=False,
    )
    logits = model.apply(variables, out.hidden[:, 0], method='logits')
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.count, axis=1)
    done = state.done | jnp.isin(token, eos)
    return State(out.cache, logits, tokens, state.count + 1, done, state.position + 1)

  return jax.lax.while_loop(lambda s: (s.count < until) & ~s.done.all(), step, state)


def pieces(texts: Iterable[str]) -> Iterator[str]:
  """What each text adds to the one before it; a letter waits for all of its bytes."""
  shown = now = ''
  for now in texts:
    if len(now) > len(shown) and not now.endswith('\N{REPLACEMENT CHARACTER}'):
      yield now[len(shown) :]
      shown = now
  if len(now) > len(shown):
    yield now[len(shown) :]


def _one_token(token, state):
  """The Batch of one new text token per row."""
  rows = len(token)
  column, cells = jnp.zeros((rows, 1), jnp.int32), jnp.zeros((rows, 0), jnp.int32)
  return Batch(
    tokens=token[:, None], labels=column, label_weight=column.astype(jnp.float32),
    segment=column + 1, position=state.position[:, None], kv_limit=column + state.cache.index,
    slot=column - 1, task=column, latents=jnp.zeros((rows, 0, 0)),
    coords=jnp.zeros((rows, 0, 3), jnp.int32), image=cells,
    grid=jnp.zeros((rows, 0, 3), jnp.int32), place=cells, target=cells.astype(bool),
  )  # fmt: skip
