"""What a GPU has to show: the flash kernel is exact and fast, and training runs.

  python -m tuna_jax.tools.gpu_check [--parts=exact,speed,blocks,bench,train] [--rows=4] [--small]

    exact    output and gradients of each form of attention against dense float32
    speed    milliseconds of forward and backward, beside XLA in chunks and cuDNN with a bias
    blocks   the kernel's time for other sizes of its blocks
    bench    `tuna-jax bench train` of stage 2 at 2B on one device: MFU
    train    data, VAE, decoder and stages 1 and 2 of the size `fast`, from the command line

It exits with 1 if the kernel is not exact or is refused, or if a command fails. --small takes tiny
shapes, and emulates the kernel where there is no GPU, so that the script itself can be tested.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.models.attention import chunked, dense, visible
from tuna_jax.models.flash import BLOCKS_16_BIT, BLOCKS_32_BIT, Blocks, flash_attention
from tuna_jax.sizes import TUNA_2B

PARTS = ('exact', 'speed', 'blocks', 'bench', 'train')
GRADIENTS = ('output', 'dq', 'dk', 'dv')
# Largest difference over the largest entry. bfloat16 rounds the weights to 8 bits, and float32
# products run in TF32, with 11.
TOLERANCE = {'bfloat16': 0.02, 'float32': 5e-3}
BLOCKS = tuple(
  Blocks(*row) for row in
  ((64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (128, 32, 4, 3),
   (128, 64, 8, 2), (128, 64, 8, 3), (64, 128, 8, 2), (128, 128, 8, 2))
)  # fmt: skip


class Heads(NamedTuple):
  """A tower of the model, as attention sees it."""

  tower: str
  heads: int
  kv_heads: int
  size: int


class Setting(NamedTuple):
  """What is run: shapes, repeats, and the commands of `bench` and `train`."""

  towers: tuple[Heads, ...]
  exact: int
  lengths: tuple[int, ...]
  blocks: tuple[Blocks, ...]
  repeats: int


def setting(small: bool) -> Setting:
  if small:
    blocks = (Blocks(16, 16), Blocks(32, 16))
    return Setting((Heads('small', 2, 1, 24),), 48, (32,), blocks, 1)
  parts = [(part, getattr(TUNA_2B, part)) for part in ('vision', 'decoder', 'flow_head')]
  towers = tuple(Heads(p, t.num_heads, t.num_kv_heads, t.head_dim) for p, t in parts)
  return Setting(towers, 2048, (2048, 4608, 21504), BLOCKS, 10)


def forms(blocks: Blocks) -> dict[str, Callable]:
  """{name: attention(q, k, v, kv_limit, q_segment, kv_segment)} that are compared."""
  gpu = jax.default_backend() == 'gpu'

  def bias(q, k, v, *mask):
    mask = visible(*mask)[:, None]
    fn = functools.partial(jax.nn.dot_product_attention, implementation='cudnn' if gpu else 'xla')
    return fn(q, k, v, mask=mask)

  flash = functools.partial(flash_attention, blocks=blocks, interpret=not gpu)
  return {'flash': flash, 'chunked': chunked, 'cudnn' if gpu else 'xla': bias}


def row(length: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
  """(kv_limit, segment), int32[1, L]: documents of which the second half is one visual span, and
  one position of padding if there are several."""
  limit, segment = np.arange(length, dtype=np.int32)[None].copy(), np.zeros((1, length), np.int32)
  ends = np.linspace(0, length - (documents > 1), documents + 1).astype(int)
  for number, (first, stop) in enumerate(zip(ends, ends[1:]), 1):
    segment[0, first:stop], limit[0, (first + stop) // 2 : stop] = number, stop - 1
  return limit, segment


def tensors(tower: Heads, length: int, dtype: str):
  """q, k, v and the cotangent of the output, of standard normal entries."""
  keys = jax.random.split(jax.random.key(0), 4)
  heads = (tower.heads, tower.kv_heads, tower.kv_heads, tower.heads)
  return [jax.random.normal(key, (1, length, h, tower.size), dtype) for key, h in zip(keys, heads)]


def gradients(fn: Callable, limit, segment) -> Callable:
  """(q, k, v, cotangent) -> output, dq, dk, dv; compiled."""

  @jax.jit
  def run(q, k, v, cotangent):
    out, back = jax.vjp(lambda *x: fn(*x, limit, segment, segment), q, k, v)
    return out, *back(cotangent)

  return run


def refusal(error: Exception) -> str:
  return f'refused: {" ".join(str(error).split())[:60]}'


# What XLA, Triton and cuDNN raise for a program that they do not take, or has no room.
REFUSED = (RuntimeError, ValueError, NotImplementedError)


def exact(what: Setting) -> bool:
  """Prints the errors of every form; whether those of the kernel are within TOLERANCE."""
  fine = True
  print(f'\nerror / largest entry, {what.exact:,} positions, four documents')
  print(f'{"":38}' + ''.join(f'{name:>10}' for name in GRADIENTS))
  limit, segment = row(what.exact, 4)
  for tower in what.towers:
    for dtype, tolerance in TOLERANCE.items():
      given = tensors(tower, what.exact, dtype)
      with jax.default_matmul_precision('highest'):
        whole = (x.astype(jnp.float32) for x in given)
        want = jax.device_get(gradients(dense, limit, segment)(*whole))
      for name, fn in forms(what.blocks[0] if dtype == 'bfloat16' else BLOCKS_32_BIT).items():
        head = f'{tower.tower:10} {tower.size:4} {dtype:9} {name:12}'
        try:
          got = [np.asarray(x, np.float32) for x in gradients(fn, limit, segment)(*given)]
        except REFUSED as error:
          fine &= name != 'flash'
          print(head, refusal(error))
          continue
        errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want)]
        good = max(errors) <= tolerance
        fine &= good or name != 'flash'
        verdict = '' if good else f'  above {tolerance}'
        print(f'{head:38}' + ''.join(f'{e:10.1e}' for e in errors) + verdict, flush=True)
  return fine


def milliseconds(fn: Callable, arguments, repeats: int) -> float:
  """Of one call, compiled before; raises what the compiler raises."""
  jax.block_until_ready([fn(*arguments) for _ in range(2)])
  began = time.perf_counter()
  for _ in range(repeats):
    out = fn(*arguments)
  jax.block_until_ready(out)
  return (time.perf_counter() - began) / repeats * 1e3


def speed(what: Setting) -> bool:
  """Prints times in bfloat16; whether the kernel ran everywhere. FLOPs are those of visible pairs:
  4 D forward and 10 D backward per pair and head."""
  fine = True
  print('\nforward and backward, one row of one document, bfloat16')
  print(f'{"":30}{"ms":>10}{"TFLOP/s":>10}{"chunked / it":>14}')
  for tower in what.towers:
    for length in what.lengths:
      limit, segment = row(length, 1)
      given, times = tensors(tower, length, 'bfloat16'), {}
      work = 14.0 * tower.size * tower.heads * float((limit + 1).sum())
      named = forms(what.blocks[0])
      for name in ('chunked', *(n for n in named if n != 'chunked')):
        head = f'{tower.tower:10}{length:8,}  {name:10}'
        try:
          ms = milliseconds(gradients(named[name], limit, segment), given, what.repeats)
        except REFUSED as error:
          fine &= name != 'flash'
          print(head, refusal(error))
          continue
        times[name] = ms
        ratio = f'{times["chunked"] / ms:13.2f}x' if 'chunked' in times else ''
        print(f'{head}{ms:10.3f}{work / ms / 1e9:10.2f}{ratio}', flush=True)
  return fine


def blocks(what: Setting) -> bool:
  """Prints the kernel's times for other blocks; those that the card refuses are named."""
  length = what.lengths[0]
  limit, segment = row(length, 1)
  print(f'\nblocks of the kernel, {length:,} positions; in use: {BLOCKS_16_BIT}')
  for tower in what.towers:
    given = tensors(tower, length, 'bfloat16')
    for choice in what.blocks:
      fn = gradients(forms(choice)['flash'], limit, segment)
      try:
        said = f'{milliseconds(fn, given, what.repeats):10.3f} ms'
      except REFUSED as error:
        said = refusal(error)
      print(f'{tower.tower:10} {choice!s:40}{said}', flush=True)
  return True


def commands(part: str, small: bool, rows: int, folder: str) -> list[list[str]]:
  """The command lines of a part, after `tuna-jax`."""
  if part == 'bench' and small:
    tiny = ['--config.rows=8', '--config.length=32', '--steps=1']
    return [['bench', 'train', '--config=configs/decoder.py:fast', *tiny]]
  if part == 'bench':
    one = [f'--config.rows={rows}', '--steps=10']
    return [['bench', 'train', '--config=configs/stage2.py:2b', *one]]
  data = f'--config.data.mixture={folder}/data/mixture.json'
  out = [['data', 'shapes', f'--out={folder}/data']]
  for component in ('vae', 'decoder'):
    chosen = [f'--component={component}', f'--config=configs/{component}.py:fast']
    out.append(['pretrain', *chosen, f'--workdir={folder}/{component}', data])
  own = [f'--config.vae={folder}/vae', f'--config.tokenizer={folder}/decoder/tokenizer', data]
  for stage, before in (('stage1', 'decoder'), ('stage2', 'stage1')):
    chosen = [f'--config=configs/{stage}.py:fast', f'--config.init_from={folder}/{before}']
    out.append(['train', *chosen, f'--workdir={folder}/{stage}', *own])
  return out[:1] if small else out


def run(lines: list[list[str]]) -> bool:
  """Runs command lines one after another until one fails; whether all ended well."""
  for line in lines:
    print(f'\ntuna-jax {" ".join(line)}', flush=True)
    began = time.perf_counter()
    code = subprocess.run([sys.executable, '-m', 'tuna_jax.cli.main', *line]).returncode
    print(f'exit {code} after {time.perf_counter() - began:.1f} s', flush=True)
    if code:
      return False
  return True


def main(argv: list[str]) -> int:
  """The exit code: 0 if every part is as it should be."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--parts', default=','.join(PARTS), help='The parts to run, with commas.')
  parser.add_argument('--rows', type=int, default=4, help='The rows of a step of `bench`.')
  parser.add_argument('--small', action='store_true', help='Whether to take tiny shapes.')
  flags = parser.parse_args(argv)
  parts = flags.parts.split(',')
  if unknown := set(parts) - set(PARTS):
    parser.error(f'--parts: {", ".join(sorted(unknown))}: expected some of {", ".join(PARTS)}')
  # The commands need the memory of the card too: this process takes no more than it uses.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  device = jax.devices()[0]
  if device.platform != 'gpu' and not flags.small:
    parser.error(f'no GPU: the device is {device.device_kind}; --small tests the script on a CPU')
  print(f'{device.device_kind}, jax {jax.__version__}, {datetime.date.today()}')
  print(f'python -m tuna_jax.tools.gpu_check {" ".join(argv)}', flush=True)
  what, good = setting(flags.small), {}
  for part in parts:
    if part in ('bench', 'train'):
      with tempfile.TemporaryDirectory() as folder:
        good[part] = run(commands(part, flags.small, flags.rows, folder))
    else:
      good[part] = {'exact': exact, 'speed': speed, 'blocks': blocks}[part](what)
  print(
    '\n' + ', '.join(f'{part}: {"good" if fine else "NOT GOOD"}' for part, fine in good.items())
  )
  return 0 if all(good.values()) else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
