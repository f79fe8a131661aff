"""Adapters in the layout of Hugging Face's PEFT, read and written.

    FOLDER/adapter_config.json           rank, alpha, and the modules that have an adapter
    FOLDER/adapter_model.safetensors     base_model.model.NAME.lora_A.weight [rank, in]
                                         base_model.model.NAME.lora_B.weight [out, rank]

NAME is that of transformers' Qwen2ForCausalLM (`model.layers.0.self_attn.q_proj`) where adapters
stand in the decoder alone, so that PEFT loads them on a Qwen2.5; else that of the official model.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np

from tuna_jax import files, tree
from tuna_jax.config import TunaConfig
from tuna_jax.mappings import from_dict
from tuna_jax.models.shapes import tuna_shapes
from tuna_jax.ranges import Finite
from tuna_jax.weights import designs, lora, tables
from tuna_jax.weights.convert import export, plan
from tuna_jax.weights.open import find, open_checkpoint
from tuna_jax.weights.tables import Row, Table
from tuna_jax.weights.tensors import CheckpointError, Lazy, lazies

CONFIG = 'adapter_config.json'
STEM = 'adapter_model'
PREFIX = 'base_model.model.'
# Fields of the configuration whose other values change what the numbers mean.
_NEEDED = {
  'peft_type': ('LORA',),
  'bias': (None, 'none'),
  'use_dora': (None, False),
  'fan_in_fan_out': (None, False),
  'modules_to_save': (None, []),
  'layers_to_transform': (None, []),
}


def is_adapter(path) -> bool:
  """Whether the folder holds an adapter of PEFT."""
  return (files.path(path) / CONFIG).exists()


def read(path, config: TunaConfig) -> dict[str, Lazy]:
  """{our leaf: Lazy} of the adapters in a folder, for `lora.merged` beside the leaves of a model.

  Raises CheckpointError listing what does not fit the model, or cannot be read as plain LoRA.
  """
  if not is_adapter(path):
    raise CheckpointError(f'{path}: no {CONFIG} there; expected a folder with an adapter of PEFT')
  about = files.read_object(files.path(path) / CONFIG)
  for field, known in _NEEDED.items():
    if about.get(field) not in known:
      raise CheckpointError(
        f'{path}/{CONFIG}: {field}={about.get(field)!r}; only plain LoRA is read'
      )
  reader = {
    name.replace('.default.weight', '.weight'): value
    for name, value in open_checkpoint(find(path)).items()
  }
  scaling = _scaling(f'{path}/{CONFIG}', about)
  alone = any(name.startswith(f'{PREFIX}model.layers.') for name in reader)
  table, wanted, scales = _table(config, alone), {}, {}
  shapes = tree.flatten(tuna_shapes(config))
  for row in table.rows:
    if not row.ours.endswith('lora_a'):
      continue
    first = row.torch.format(0)
    a = reader.get(PREFIX + first)
    kernel = row.ours.replace('lora_a', 'kernel')
    if a is None or kernel not in shapes:
      continue
    *stack, inputs, outputs = shapes[kernel].shape
    rank = (*a.shape, 0)[0]
    if not rank:
      raise CheckpointError(f'{path}: {PREFIX}{first} is of shape {a.shape}, expected [rank, in]')
    wanted[row.ours] = jax.ShapeDtypeStruct((*stack, inputs, rank), np.float32)
    wanted[row.ours.replace('lora_a', 'lora_b')] = jax.ShapeDtypeStruct(
      (*stack, rank, outputs), np.float32
    )
    scale = np.full(stack, scaling.of(first.removesuffix('.lora_A.weight'), rank), np.float32)
    scales[row.ours.replace('lora_a', 'lora_scale')] = scale
  return {**plan(table, reader, tree.unflatten(wanted)).leaves, **lazies(scales)}


def write(adapters: Mapping[str, Lazy], config: TunaConfig, base: str) -> tuple[dict, dict]:
  """({their name: Lazy}, adapter_config.json) of adapters of ours. base: where the model is."""
  matrices = {leaf: value for leaf, value in adapters.items() if not leaf.endswith('lora_scale')}
  alone = all(leaf.startswith('decoder/layers/') for leaf in matrices)
  table = _table(config, alone)
  tensors = {PREFIX + name: value for name, value in export(table, matrices).items()}
  found = {}  # {module as a regular expression: (rank, alpha)}
  for row in table.rows:
    if row.ours in adapters and row.ours.endswith('lora_a'):
      rank = adapters[row.ours].shape[-1]
      scale = adapters[row.ours.replace('lora_a', 'lora_scale')][()].flat[0]
      module = re.escape(row.torch.removesuffix('.lora_A.weight')).replace(r'\{\}', r'\d+')
      found[module] = (rank, float(scale) * rank)
  (rank, alpha), _ = collections.Counter(found.values()).most_common(1)[0]
  last = sorted({module.rpartition(r'\.')[2] for module in found})
  return tensors, {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM' if alone else None,
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': alpha,
    'target_modules': last if alone else '|'.join(found),
    'rank_pattern': {module: r for module, (r, _) in found.items() if r != rank},
    'alpha_pattern': {module: a for module, (_, a) in found.items() if a != alpha},
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }


@dataclasses.dataclass(frozen=True)
class _Scaling:
  """The fields of adapter_config.json that say by how much the adapters count."""

  lora_alpha: Finite = 8.0
  alpha_pattern: dict[str, Finite] = dataclasses.field(default_factory=dict)
  use_rslora: bool = False

  def of(self, module: str, rank: int) -> float:
    """What PEFT multiplies the product of the two matrices of `module` by."""
    patterns = self.alpha_pattern.items()
    near = (a for pattern, a in patterns if re.fullmatch(rf'(.*\.)?({pattern})', module))
    return next(near, self.lora_alpha) / (rank**0.5 if self.use_rslora else rank)


def _scaling(where: str, about: Mapping) -> _Scaling:
  names = [field.name for field in dataclasses.fields(_Scaling)]
  given = {name: about[name] for name in names if about.get(name) is not None}
  found = from_dict(_Scaling, given, where)
  for pattern in found.alpha_pattern:
    try:
      re.compile(pattern)
    except re.error as error:
      raise CheckpointError(f'{where}: alpha_pattern: {pattern!r}: {error}') from None
  return found


def _table(config: TunaConfig, alone: bool) -> Table:
  """The names of adapters: those of the kernels of Qwen2 alone, or of the official model."""
  source = tables.qwen2(config.decoder) if alone else designs.official(config)
  rows = [
    Row(row.ours.replace('/kernel', f'/{ours}'), row.torch.replace('.weight', f'.{theirs}.weight'))
    for row in source.rows
    if row.ours.endswith('/kernel')
    for ours, theirs in zip(lora.PARTS, ('lora_A', 'lora_B'))
  ]
  return dataclasses.replace(
    source, source='PEFT adapter', rows=tuple(rows), prefixes=(PREFIX,), aliases=(), drops=()
  )
