"""Collectives of a compiled program, by mesh axis, with loop bodies counted as often as they run.

Reads the optimized HLO text: `compiled.as_text()`. Bytes are what one device sends for the
operation on a ring of n devices: (n - 1) / n of the gathered array for an all-gather, of the array
before it is scattered for a reduce-scatter, twice that for an all-reduce.

Between the slices of a multi-slice run a TPU has no such operation: each device hands its part to
the host, which exchanges it over the data-centre network. These are the `dcn-` kinds, along `data`,
where slices lie.
"""

from __future__ import annotations

import collections
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
  'all-gather all-reduce reduce-scatter all-to-all ragged-all-to-all collective-permute'
).split()
_BITS = {
  'pred': 8, 's8': 8, 'u8': 8, 'f8e4m3fn': 8, 'f8e5m2': 8, 's16': 16, 'u16': 16, 'f16': 16,
  'bf16': 16,
  's32': 32, 'u32': 32, 'f32': 32, 's64': 64, 'u64': 64, 'f64': 64,
}  # fmt: skip
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(')
_NAME = re.compile(r'\s+(?:ROOT )?%([\w.\-]+) = ')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\]')
_CALLED = re.compile(r'(calls|to_apply|body|branch_computations)=(?:%?([\w.\-]+)|\{([^}]*)\})')
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
  """All collectives of one kind over the same mesh axes; bytes are what one device sends."""

  kind: str
  axes: tuple[str, ...]
  count: int
  bytes: int


def collectives(text: str, mesh, slices: int = 1) -> list[Collective]:
  """The collectives of an HLO module compiled for `mesh`, `slices` slices joined along data,
  largest first.

  Raises ValueError for a loop with collectives in it whose trip count the compiler does not know.
  """
  entry, bodies = _parse(text)
  spread = _spread_channels(bodies)
  totals: dict = {}

  def total(name):
    if name not in totals:
      found = collections.Counter()
      for line, shape, op in bodies[name]:
        kind = op.removesuffix('-start')
        if kind in COLLECTIVES:
          axes, ways = _axes(line, mesh)
          if ways > 1 and spread.get(_channel(line), name) == name:
            whole = _whole_bytes(kind, op, shape, ways)
            if name.startswith('all-reduce-scatter'):  # on a TPU: a sum, then a slice of it
              kind = 'reduce-scatter'
            found[kind, axes, 'count'] += 1
            found[kind, axes, 'bytes'] += _sent(kind, whole, ways)
        elif op == 'send' and (between := _BETWEEN_SLICES.search(line)):
          kind = between[1].lower().replace('_', '-')
          whole = _sizes(shape)[0] * (slices if kind == 'all-gather' else 1)
          found[f'dcn-{kind}', ('data',), 'count'] += 1
          found[f'dcn-{kind}', ('data',), 'bytes'] += _sent(kind, whole, slices)
        elif not op.endswith(('-done', '-update')):
          times = _trips(line, bodies) if op == 'while' else 1
          for called in _called(line, bodies):
            inner = total(called)
            if inner and times is None:
              raise ValueError(
                f'a loop with collectives has no known trip count: {line.strip()[:200]}'
              )
            for key, value in inner.items():
              found[key] += value * times
      totals[name] = found
    return totals[name]

  found = total(entry)
  rows = {(kind, axes) for kind, axes, _ in found}
  out = [
    Collective(kind, axes, found[kind, axes, 'count'], found[kind, axes, 'bytes'])
    for kind, axes in rows
  ]
  return sorted(out, key=lambda c: (-c.bytes, c.kind, c.axes))


def _parse(text):
  """(entry computation, {computation: [(line, result type, opcode)]})."""
  entry, name, bodies = None, None, {}
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      name = head[2]
      bodies[name] = []
      entry = name if head[1] else entry
      continue
    instruction = _INSTRUCTION.match(line) if name else None
    if instruction:
      bodies[name].append((line, instruction[1], instruction[2]))
  return entry, bodies


def _called(line, bodies):
  names = []
  for _, one, several in _CALLED.findall(line):
    names += [one] if one else [n.strip().lstrip('%') for n in several.split(',')]
  return [name for name in names if name in bodies]


def _trips(line, bodies):
  """How often a while loop runs; None if its text does not say."""
  found = _TRIPS.search(line)
  if found:
    return int(found[1])
  # The compiler's own loops, a product in steps around a ring, say only `while (i < n) i += step`.
  condition, body = (
    {named[1]: text for text, _, _ in bodies[part] if (named := _NAME.match(text))}
    for part in re.search(r'condition=%?([\w.\-]+), body=%?([\w.\-]+)', line).groups()
  )

  def counter(name, lines):
    """(element of the loop's state, what was added to it), or (None, constant)."""
    op, operands = re.search(r' ([a-z][\w\-]*)\(([^()]*)\)', lines[name]).groups()
    operands = operands.replace('%', '').split(', ')
    if op == 'get-tuple-element':
      return int(re.search(r'index=(\d+)', lines[name])[1]), 0
    if op == 'constant':
      return None, int(operands[0])
    if op == 'copy':
      return counter(operands[0], lines)
    if op == 'add':
      (a, m), (b, n) = (counter(operand, lines) for operand in operands)
      return (b if a is None else a), m + n
    raise LookupError(op)

  try:
    compare = next(text for text in condition.values() if 'ROOT' in text)
    left, right = re.search(r' compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT', compare).groups()
    (element, _), (_, bound) = counter(left, condition), counter(right, condition)
    root = next(text for text in body.values() if 'ROOT' in text)
    state = re.findall(r'%([\w.\-]+)', re.search(r' tuple\((.*?)\)(,|$)', root)[1])
    same, step = counter(state[element], body)
  except (AttributeError, LookupError, TypeError):
    return None
  return -(-bound // step) if same == element and step > 0 else None


def _channel(line):
  found = re.search(r'channel_id=(\d+)', line)
  return found and found[1]


def _spread_channels(bodies) -> dict[str, str]:
  """{channel: the computation that starts it} of collectives that run beside other fusions.

  A TPU writes such a one several times: where it starts, in each fusion beside it, and where it
  ends.
  """
  return {
    _channel(inner): called
    for body in bodies.values()
    for line, _, _ in body
    if re.match(r'\s+(?:ROOT )?%async-collective-start', line)
    for called in _called(line, bodies)
    for inner, _, op in bodies[called]
    if op in COLLECTIVES
  }


def _sizes(shape) -> list[int]:
  """Bytes of each array in a result type."""
  return [
    _BITS[dtype] * int(np.prod([int(n) for n in dims.split(',') if n], dtype=np.int64)) // 8
    for dtype, dims in _ARRAY.findall(shape)
    if dtype in _BITS
  ]


def _whole_bytes(kind, op, shape, ways) -> float:
  """Bytes of the whole array that is gathered, summed or exchanged."""
  sizes = _sizes(shape)
  if op.endswith('-start') and kind == 'collective-permute':
    return sizes[0]  # (operand, result, contexts)
  if op.endswith('-start') and kind == 'all-gather':
    return sum(sizes) * ways / (ways + 1)  # (operands, results): the results are the larger half
  return sum(sizes) * (ways if kind == 'reduce-scatter' else 1)


def _sent(kind, whole, ways) -> int:
  share = 1.0 if kind == 'collective-permute' else (ways - 1) / ways
  return int(whole * share * (2 if kind == 'all-reduce' else 1))


def _axes(line, mesh) -> tuple[tuple[str, ...], int]:
  """(mesh axes the first group of a collective spans, its size)."""
  shape = tuple(mesh.shape.values())
  group = _first_group(line, int(np.prod(shape)))
  coordinates = np.stack(np.unravel_index(group, shape))
  spans = (coordinates != coordinates[:, :1]).any(axis=1)
  return tuple(name for name, varies in zip(mesh.shape, spans) if varies), len(group)


def _first_group(line, devices) -> np.ndarray:
  pairs = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', line)
  if pairs:
    return np.array([int(pairs[1]), int(pairs[2])])
  named = re.search(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}', line)
  if named:
    # mesh['a'=2,'b'=8] {'b':(2)4}: of b, cut into 2 x 4 x 1, the 4 in the middle
    chosen = {
      name: (int(before or 1), int(size or 0))
      for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[3])
    }
    cut, first = [], []
    for name, size in re.findall(r"'([^']+)'=(\d+)", named[1]):
      before, ways = chosen.get(name, (1, 1))
      ways = ways or int(size)
      cut += [before, ways, int(size) // before // ways]
      first += [0, slice(None), 0]
    return _ids(named[2], devices).reshape(cut)[tuple(first)].reshape(-1)
  iota = re.search(r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', line)
  if iota:
    return _ids(iota[2], devices).reshape(-1, int(iota[1].split(',')[-1]))[0]
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
  if listed:
    return np.array([int(n) for n in listed[1].split(',')])
  if 'replica_groups={}' in line or 'replica_groups' not in line:
    return np.arange(devices)
  raise ValueError(f'replica groups of an unknown form: {line.strip()[:200]}')


def _ids(order, devices) -> np.ndarray:
  """Device ids in an order such as `[2,4,2]T(1,0,2)`, a reshape and a transpose; None: 0, 1, ..."""
  ids = np.arange(devices)
  if order:
    dims, axes = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', order).groups()
    ids = ids.reshape([int(n) for n in dims.split(',')])
    if axes:
      ids = ids.transpose([int(n) for n in axes.split(',')])
  return ids
