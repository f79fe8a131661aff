"""Through a table, both ways: `plan` and `export` map names to `Lazy` tensors, `convert` puts them
on devices.

Everything that does not fit is collected first and raised together. What is fresh, dropped or
adapted on purpose is listed in the plan, and stored with the checkpoint by whoever writes it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from tuna_jax import tree
from tuna_jax.config import nearest
from tuna_jax.weights import digest
from tuna_jax.weights.adapt import FreshUnlessEqual, Misfit
from tuna_jax.weights.tables import Row, Table, bare
from tuna_jax.weights.tensors import (
  FLOATS,
  CheckpointError,
  Damaged,
  Lazy,
  equal,
  index_shape,
  lazies,
  raise_faults,
)

NEAREST = 60  # the number of faults that get a nearest name, which takes time to find


@dataclasses.dataclass
class Plan:
  """What a conversion will do, by our leaf names, and what is not carried over as it is, and why.

  leaves: the values of all leaves but the fresh ones. fresh: {leaf: reason}. dropped: {their
  tensor: reason}. adapted: {leaf: what changed}.
  """

  leaves: dict[str, Lazy] = dataclasses.field(default_factory=dict)
  fresh: dict[str, str] = dataclasses.field(default_factory=dict)
  dropped: dict[str, str] = dataclasses.field(default_factory=dict)
  adapted: dict[str, str] = dataclasses.field(default_factory=dict)

  def notes(self) -> dict[str, dict[str, str]]:
    """The three lists, for the checkpoint's own record."""
    return {'fresh': self.fresh, 'dropped': self.dropped, 'adapted': self.adapted}


def convert(table: Table, reader: Mapping, abstract_params, shardings=None):
  """The parameters that `abstract_params` describes, read from `reader`.

  Args:
    table: which of our leaves is which tensor (weights.tables).
    reader: {their name: Lazy or array}, as `weights.open_checkpoint` gives.
    abstract_params: nested dicts of jax.ShapeDtypeStruct, from jax.eval_shape.
    shardings: a tree of jax.sharding.Sharding of the same structure; default what
      `abstract_params` says, or else the first local device. Each device reads its own slice.

  Raises CheckpointError listing every uncovered, missing, unused, doubly matched or misshapen
  tensor, and any leaf that the source cannot supply: nothing here invents values.
  """
  planned = plan(table, reader, abstract_params)
  if planned.fresh:
    raise CheckpointError(
      '\n'.join(f'{leaf}: not in the source: {why}' for leaf, why in planned.fresh.items())
    )
  return place(planned.leaves, abstract_params, shardings)


def place(leaves: Mapping[str, Lazy], abstract_params, shardings=None, *, verify: bool = True):
  """`leaves` as a tree of jax.Array like `abstract_params`; each device reads its own slice.

  In a run of several processes all of them call this. verify: compare what has been read with the
  digests that the leaves have. Raises Damaged where they differ, or where a process cannot read.
  """
  default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = tree.flatten(shardings) if shardings is not None else {}
  avals = tree.flatten(abstract_params)
  places = {name: wanted.get(name, aval.sharding or default) for name, aval in avals.items()}
  alone = all(where.is_fully_addressable for where in places.values())
  arrays, damage = {}, None
  try:
    with concurrent.futures.ThreadPoolExecutor() as pool:
      for name, aval in avals.items():
        dtype = leaves[name].dtype if verify and leaves[name].digest else aval.dtype
        arrays[name] = _put(leaves[name], aval.shape, dtype, places[name], pool)
        if alone and dtype != aval.dtype:  # so that no tree of the stored type is on the devices
          digest.check({name: leaves[name]}, arrays)
          arrays[name] = arrays[name].astype(aval.dtype)
  except Damaged as error:
    damage = error
  if not alone:
    if multihost_utils.process_allgather(np.bool_(damage is not None)).any():
      raise damage or Damaged('another process found the checkpoint damaged')
  elif damage:
    raise damage
  if verify:
    as_stored = {name: a for name, a in arrays.items() if a.dtype == leaves[name].dtype}
    digest.check(leaves, as_stored)
  return jax.tree_util.tree_map_with_path(
    lambda path, aval: arrays[tree.name_of(path)].astype(aval.dtype), abstract_params
  )


def _put(value: Lazy, shape, dtype, where, pool) -> jax.Array:
  """The tensor on devices; slices that several devices hold are read once."""
  by_device = where.addressable_devices_indices_map(shape)
  spans = {tuple(s.indices(n)[:2] for s, n in zip(at, shape)): at for at in by_device.values()}
  cast = lambda at: value[at].astype(dtype, copy=False)
  read = dict(zip(spans, pool.map(cast, spans.values())))
  placed = jax.make_array_from_callback(
    shape, where, lambda at: read[tuple(s.indices(n)[:2] for s, n in zip(at, shape))]
  )
  return placed.block_until_ready()  # else what was read waits in memory beside it


def plan(table: Table, reader: Mapping, abstract_params) -> Plan:
  """Matches every leaf with its tensors by names and shapes. CheckpointError lists all faults."""
  result, faults = Plan(), []
  tensors = _clean(table, lazies(reader), result, faults)
  used, missing, optional = {}, [], []
  for leaf, aval in tree.flatten(abstract_params).items():
    found = [(row, indices) for row in table.rows if (indices := row.match(leaf)) is not None]
    if len(found) != 1:
      what = 'doubly matched by ' + ' and '.join(f'{row.ours!r}' for row, _ in found)
      if not found:
        what = 'no row covers it' + nearest(leaf, [row.ours for row in table.rows])
      faults.append(f'{leaf}: {what}')
      continue
    row, indices = found[0]
    if isinstance(row.adapt, FreshUnlessEqual):
      optional.append(leaf)
    shape = _torch_order(leaf, aval.shape[1:] if row.stacked else aval.shape)
    parts, notes = [], set()
    for name in _names(row, indices, aval.shape):
      if name in used:
        faults.append(f'{name}: doubly matched, by {used[name]} and {leaf}')
      used[name] = leaf
      if name not in tensors:
        missing.append((name, leaf))
      elif tensors[name].dtype not in FLOATS:
        faults.append(
          f'{name}: {tensors[name].dtype}; {leaf} needs floating-point values of 16 bits or more; '
          'take the file that was quantized, or multiply by the scales first'
        )
      else:
        try:
          part, note = row.adapt.to_ours(tensors[name], shape)
        except Misfit as misfit:
          faults.append(f'{name}: misshapen for {leaf}{list(aval.shape)}: {misfit}')
        else:
          parts.append((name, part))
          notes.add(note)
    if any(part is None for _, part in parts):
      result.fresh[leaf] = f'{parts[0][0]}: {", ".join(notes)}'
    else:
      result.leaves[leaf] = _leaf(leaf, row.stacked, parts, aval)
      if any(notes):
        result.adapted[leaf] = ', '.join(sorted(filter(None, notes)))
  modules = {leaf.rpartition('/')[0]: leaf for leaf in result.fresh}
  for leaf in optional:  # the leaves of a module are fresh together
    if sibling := modules.get(leaf.rpartition('/')[0]):
      if result.leaves.pop(leaf, None):
        result.fresh[leaf] = f'{sibling} is fresh'
  unused = [name for name in tensors if name not in used]
  faults += [
    f'{name}: missing, wanted for {leaf}{_near(n, name, unused)}'
    for n, (name, leaf) in enumerate(missing)
  ]
  faults += [
    f'{name}: unused: no leaf of the model takes it{_near(n, name, [m for m, _ in missing])}'
    for n, name in enumerate(unused)
  ]
  raise_faults(table.source, faults)
  return result


def export(table: Table, params) -> dict[str, Lazy]:
  """{their name: Lazy} from our parameters: the rows read backwards.

  params: nested dicts (or {name: leaf}) of jax.Array, numpy or Lazy. Raises CheckpointError for
  leaves that no row covers.
  """
  tensors, faults = {}, []
  for leaf, value in lazies(tree.flatten(params)).items():
    found = ((row, row.match(leaf)) for row in table.rows)
    row, indices = next(((row, at) for row, at in found if at is not None), (None, ()))
    if row is None:
      faults.append(f'{leaf}: no row covers it{nearest(leaf, [row.ours for row in table.rows])}')
      continue
    for layer, name in enumerate(_names(row, indices, value.shape)):
      tensors[name] = row.adapt.to_torch(_to_torch(leaf, value, layer if row.stacked else None))
  raise_faults(table.source, faults)
  return tensors


def _clean(table: Table, tensors, result: Plan, faults) -> dict[str, Lazy]:
  """Tensors by bare name: prefixes stripped, dropped ones listed, aliases checked and dropped."""
  kept, raw = {}, {}
  for name, value in tensors.items():
    short = bare(name)
    reason = next((drop.reason for drop in table.drops if drop.match(short)), None)
    if reason is not None:
      result.dropped[name] = reason
      continue
    while prefix := next((p for p in table.prefixes if short.startswith(p)), None):
      short = short.removeprefix(prefix)
    if short in kept:
      faults.append(f'{name}: doubly matched: it and {raw[short]} are both {short}')
    kept[short], raw[short] = value, name
  for alias, of in table.aliases:
    if alias in kept and of in kept:
      if equal(kept[alias], kept[of]):
        result.dropped[raw.pop(alias)] = f'the same tensor as {of}'
        del kept[alias]
      else:
        faults.append(f'{alias}: differs from {of}, which the config ties it to (decoder.tied)')
  return kept


def _is_matrix(leaf: str) -> bool:
  """Whether torch has the inputs of this leaf last."""
  return leaf.endswith(('/kernel', '/lora_a', '/lora_b'))


def _names(row: Row, indices, shape) -> list[str]:
  """Their names for one leaf: one, or one per layer."""
  if row.stacked:
    return [row.torch.format(i) for i in range(shape[0])]
  return [row.torch.format(*indices)]


def _torch_order(leaf: str, items):
  """A shape or an index of ours (without the stacked axis) in torch's axis order."""
  items = tuple(items)
  return (items[-1], items[-2], *items[:-2]) if _is_matrix(leaf) else items


def _our_order(leaf: str, array: np.ndarray) -> np.ndarray:
  return array.transpose(*range(2, array.ndim), 1, 0) if _is_matrix(leaf) else array


def _leaf(leaf: str, stacked: bool, parts, aval) -> Lazy:
  """Our leaf over its tensors, which have torch's axis order and our sizes."""
  dtype = np.dtype(aval.dtype)

  def read_part(part, index):
    name, value = part
    array = _our_order(leaf, value.read(_torch_order(leaf, index))).astype(dtype)
    if not np.isfinite(array).all():
      raise CheckpointError(
        f'{name}: holds infinite or undefined values: the file is damaged or the training diverged'
      )
    return array

  def read(index):
    if not stacked:
      return read_part(parts[0], index)
    out = np.empty(index_shape(index), dtype)
    for at, layer in enumerate(range(index[0].start, index[0].stop)):
      out[at] = read_part(parts[layer], index[1:])
    return out

  return Lazy(tuple(aval.shape), dtype, read)


def _to_torch(leaf: str, value: Lazy, layer: int | None) -> Lazy:
  """One layer of our leaf in torch's axis order."""
  shape = value.shape if layer is None else value.shape[1:]
  front = () if layer is None else (slice(layer, layer + 1),)

  def read(index):
    ours = index if not _is_matrix(leaf) else (*index[2:], index[1], index[0])
    array = value.read((*front, *ours)).reshape(index_shape(ours))
    return array.transpose(_torch_order(leaf, range(array.ndim)))

  return Lazy(_torch_order(leaf, shape), value.dtype, read)


def _near(rank: int, name: str, names) -> str:
  cheap = rank < NEAREST and len(names) * math.log2(len(name) + 1) < 20_000
  return nearest(name, names) if cheap else ''
