"""The certificate of parity: official tensors pass on a checkpoint of official weights, and a fault
names its stage.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tuna_jax.config import WAN_STD
from tuna_jax.models.shapes import tuna_shapes, vae_shapes
from tuna_jax.models.vae import WanVae
from tuna_jax.parity import sizes
from tuna_jax.parity.case import GoldenError
from tuna_jax.parity.certificate import certify, stage, write
from tuna_jax.tools.xla_cpu import quick_jit
from tuna_jax.weights import parts, safetensors, store
from tuna_jax.weights.convert import plan
from tuna_jax.weights.tables import tuna_official, wan_vae
from tuna_jax.weights.tensors import CheckpointError, lazy

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
ENTRIES = {case['name']: case for case in json.loads((GOLDEN / 'index.json').read_text())['cases']}


def golden_tensors(name):
  return {
    key: np.asarray(value)
    for key, value in safetensors.read_file(GOLDEN / ENTRIES[name]['file']).items()
  }


@pytest.fixture(scope='module')
def stored():
  """A checkpoint of the golden set's official weights."""
  weights = {
    name[2:]: value
    for name, value in safetensors.read_file(GOLDEN / 'i_full_weights.safetensors').items()
  }
  config = dataclasses.replace(
    sizes.model_config(ENTRIES['i_full_weights']['config']['model'], weights), dtype='bfloat16'
  )
  return store.Stored(
    config,
    plan(tuna_official(config), weights, tuna_shapes(config)).leaves,
    config.vae,
    plan(wan_vae(config.vae), weights, vae_shapes(config.vae)).leaves,
    {},
  )


@pytest.fixture(scope='module')
def tensors():
  """What the official code computed: a text, a picture drawn at some t, a source picture without
  posterior noise.
  """
  forward, edit = golden_tensors('i_full_forward'), golden_tensors('j_sample_edit')
  found = {
    'in.text.text_tokens': forward['in.mmu_text.text_tokens'],
    'in.text.mp': forward['in.mmu_text.mp'],
    'out.text.hidden0': forward['out.mmu_text.input_embeds'],
    'out.text.hidden2': forward['out.mmu_text.llm_hidden'],
    'out.text.logits': forward['out.mmu_text.logits'],
  }
  x_t, t, positions = (forward[f'in.inf_t2i.{name}'] for name in ('image_latents', 't', 'mp'))
  spans = [
    forward['out.inf_t2i.input_embeds'][row, offset + 1 : offset + size]
    for row, ((offset, size),) in enumerate(positions)
  ]
  found |= {
    'in.drawn.text_tokens': forward['in.inf_t2i.text_tokens'],
    'in.drawn.mp': positions,
    'in.drawn.latents': x_t,
    'in.drawn.noise': x_t,
    'in.drawn.t': np.stack([t, t]),  # any mixture of x_t with itself is x_t
    'out.drawn.connector': np.stack(spans),
    'out.drawn.velocity0': forward['out.inf_t2i.v_img'],
    'out.drawn.velocity1': forward['out.inf_t2i.v_img'],
  }
  return found | {
    'in.seen.text_tokens': edit['out.euler4.text_tokens'][:1],
    'in.seen.mp': edit['out.euler4.mp'][:1, :1],
    'in.seen.images': edit['in.euler4.px'][0][:, :, None],
  }


@pytest.fixture
def golden(tmp_path, tensors):
  """A function that writes the set, with some tensors changed, and returns its folder."""

  def make(changed=()):
    chosen = {**tensors, **dict(changed)}
    safetensors.write_file(
      tmp_path / 'x.safetensors', {name: lazy(np.array(v, order='C')) for name, v in chosen.items()}
    )
    index = {
      'cases': [
        {
          'name': 'x',
          'kind': 'certificate',
          'file': 'x.safetensors',
          'config': {'subs': sorted({name.split('.')[1] for name in chosen})},
          'tensors': {
            name: {'shape': list(v.shape), 'dtype': str(v.dtype), 'sens_1ulp': sensitivity(name)}
            for name, v in chosen.items()
          },
        }
      ]
    }
    (tmp_path / 'index.json').write_text(json.dumps(index))
    return tmp_path

  return make


def sensitivity(name):
  """Of the official outputs, as the golden set measured it."""
  official = {
    'text': {'hidden0': 'input_embeds', 'hidden2': 'llm_hidden', 'logits': 'logits'},
    'drawn': {'connector': 'input_embeds', 'velocity0': 'v_img', 'velocity1': 'v_img'},
  }
  sub = {'text': 'mmu_text', 'drawn': 'inf_t2i'}
  group, own, output = name.split('.')
  if group == 'in' or own not in official:
    return None
  return ENTRIES['i_full_forward']['tensors'][f'out.{sub[own]}.{official[own][output]}'][
    'sens_1ulp'
  ]


def faults(rows):
  return [row.output for row in rows if not row.passed]


def test_official_tensors_pass_stage_by_stage(stored, golden, tensors, tmp_path):
  encode = quick_jit(
    lambda p, v: WanVae(stored.vae_config).apply({'params': p}, v, method='encode').mean
  )
  mean = encode(
    store.load(stored.vae, vae_shapes(stored.vae_config)),
    np.moveaxis(tensors['in.seen.images'], 1, -1),
  )
  latent = np.moveaxis(
    np.asarray(mean) / np.float32(WAN_STD) - 1, -1, 1
  )  # B13: the std list stands for the mean too
  rows = certify(stored, golden({'out.seen.latent': latent}))
  assert not faults(rows), [row.note for row in rows]
  assert {stage(row) for row in rows} == {
    'VAE encode',
    'connector',
    'decoder',
    'logits',
    'velocity',
  }
  write(tmp_path, rows, {'checkpoint': 'x'})
  written = json.loads((tmp_path / 'certificate.json').read_text())
  assert written['passed'] and written['checkpoint'] == 'x' and len(written['rows']) == len(rows)
  text = (tmp_path / 'certificate.md').read_text()
  assert text.startswith('# Parity certificate: PASS') and '| vision features | not given |' in text
  assert '| x out.text.KL |' in text and '| velocity | pass | 2 |' in text


def test_stages_that_disagree_are_named(stored, golden, tensors, tmp_path):
  rng = np.random.default_rng(0)
  wrong = {
    name: tensors[name] * np.float32(1.001)
    for name in ('out.drawn.velocity1', 'out.text.hidden2', 'out.drawn.connector')
  }
  logits = tensors['out.text.logits']
  wrong['out.text.logits'] = logits + rng.standard_normal(logits.shape, np.float32)
  grid = tensors['in.seen.images'].shape[-2] // 16, tensors['in.seen.images'].shape[-1] // 16
  wrong['out.seen.latent'] = np.ones((1, 48, 1, *grid), np.float32)
  wrong['out.seen.vision'] = np.ones((1, grid[0] * grid[1], 32), np.float32)
  rows = certify(stored, golden(wrong))
  assert sorted(faults(rows)) == sorted([*wrong, 'out.text.KL', 'out.text.top5'])
  assert {stage(row) for row in rows if not row.passed} == {
    'VAE encode',
    'vision features',
    'connector',
    'decoder',
    'logits',
    'velocity',
  }
  assert not any('ours has shape' in row.note for row in rows)
  write(tmp_path, rows, {})
  assert (tmp_path / 'certificate.md').read_text().startswith('# Parity certificate: FAIL')


def test_pictures_need_a_vae_and_latents_do_not(stored, golden):
  rows = certify(dataclasses.replace(stored, vae=None), golden())
  assert [row.note for row in rows if not row.passed] == [
    'in.seen.images: the checkpoint has no VAE; give in.seen.latents'
  ]


def test_a_set_without_certificate_cases_is_refused(stored):
  with pytest.raises(GoldenError, match='no case is of kind certificate'):
    certify(stored, GOLDEN)


def test_a_vae_alone_has_nothing_to_certify(stored, golden):
  with pytest.raises(CheckpointError, match='nothing but a VAE'):
    certify(dataclasses.replace(stored, params=None), golden())


@pytest.mark.parity
def test_the_script_for_pytorch_writes_a_set_that_our_exports_pass(stored, tmp_path):
  for part, name in (('decoder', 'decoder'), ('vision', 'vision'), ('vae', 'vae-diffusers')):
    tensors, about, stem = parts.export_part(name, stored)
    (tmp_path / part).mkdir()
    safetensors.write_folder(tmp_path / part, tensors, stem=stem)
    (tmp_path / part / 'config.json').write_text(json.dumps(about))
  script = GOLDEN.parents[1] / 'docs' / 'torch_reference.py'
  given = [f'--{part}={tmp_path}/{part}' for part in ('decoder', 'vision', 'vae')]
  said = subprocess.run(
    [sys.executable, script, *given, f'--output={tmp_path}/set'], capture_output=True, text=True
  )
  assert said.returncode == 0, said.stderr
  rows = certify(stored, tmp_path / 'set')
  found = {stage(row) for row in rows}
  assert {'VAE encode', 'vision features', 'decoder', 'logits'} <= found and not faults(rows)
