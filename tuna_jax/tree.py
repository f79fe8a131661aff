"""Leaf names, and matching a table of name patterns against a tree.

A leaf's name is its path joined by '/': `decoder/layers/attn/q_proj/kernel`. Shards, learning
rates, decay masks, torch tensors and checkpoint leaves are all selected by such names, through this
module alone.
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

  Raises ValueError naming the leaf and the nearest row if none does.
  """
  for pattern, value in table:
    if re.fullmatch(pattern, name):
      return value
  raise UserError(f'{name}: no {what} covers it{nearest(name, [p for p, _ in table])}')


def match_tree(tree, table, what: str = 'rule'):
  """A tree of the same structure holding, for each leaf, the value `match` finds for its name.

  Raises ValueError listing every uncovered leaf, and every row that matches no leaf first (dead
  rows hide typos).
  """
  table = list(table)
  leaf_names = names(tree)
  firsts, missing = {}, []
  for name in leaf_names:
    row = next((i for i, (pattern, _) in enumerate(table) if re.fullmatch(pattern, name)), None)
    if row is None:
      missing.append(f'{name}: no {what} covers it{nearest(name, [p for p, _ in table])}')
    firsts[name] = row
  dead = [
    f'{table[i][0]!r}: this {what} selects nothing{nearest(table[i][0], leaf_names)}'
    for i in range(len(table))
    if i not in firsts.values()
  ]
  if missing or dead:
    raise UserError('\n'.join(missing + dead))
  return jax.tree_util.tree_map_with_path(lambda path, _: table[firsts[name_of(path)]][1], tree)
