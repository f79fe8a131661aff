"""Where arrays live: one mesh, one table for parameters, a few named anchors for activations.

  mesh axes   data     rows of a batch; parameters are copies. Slices of a pod are joined here
              fsdp     rows of a batch; parameters are sharded along the model width, and large
                       kernels along the MLP
              context  sequence positions; parameters are sharded once more where that divides
              tensor   heads and MLP columns

The first row of `RULES` whose pattern is the end of a parameter's name places it; the spec is
aligned to the last axes of the array, so one row serves a single layer and a scanned stack, a
parameter, its moments and its average. `anchor` reads the mesh of `with jax.set_mesh(mesh):` around
the jitted call; without one it does nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tuna_jax.batch import Batch
from tuna_jax.config import UserError, nearest
from tuna_jax.tree import name_of

AXES = ('data', 'fsdp', 'context', 'tensor')
ROWS = ('data', 'fsdp')  # what rows of a batch are split over
WIDTH = ('fsdp', 'context')  # what the width of a parameter is split over
MAX_FSDP = 128  # the vision width is 1152 = 128 x 9


class Place(NamedTuple):
  """A spec for the last axes of an array. Mesh axes in `optional` are dropped if they do not divide
  the dimension.
  """

  spec: P
  optional: tuple[str, ...] = ('context',)


_COLUMN = Place(P(WIDTH, 'tensor'))  # [width, heads or MLP]
_ROW = Place(P('tensor', WIDTH))  # [heads or MLP, width]
# Sharded along the MLP axis, XLA reduce-scatters the gradients of large kernels; 128-way along the
# width it all-reduced them, which is twice the bytes.
_LONG = ('tensor', *WIDTH)
_LONG_COLUMN = Place(P(None, _LONG), ('context', 'tensor'))  # [width, MLP]
_LONG_ROW = Place(P(_LONG, None), ('context', 'tensor'))  # [MLP, width]
_COPY = Place(P())

RULES: tuple[tuple[str, Place], ...] = (
  ('v_(row|col)/.*', _COPY),  # mean squares of Adafactor, of the rows and columns of a matrix
  ('(vision/patch_embed|projector|patches/embed)/kernel', Place(P(None, WIDTH))),
  ('patches/mask_token|vision/(cls_token|register_tokens)', _COPY),
  ('vision/position_embed/embedding', Place(P(None, WIDTH))),
  ('(vision|decoder|flow_head)/layers/attn/q_proj/kernel', _COLUMN),
  # There are 2 to 16 key/value heads; a larger tensor axis is dropped.
  (
    '(vision|decoder|flow_head)/layers/attn/[kv]_proj/kernel',
    Place(P(WIDTH, 'tensor'), ('context', 'tensor')),
  ),
  ('vision/layers/attn/out_proj/kernel', _ROW),
  ('(decoder|flow_head)/layers/attn/o_proj/kernel', _ROW),
  ('vision/layers/mlp/fc1/kernel', _COLUMN),
  ('vision/layers/mlp/fc2/kernel', _ROW),
  ('(vision|decoder|flow_head)/layers/mlp/(gate|up)_proj/kernel', _LONG_COLUMN),
  ('(vision|decoder|flow_head)/layers/mlp/down_proj/kernel', _LONG_ROW),
  ('(connector|time_embed|flow_head/bridge)/fc1/kernel', _COLUMN),
  ('(connector|time_embed|flow_head/bridge)/fc2/kernel', _ROW),
  ('time_token/kernel', _COLUMN),
  # Along the width, so that a look-up needs an exchange and no sum over devices (`STEPS`).
  ('decoder/embed/embedding', Place(P('tensor', ('context', 'fsdp')), ('context', 'tensor'))),
  ('decoder/lm_head/kernel', _LONG_COLUMN),
  ('flow_head/(layers|final)/adaln/kernel', _LONG_COLUMN),
  ('flow_head/final/linear/kernel', Place(P(WIDTH, None))),
  ('.*/lora_a', Place(P(WIDTH, None), AXES)),
  ('.*/lora_b', Place(P(None, WIDTH), AXES)),
  # A few thousand numbers each: a copy costs less than an all-gather.
  ('.*/(bias|ns_coeffs)', _COPY),  # ns_coeffs: optax's Muon keeps three numbers in its state
  ('.*(norm[12]?/scale|layer_scale[12])', _COPY),
  ('.*(lora|kernel|embedding)_scale', _COPY),
)

ANCHORS = {
  'tokens': P(ROWS, 'context'),  # [B, L]
  'by_width': P('data', None, ('context', 'fsdp')),  # [B, L, D] as an embedding table gives it
  'by_width_and_row': P(ROWS, None, 'context'),
  'looked_up': P(ROWS, 'context', None),  # [B, L, D], the layout of `hidden`
  'hidden': P(ROWS, 'context', None),  # [B, L, D]
  'visual': P(ROWS, 'context', None),  # [B, V or M + V, D]
  'heads': P(ROWS, 'context', 'tensor', None),  # [B, L, H, d]
  'keys': P(ROWS, None, 'tensor', None),  # [B, Lk, K, d]: every query of a row sees all of them
  'mlp': P(ROWS, 'context', 'tensor'),  # [B, L, F]
  'images': P(ROWS, None, None),  # [B, M, n]: one vector per image
  'logits': P(ROWS, 'context', 'tensor'),  # [B, L, vocabulary]
  'rows': P(ROWS),  # [B]
}
# Intermediate layouts: reshard one mesh axis at a time, else XLA all-gathers the batch.
STEPS = {'looked_up': ('by_width', 'by_width_and_row')}


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  context: int = 1,
  tensor: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
  num_slices: int | None = None,
) -> Mesh:
  """A Mesh('data', 'fsdp', 'context', 'tensor') over `devices` (default: all of the job's).

  Args:
    data, fsdp, context, tensor: axis sizes; -1 is inferred. If data and fsdp are both -1, fsdp is
      the largest divisor of MAX_FSDP that fits in a slice, and data is the rest.
    devices: real ones, or abstract ones from `jax.experimental.topologies`.
    num_slices: TPU slices joined by the data-centre network, along `data`. By default, as many as
      the devices say.

  Raises UserError if the sizes do not multiply to the number of devices, or `data` is not a
  multiple of the slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if num_slices is None:
    num_slices = len({_slice_of(device) for device in devices})
  sizes = mesh_sizes(len(devices), data, fsdp, context, tensor, num_slices=num_slices)
  grid = _device_grid((sizes['data'] // num_slices, *list(sizes.values())[1:]), devices, num_slices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(
  devices: int, data: int = 1, fsdp: int = -1, context: int = 1, tensor: int = 1, *, num_slices: int
) -> dict[str, int]:
  """{axis: size} of `make_mesh` over so many devices; raises UserError as it does."""
  sizes = dict(zip(AXES, (data, fsdp, context, tensor)))
  shown = ', '.join(f'{k}={v}' for k, v in sizes.items())
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1 and free != ['data', 'fsdp'] or min(sizes.values()) < -1 or 0 in sizes.values():
    raise UserError(f'mesh {shown}: sizes are positive, and at most one is -1 (or data and fsdp)')
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if devices % fixed or (not free and fixed != devices):
    raise UserError(f'mesh {shown}: the sizes multiply to {fixed}, and there are {devices} devices')
  left = devices // fixed
  if len(free) == 2:
    sizes['fsdp'] = math.gcd(left // num_slices, MAX_FSDP)
    left //= sizes['fsdp']
  if free:
    sizes[free[0]] = left
  if sizes['data'] % num_slices:
    raise UserError(
      f'mesh {shown}: {num_slices} slices are joined along data, which must be a multiple of them'
    )
  return sizes


def _device_grid(inner: tuple[int, ...], devices, num_slices: int) -> np.ndarray:
  """The devices by mesh axis; `inner` is the shape of one slice."""
  if num_slices == 1:
    return mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
  if len({_slice_of(device) for device in devices}) == num_slices:
    slices = (num_slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(
      inner, slices, devices, allow_split_physical_axes=True
    )
  # Simulated devices do not say where they are: a slice is a run of them.
  parts = np.array(devices).reshape(num_slices, -1)
  return np.concatenate([mesh_utils.create_device_mesh(inner, list(part)) for part in parts])


def shardings(tree, mesh: Mesh, rules=RULES):
  """A tree of NamedSharding of the same structure, for parameters or a whole train state.

  Leaves are arrays or ShapeDtypeStructs; single numbers and keys are copied to every device. Raises
  ValueError listing every leaf without a rule (and the nearest one), and every leaf with an axis
  that the mesh does not divide and that the rule does not drop.
  """
  problems = []
  compiled = [(re.compile(f'(?:.*/)?(?:{pattern})'), place) for pattern, place in rules]

  def place_leaf(path, leaf):
    name = name_of(path)
    if leaf.size == 1:
      return NamedSharding(mesh, P())
    place = next((place for pattern, place in compiled if pattern.fullmatch(name)), None)
    if place is None:
      problems.append(
        f'{name}: no rule covers it{nearest(name, [pattern for pattern, _ in rules])}'
      )
      return None
    spec = [None] * (leaf.ndim - len(place.spec)) + list(place.spec)
    if len(spec) > leaf.ndim:
      problems.append(f'{name}: {place.spec} has more axes than the array {list(leaf.shape)}')
      return None
    fitted = fit(spec, leaf.shape, mesh, place.optional)
    for axes, size in zip(fitted, leaf.shape):
      if size % _ways(axes, mesh):
        problems.append(
          f'{name}: an axis of {list(leaf.shape)} has {size} entries, which {_ways(axes, mesh)} '
          f'devices of {axes!r} do not divide'
        )
    return NamedSharding(mesh, P(*fitted))

  out = jax.tree_util.tree_map_with_path(place_leaf, tree)
  if problems:
    raise UserError('\n'.join(problems))
  return out


def batch_sharding(mesh: Mesh) -> Batch:
  """A Batch of NamedSharding: rows over data and fsdp, sequence positions over context.

  Latent tokens and images stay whole within a row: they are small, and gathered by index.
  """
  sequence, row = NamedSharding(mesh, P(ROWS, 'context')), NamedSharding(mesh, P(ROWS))
  return Batch(*(sequence if name in _SEQUENCE else row for name in Batch._fields))


_SEQUENCE = ('tokens', 'labels', 'label_weight', 'segment', 'position', 'kv_limit', 'slot', 'task')


def anchor(x, kind: str):
  """`x` constrained to the layout `kind` of ANCHORS, by its STEPS; unchanged if no mesh is set.
  Mesh axes that do not divide an axis of x are dropped: one row may be sampled on eight devices.
  """
  if kind not in ANCHORS:
    raise ValueError(f'anchor: no kind {kind!r}{nearest(kind, ANCHORS)}')
  mesh = active_mesh()
  if mesh is None:
    return x
  for step in (*STEPS.get(kind, ()), kind):
    x = jax.lax.with_sharding_constraint(x, activation_spec(step, x.shape, mesh))
  return x


def fetch(array) -> np.ndarray:
  """The values of an array in host memory, in every process also where its parts lie on the devices
  of all of them; then all processes must call together."""
  if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
    return multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def on_devices(tree):
  """The tree with its host arrays on the first device; those on devices stay where they are, on
  those of several hosts too."""
  return jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jax.device_put(a), tree)


def near(tree):
  """The tree in the memory of its devices, also what lies in that of their host."""
  return jax.tree.map(lambda a: _move(a, jax.memory.Space.Device), tree)


def back(tree, like):
  """The tree in the memories in which the leaves of `like` lie."""
  return jax.tree.map(lambda a, other: _move(a, jax.typeof(other).memory_space), tree, like)


def _move(array, space):
  return array if jax.typeof(array).memory_space == space else jax.device_put(array, space)


def active_mesh():
  """The mesh of the surrounding `jax.set_mesh`; None if there is none, or inside `shard_map`."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.manual_axes else mesh


def activation_spec(kind: str, shape: Sequence[int], mesh) -> P:
  """The PartitionSpec of an activation of this kind; the sequence axis may be absent ([B, D])."""
  spec = tuple(ANCHORS[kind])
  if len(shape) < len(spec):
    spec = spec[:1] + spec[2:]
  return P(*fit(spec, shape, mesh, AXES))


def fit(spec, shape, mesh, optional) -> list:
  """The entries of `spec`, without the `optional` axes that do not divide; the last go first."""
  fitted = []
  for axes, size in zip(spec, shape):
    axes = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    while size % _ways(axes, mesh):
      droppable = [axis for axis in axes if axis in optional and mesh.shape[axis] > 1]
      if not droppable:
        break
      axes = tuple(axis for axis in axes if axis != droppable[-1])
    fitted.append(axes or None if len(axes) != 1 else axes[0])
  return fitted


def _ways(axes, mesh) -> int:
  axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[axis] for axis in axes)


def _slice_of(device) -> int:
  # Abstract devices of one slice lack the attribute, and for GPUs it does not mean a slice.
  return getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0
