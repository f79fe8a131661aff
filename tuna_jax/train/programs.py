"""Programs of one host's own devices, kept from one start of a run to the next.

jax keeps compiled programs in the folder JAX_COMPILATION_CACHE_DIR, but writes only those of
process 0, and the key holds the numbers of devices. The step is one program of all processes; the
encoder is a program of each, so all hosts but one would compile it at every start. They keep it
here, each under its own devices.
"""

from __future__ import annotations

import hashlib
import pickle

import jax
from jax.experimental import serialize_executable

from tuna_jax import files

_CHECKSUM = 16  # bytes


def compile_local(lowered: jax.stages.Lowered, devices: list[jax.Device]):
  """The compiled program, read from the compile cache where it is there."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder or jax.process_index() == 0:
    return lowered.compile()
  return kept(lowered, devices, folder)


def kept(lowered: jax.stages.Lowered, devices: list[jax.Device], folder: str):
  """The compiled program from `folder`, or compiled and written there, whole or not at all.

  The file is a pickle, as those of jax are programs: the folder is one that nobody else writes to.
  """
  client = devices[0].client
  about = [jax.__version__, client.platform_version, *(f'{d.id} {d.device_kind}' for d in devices)]
  key = hashlib.blake2b('\n'.join([*about, lowered.as_text()]).encode(), digest_size=16).hexdigest()
  path = files.path(folder) / f'local-{key}'
  if path.exists():
    data = path.read_bytes()
    if data[:_CHECKSUM] == _checksum(data[_CHECKSUM:]):
      return serialize_executable.deserialize_and_load(
        *pickle.loads(data[_CHECKSUM:]), execution_devices=devices
      )
  made = lowered.compile()
  data = pickle.dumps(serialize_executable.serialize(made))
  if not files.is_remote(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  files.write_bytes(path, _checksum(data) + data)
  return made


def _checksum(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=_CHECKSUM).digest()
