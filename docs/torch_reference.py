"""Writes tensors that PyTorch computes, for `tuna-jax convert --verify` (docs/weights.md 2).

  python docs/torch_reference.py --decoder=DIR [--vision=DIR] [--vae=DIR] --output=SET

needs torch, transformers and diffusers (`pip install -e '.[parity]'`) and nothing of tuna_jax. The
folders are those that `assemble` took, or what `tuna-jax convert export --part=decoder`, `vision`
and `vae-diffusers` wrote; a vision tower must be of the latter, since Tuna's sees latents. A text
goes through the decoder, and a picture through the VAE and the vision tower. Then

  tuna-jax convert assemble ... --verify=SET      or      tuna-jax convert import ... --verify=SET

compares each stage. The connector, the time embedding and the flow head exist in the official
repository alone: tuna_jax/parity/certificate.py lists the tensors to add for them.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

TOKENS = 24
SIDE = 64  # of the picture in pixels


@torch.no_grad()
def text(folder: str, rng) -> dict[str, torch.Tensor]:
  """A row of random tokens through Qwen2.5: every hidden state, and the logits."""
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, torch_dtype=torch.float32
  ).eval()
  ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (1, TOKENS)))
  out = model(ids, output_hidden_states=True)
  found = {f'out.text.hidden{i}': state for i, state in enumerate(out.hidden_states)}
  return {
    'in.text.text_tokens': ids.int(),
    'in.text.mp': torch.full((1, 1, 2), -1, dtype=torch.int32),
    'out.text.logits': out.logits,
    **found,
  }


@torch.no_grad()
def picture(vae_folder: str, vision_folder: str, rng) -> dict[str, torch.Tensor]:
  """A smooth random picture through the VAE, and its latents through the vision tower."""
  import diffusers
  import transformers

  vae = diffusers.AutoencoderKLWan.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
  coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32))
  pixels = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode='bicubic').clamp(-1, 1)
  raw = vae.encode(pixels[:, :, None]).latent_dist.mean
  column = lambda values: torch.tensor(values).view(1, -1, 1, 1, 1)
  latent = (raw - column(vae.config.latents_mean)) / column(vae.config.latents_std)
  rows, columns = latent.shape[-2:]
  span = 1 + rows * columns  # the time token, and one token per cell
  found = {
    'in.seen.text_tokens': torch.zeros((1, span + 2), dtype=torch.int32),
    'in.seen.mp': torch.tensor([[[1, span]]], dtype=torch.int32),
    'in.seen.images': pixels[:, :, None],
    'out.seen.latent': latent,
  }
  if vision_folder:
    tower = transformers.SiglipVisionModel.from_pretrained(vision_folder).float().eval()
    out = tower(latent[:, :, 0], output_hidden_states=True, interpolate_pos_encoding=True)
    found['out.seen.vision'] = out.hidden_states[-1]
  return found


def write(folder: str, tensors: dict[str, torch.Tensor]) -> None:
  """The tensors as one case of kind 'certificate'."""
  root = pathlib.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  tensors = {name: value.contiguous() for name, value in tensors.items()}
  save_file(tensors, root / 'reference.safetensors')
  about = {
    name: {'shape': list(value.shape), 'dtype': str(value.dtype).removeprefix('torch.')}
    for name, value in tensors.items()
  }
  case = {
    'name': 'reference',
    'kind': 'certificate',
    'file': 'reference.safetensors',
    'config': {'subs': sorted({name.split('.')[1] for name in tensors})},
    'tensors': about,
  }
  (root / 'index.json').write_text(json.dumps({'cases': [case]}, indent=1))


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for name in ('decoder', 'vision', 'vae'):
    parser.add_argument(f'--{name}', default='', help=f'the folder of the {name}')
  parser.add_argument('--output', required=True, help='the folder to write')
  parser.add_argument('--seed', type=int, default=0)
  given = parser.parse_args(argv)
  if not (given.decoder or given.vae) or (given.vision and not given.vae):
    parser.error('--decoder or --vae is needed, and --vae where --vision is given')
  for name in ('decoder', 'vision', 'vae'):
    folder = getattr(given, name)
    if folder and not pathlib.Path(folder, 'config.json').exists():
      parser.error(f'--{name}={folder}: no config.json there; expected a Hugging Face folder')
  if given.vae and not list(pathlib.Path(given.vae).glob('diffusion_pytorch_model*')):
    parser.error(f'--vae={given.vae}: not of diffusers; `convert export --part=vae-diffusers` is')
  rng, tensors = np.random.default_rng(given.seed), {}
  if given.decoder:
    tensors |= text(given.decoder, rng)
  if given.vae:
    tensors |= picture(given.vae, given.vision, rng)
  write(given.output, tensors)
  print(f'wrote {given.output}: {len(tensors)} tensors')


if __name__ == '__main__':
  main()
