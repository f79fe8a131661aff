"""Leaf names, and matching a table of name patterns against a tree.

A leaf's name is its path joined by '/': `decoder/layers/attn/q_proj/kernel`. Such names select
shards, learning rates, decay masks, torch tensors and checkpoint leaves.
"""

from __future__ import annotations

import re

import jax

from tuna_jax.config import UserError, nearest


def name_of(path) -> str:
  """The name of a leaf from a `jax.tree_util` key path."""
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def names(tree) -> list[str]:
  """Names of all leaves, in the tree's own order."""
  return [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def flatten(tree) -> dict:
  """{name: leaf}."""
  return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict) -> dict:
  """Nested dicts from {name: leaf}, the inverse of `flatten` for trees of dicts."""
  tree: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def match(name: str, table, what: str = 'rule'):
  """The value of the first row (pattern, value) whose pattern matches the whole `name`.

  Raises UserError with the leaf and the nearest row if there is none.
  """
  row = _first(name, table)
  if row is None:
    raise UserError(_uncovered(name, table, what))
  return table[row][1]


def match_tree(tree, table, what: str = 'rule'):
  """A tree of the same structure with the value that `match` finds for each leaf's name.

  Raises UserError listing every uncovered leaf, and every row that is no leaf's first match: such
  rows hide misspelt names.
  """
  table, leaf_names = list(table), names(tree)
  rows = {name: _first(name, table) for name in leaf_names}
  faults = [_uncovered(name, table, what) for name, row in rows.items() if row is None]
  for i in sorted(set(range(len(table))) - set(rows.values())):
    pattern = table[i][0]
    faults.append(f'{pattern!r}: this {what} selects nothing{nearest(pattern, leaf_names)}')
  if faults:
    raise UserError('\n'.join(faults))
  return jax.tree_util.tree_map_with_path(lambda path, _: table[rows[name_of(path)]][1], tree)


def _first(name: str, table) -> int | None:
  return next((i for i, (pattern, _) in enumerate(table) if re.fullmatch(pattern, name)), None)


def _uncovered(name: str, table, what: str) -> str:
  return f'{name}: no {what} covers it{nearest(name, [pattern for pattern, _ in table])}'
