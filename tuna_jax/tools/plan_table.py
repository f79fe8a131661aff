"""A `Plan` as text."""

from __future__ import annotations

from tuna_jax.tools.plan import GIB, Plan


def table(result: Plan) -> str:
  """The plan as text."""
  gib = lambda n: f'{n / GIB:9.2f} GiB'
  mesh = ' x '.join(f'{k} {v}' for k, v in result.mesh.items())
  slices = f' x {result.slices} slices' if result.slices > 1 else ''
  lines = [
    f'{result.topology}{slices}: {result.chips} chips, mesh {mesh}',
    f'batch: {result.rows} rows of {result.length:,} tokens',
    '',
    'FITS' if result.fits else f'DOES NOT FIT: {result.reason}',
  ]
  lines += [f'  try {line}' for line in result.advice]
  lines += ['', 'memory per device']
  lines += [f'  {name:<28}{gib(n)}' for name, n in result.memory.items()]
  if result.peak_bytes is not None:
    needed = result.peak_bytes + sum(n for k, n in result.memory.items() if k.startswith('encoder'))
    lines.append(f'  {"peak with the encoder" if result.fits else "needed":<28}{gib(needed)}')
  lines.append(f'  {"available":<28}{gib(result.limit_bytes)}')
  if result.peak_bytes is not None:
    spare = result.limit_bytes - needed
    lines.append(f'  {"left" if result.fits else "missing":<28}{gib(abs(spare))}')
  lines.append(f'  {"data of one host":<28}{gib(result.host_bytes)}')
  if result.host_offload_bytes:
    lines.append(f'  {"offloaded to the host":<28}{gib(result.host_offload_bytes)}')
  if result.collectives is not None:
    lines += ['', 'collectives per step, with the bytes that one device sends']
    lines += [
      f'  {c["kind"]:<20}{"+".join(c["axes"]):<20}{c["count"]:>7} times {c["bytes"] / 1e9:9.2f} GB'
      for c in result.collectives
    ]
  lines += [
    '',
    f'FLOPs per step: {result.useful_flops:.4g} useful, {result.executed_flops:.4g} executed',
  ]
  if result.tokens_per_second is not None:
    lines += ['', 'roofline']
    lines += [
      f'  {name:<28}{value * 1e3:9.1f} ms'
      for name, value in result.roofline.items()
      if name != 'useful_share'
    ]
    lines.append(f'  tokens per second, at most  {result.tokens_per_second:9,.0f}')
    lines.append(f'  MFU, at most                {100 * result.roofline["useful_share"]:9.1f} %')
    lines += [f'  - {line}' for line in result.assumptions]
  lines += [
    '',
    (
      f'lowered in {result.lower_seconds:.0f} s, compiled in {result.compile_seconds:.0f} s, '
      f'host memory {result.host_peak_bytes / GIB:.1f} GiB'
    ),
    f'compiler flags: {result.compiler_flags or "none"}',
  ]
  return '\n'.join(lines)
