"""The checkpoints of a run, read without orbax and compared with what was saved.

    RUN/checkpoints/STEP/params, ema, optimizer    arrays, as orbax writes them
    RUN/checkpoints/STEP/data/metadata             the data position, as JSON
    RUN/checkpoints/STEP/digests/metadata          {item: {leaf: [shape, type, digest]}}, the digest
                                                   of the data position, and of all of this

Damage is a `Damaged` of one line that names the step, the item and the file or leaf. A fault of the
network or of permissions is not damage and is raised as it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

import numpy as np
import tensorstore
from etils import epath

from tuna_jax import files
from tuna_jax.config import UserError
from tuna_jax.weights import digest
from tuna_jax.weights.tensors import CheckpointError, Damaged, Lazy

ARRAYS = ('params', 'ema', 'optimizer')
CACHE_BYTES = 1 << 30  # of decoded chunks of orbax's arrays: a layer is a slice of a chunk
# What TensorStore says of files that are missing or hold other bytes than were written.
_DAMAGE = ('NOT_FOUND', 'DATA_LOSS', 'FAILED_PRECONDITION', 'INVALID_ARGUMENT', 'OUT_OF_RANGE')

_log = logging.getLogger(__name__)


def committed(run) -> list[int]:
  """The steps of a run's complete checkpoints, in order.

  Locally orbax renames a checkpoint when it is complete. On object storage, where it cannot, it
  adds a file.
  """
  folder = files.path(run) / 'checkpoints'
  found = [p for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
  if files.is_remote(folder):
    found = [p for p in found if (p / 'commit_success.txt').exists()]
  return sorted(int(p.name) for p in found)


def at(run, step: int) -> epath.Path:
  """The folder of a checkpoint."""
  return files.absolute(run) / 'checkpoints' / str(step)


def newest_good(run, attempt: Callable, step: int | None = None):
  """`attempt(step)` of the newest complete checkpoint for which it does not raise Damaged.

  Says in the log what was damaged and which one is used instead. Raises CheckpointError if there is
  none, or not `step`, and Damaged if all are damaged, or the one that was asked for.
  """
  steps, faults = committed(run), []
  if not steps or (step is not None and step not in steps):
    asked = '' if step is None else f' of step {step}'
    raise CheckpointError(f'{run}: no checkpoint{asked}; it has {steps}')
  if step is not None:
    return attempt(step)
  for number in reversed(steps):
    try:
      found = attempt(number)
    except Damaged as error:
      faults.append(str(error))
      continue
    for fault in faults:
      _log.warning('%s; the older step %d is used instead', fault, number)
    return found
  raise Damaged(f'{run}: no checkpoint can be used: {"; ".join(faults)}')


def record(run, step: int) -> dict:
  """What a checkpoint is known to hold. Raises Damaged where that itself cannot be read."""
  file = at(run, step) / 'digests' / 'metadata'
  found = _json(file)
  if found is None:
    raise Damaged(
      f'{file.parent} is missing; older versions wrote none, and with --config.verify=false a run '
      'continues without'
    )
  if not isinstance(found, dict) or found.pop('digest', None) != digest.of_json(found):
    raise Damaged(f'{file} is damaged: it differs from what was saved')
  return found


def make_record(items: Mapping[str, Mapping], data) -> dict:
  """The record of a checkpoint to be: items are {item: {leaf: array}}, data the data position."""
  made = {
    item: {
      name: [list(np.shape(leaves[name])), str(leaves[name].dtype), found]
      for name, found in digest.of_arrays(leaves).items()
    }
    for item, leaves in items.items()
  }
  made['data'] = digest.of_json(data)
  return {**made, 'digest': digest.of_json(made)}


def read_item(run, step: int, item: str, known: dict | None) -> dict[str, Lazy]:
  """{leaf: Lazy} of one of ARRAYS, with its digests if its record is `known`."""
  folder = at(run, step) / item
  if not (folder / '_METADATA').exists():
    raise Damaged(f'{folder} is damaged: _METADATA is missing')
  found = read_arrays(folder)
  if known is None:
    return found
  if wrong := sorted(set(known[item]) ^ set(found)):
    raise Damaged(f'{folder} is damaged: {wrong[0]} is not what was saved')
  for name, (shape, dtype, saved) in known[item].items():
    lazy = found[name]
    if list(lazy.shape) != shape or str(lazy.dtype) != dtype:
      raise Damaged(
        f'{folder} is damaged: {name} is {lazy.dtype}{list(lazy.shape)}, saved as {dtype}{shape}'
      )
    found[name] = Lazy(lazy.shape, lazy.dtype, lazy.read, saved, str(folder))
  return found


def read_data(run, step: int, known: dict | None):
  """The data position."""
  file = at(run, step) / 'data' / 'metadata'
  found = _json(file)
  if found is None:
    raise Damaged(f'{file} is missing')
  if known is not None and digest.of_json(found) != known['data']:
    raise Damaged(f'{file} is damaged: it differs from what was saved')
  return found


def read_weights(run, step: int, *, ema: bool, verify: bool) -> dict[str, Lazy]:
  """The parameters of a checkpoint, with their averages in their place where it has any."""
  known = record(run, step) if verify else None
  averages = read_item(run, step, 'ema', known) if ema else {}
  return read_item(run, step, 'params', known) | averages


def check(run, step: int) -> None:
  """Reads all of a checkpoint on the host. Raises Damaged at the first thing that differs."""
  known = record(run, step)
  read_data(run, step, known)
  for item in ARRAYS:
    digest.check_stored(read_item(run, step, item, known))


def read_arrays(folder) -> dict[str, Lazy]:
  """{leaf name: Lazy} of a folder of arrays that orbax wrote."""
  folder = files.absolute(folder)
  metadata = _json(folder / '_METADATA')
  try:
    driver = 'zarr3' if metadata.get('use_zarr3') else 'zarr'
    entries = [
      [str(key['key']) for key in entry['key_metadata']]
      for entry in metadata['tree_metadata'].values()
    ]
  except (KeyError, TypeError, AttributeError):
    raise Damaged(f'{folder}/_METADATA is damaged: it does not list arrays') from None
  if files.is_remote(folder):
    bucket, _, inside = str(folder).removeprefix('gs://').partition('/')
    base = {'driver': 'gcs', 'bucket': bucket, 'path': f'{inside}/'}
  else:
    base = {'driver': 'file', 'path': f'{folder}/'}
  context = tensorstore.Context({'cache_pool': {'total_bytes_limit': CACHE_BYTES}})
  pending = {}
  for keys in entries:
    kvstore = {'driver': 'ocdbt', 'base': base, 'path': '.'.join(keys) + '/'}
    spec = {'driver': driver, 'kvstore': kvstore, 'recheck_cached_data': 'open'}
    pending['/'.join(keys)] = tensorstore.open(spec, context=context, open=True, read=True)
  arrays = {name: _result(folder, name, array) for name, array in pending.items()}
  return {
    name: Lazy(
      tuple(array.shape),
      np.dtype(array.dtype.numpy_dtype),
      lambda index, name=name, array=array: np.asarray(_result(folder, name, array[index].read())),
      folder=str(folder),
    )
    for name, array in arrays.items()
  }


def _result(folder, name: str, pending):
  """What TensorStore found. Raises Damaged naming the file, if it says that a file is damaged."""
  try:
    return pending.result()
  except (ValueError, RuntimeError) as error:
    text = str(error)
    if not text.startswith(_DAMAGE):
      raise
    inside = re.search(
      rf'{re.escape(str(folder).removeprefix("gs://").partition("/")[2])}/([\w./]+)', text
    )
    file = f'{folder}/{inside[1]}' if inside else f'{folder} ({name})'
    raise Damaged(
      f'{file} is damaged: {text.partition(":")[0].replace("_", " ").lower()}'
    ) from None


def _json(file):
  """The JSON of a checkpoint's file, or None without it. Raises Damaged if it is no JSON."""
  try:
    return files.read_json(file)
  except FileNotFoundError:
    return None
  except UserError as error:
    raise Damaged(f'{error}; the file is damaged') from None
