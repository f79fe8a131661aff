"""What a run stands on, kept in its config.json; what changed when it is continued is named.

What would change a run without a word is refused unless the change is allowed by name: a data
position means other records in another mixture, and a model that has learned with one tokenizer or
VAE does not know another.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

from tuna_jax import files
from tuna_jax.config import UserError, nearest
from tuna_jax.data.mixture import fingerprint
from tuna_jax.data.pipeline import Pipeline
from tuna_jax.data.sources import MADE
from tuna_jax.mappings import to_dict
from tuna_jax.train.config import TrainConfig
from tuna_jax.train.feed import Feed
from tuna_jax.weights import steps, store

FIELDS = (
  *('mixture', 'phases', 'tokenizer', 'vae', 'tasks', 'media', 'rows', 'sizes', 'seed'),
  'look_ahead',
)
MOVING = {'rows', 'seed', 'look_ahead'}  # without them a data position must be found anew

_log = logging.getLogger(__name__)


def ground(config: TrainConfig, feed: Feed, pipeline: Pipeline) -> dict[str, Any]:
  """What a run stands on, by FIELDS, as JSON: digests of the content of what lies elsewhere."""
  data, online = config.data, config.visual and config.encoder.online and config.model.vae
  media = {k: v for k, v in to_dict(data.media).items() if k != 'processes'}
  found = {
    'mixture': [{**fingerprint(s), 'weight': s.weight} for s in pipeline.sources],
    'phases': data.phases,
    'tokenizer': feed.tokenizer.digest,
    'vae': store.identity(config.vae) if online else '',
    'tasks': to_dict(data.tasks),
    'media': media,
    'rows': config.rows,
    'sizes': [config.length, config.visual, config.images],
    'seed': config.seed,
    'look_ahead': data.look_ahead,
  }
  return json.loads(json.dumps(found))


def as_kept(config: TrainConfig) -> dict[str, Any]:
  """The config as a run keeps it: what it names is found from any folder."""
  kept = to_dict(config)
  for where, name in [
    (kept, 'vae'),
    (kept, 'tokenizer'),
    (kept, 'init_from'),
    (kept['data'], 'mixture'),
  ]:
    if where[name] and where[name] not in MADE:
      where[name] = str(files.absolute(where[name]))
  return kept


def check(
  workdir, config: TrainConfig, now: Mapping[str, Any], allowed: Collection[str]
) -> set[str]:
  """Which FIELDS of the run in `workdir` changed; all differences of its config are logged.

  Raises UserError naming those that are not in `allowed`. A run without checkpoints has not begun.
  """
  for name in allowed:
    if name not in FIELDS:
      known = ', '.join(FIELDS)
      raise UserError(f'allow-change={name}: expected one of {known}{nearest(name, FIELDS)}')
  if not steps.committed(workdir) or not (files.path(workdir) / 'config.json').exists():
    return set()
  about = store.read_config(workdir)
  was = about['notes'].get('ground', {})
  changed = {
    name: told(was[name], now[name]) for name in FIELDS if was.get(name, now[name]) != now[name]
  }
  if refused := {name: what for name, what in changed.items() if name not in allowed}:
    what = '; '.join(f'{name} ({how})' for name, how in refused.items())
    raise UserError(
      f'{workdir}: this run began with another {what}; take another --workdir, or allow it: '
      f'--allow-change={",".join(refused)}'
    )
  before, after = _flat(about['config']), _flat(json.loads(json.dumps(as_kept(config))))
  named = [f'{k}: {before.get(k)} -> {v}' for k, v in after.items() if before.get(k, v) != v]
  named += [f'{name}: {what}' for name, what in changed.items()]
  if named:
    _log.warning('%s: continues with changes: %s', workdir, '; '.join(named))
  return set(changed)


def told(was, now) -> str:
  """How two JSON values differ, in words; '' where they do not."""
  if was == now:
    return ''
  if isinstance(was, dict) and isinstance(now, dict):
    keys = [k for k in now if was.get(k) != now[k]]
    return ', '.join(f'{k} {was.get(k)!r:.60} -> {now[k]!r:.60}' for k in keys)
  if isinstance(was, list) and isinstance(now, list) and now and isinstance(now[0], dict):
    if len(was) != len(now):
      return f'{len(was)} sources -> {len(now)}'
    return '; '.join(
      f'source {n}: {told(a, b)}' for n, (a, b) in enumerate(zip(was, now)) if a != b
    )
  return f'{was!r:.200} -> {now!r:.200}'


def _flat(mapping: Mapping, prefix: str = '') -> dict[str, Any]:
  out = {}
  for key, value in mapping.items():
    whole = f'{prefix}{key}'
    out |= _flat(value, f'{whole}.') if isinstance(value, dict) else {whole: value}
  return out
