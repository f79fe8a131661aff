"""`open_checkpoint`: any of the supported files or folders as {name: Lazy}."""

from __future__ import annotations

from etils import epath

from tuna_jax import files
from tuna_jax.weights import digest, safetensors, torchfile
from tuna_jax.weights.tensors import CheckpointError, Lazy

# transformers, diffusers, both once, PEFT
STEMS = ('model', 'diffusion_pytorch_model', 'pytorch_model', 'adapter_model')
ENDS = ('.safetensors.index.json', '.safetensors', '.bin.index.json', '.bin')
TORCH = ('.pt', '.pth', '.bin')


def find(path) -> epath.Path:
  """The one file to read: `path` itself, or the index or weights file of the folder."""
  path = files.path(path)
  if not path.exists():
    raise CheckpointError(
      f'{path}: no such file or folder (`hf download REPO` gets a repository of Hugging Face)'
    )
  if not path.is_dir():
    return path
  found = {p.name: p for p in path.iterdir()}
  weights = sorted(name for name in found if name.endswith(('.safetensors', *TORCH)))
  known = [stem + end for stem in STEMS for end in ENDS if stem + end in found]
  if known or len(weights) == 1:
    return found[(known or weights)[0]]
  raise CheckpointError(
    f'{path}: expected model.safetensors, its index, or one weights file; found '
    + (', '.join(weights or sorted(found)[:20]) or 'an empty folder')
  )


def open_checkpoint(path, weights: str = 'model') -> dict[str, Lazy]:
  """{name: Lazy} of a .safetensors, .pt, .pth or .bin file, of an index of shards, or of a folder
  that holds one. weights: 'model' or 'ema', of a torch file that holds both.

  Nothing but headers is read, and nothing in the file is executed. Raises CheckpointError for
  damaged files.
  """
  file = find(path)
  if file.name.endswith('.bin.index.json'):
    return safetensors.read_index(file, torchfile.read_file, '.bin')
  if file.name.endswith(('.index.json', '.safetensors')):
    read = safetensors.read_index if file.suffix == '.json' else safetensors.read_file
    return digest.attached(read(file), _digests(file.parent), file.parent)
  if file.suffix in TORCH:
    return torchfile.read_file(file, weights)
  raise CheckpointError(
    f'{file}: unknown kind of file: expected .safetensors, {", ".join(TORCH)} or a folder'
  )


def ignored(path, weights: str = 'model') -> dict[str, str]:
  """{entry: what it is} of what `open_checkpoint` leaves in a torch file."""
  file = find(path)
  return torchfile.ignored(file, weights) if file.suffix in TORCH else {}


def verify(path) -> bool:
  """Compares a checkpoint with the checksums it records, and returns whether it does: torch's zip
  files do, and what we wrote. Raises CheckpointError where they differ."""
  file = find(path)
  if file.name.endswith('.bin.index.json'):
    shards = sorted(set(files.read_json(file)['weight_map'].values()))
    return all([torchfile.verify(file.parent / shard) for shard in shards])
  if file.suffix in TORCH:
    return torchfile.verify(file)
  leaves = open_checkpoint(file)
  digest.check_stored(leaves)
  return any(leaf.digest for leaf in leaves.values())


def _digests(folder) -> dict[str, str]:
  """{tensor: digest} of a folder that we exported, which its config.json holds."""
  config = folder / 'config.json'
  found = files.read_json(config) if config.exists() else {}
  return found.get(digest.FIELD, {}) if isinstance(found, dict) else {}
