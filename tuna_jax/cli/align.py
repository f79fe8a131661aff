"""Measures how alike two models see pictures, layer by layer: CKNNA, with a heat map and a curve.

  tuna-jax align --a=RUN --b=RUN:visual --out=DIR [--n=300] [--topk=10] [--biased] [--t=0.5]

Each side is a run or a weights directory, RUN:PART for one of its parts (vision, projector, visual,
decoder, flow_head), or features of your own in FILE.npy, float [n, d] or [layers, n, d]. The
pictures are the first held-out ones of the rendered world. DIR/align.json holds the scores and
DIR/index.html is the page.
"""

from absl import flags

from tuna_jax import files
from tuna_jax.cli import app
from tuna_jax.config import UserError

_A = flags.DEFINE_string('a', None, 'One side: RUN, RUN:PART or FILE.npy.')
_B = flags.DEFINE_string('b', None, 'The other side, over whose layers curves run.')
_OUT = flags.DEFINE_string('out', None, 'The folder that align.json and index.html are written to.')
_N = flags.DEFINE_integer('n', 300, 'How many pictures are compared.', lower_bound=20)
_TOPK = flags.DEFINE_integer(
  'topk', 10, 'How many neighbours of each picture count.', lower_bound=2
)
_BIASED = flags.DEFINE_bool('biased', False, 'Whether to take the biased form of HSIC.')
_QUANTILE = flags.DEFINE_float(
  'quantile', 0.95, 'Where absolute values are clamped; 0 clamps nothing.',
  lower_bound=0.0, upper_bound=0.999,
)  # fmt: skip
_T = flags.DEFINE_float(
  't', 1.0, 'How clean pictures are: 1 as they are read, below as they are drawn.',
  lower_bound=0.0, upper_bound=1.0,
)  # fmt: skip


def main(argv):
  del argv
  if not (_A.value and _B.value and _OUT.value):
    raise UserError('align: --a, --b and --out=DIR are needed')
  if _TOPK.value >= 0.9 * _N.value:
    raise UserError(f'--topk={_TOPK.value}: expected less than nine tenths of --n={_N.value}')
  if files.path(_OUT.value).is_file():
    raise UserError(f'--out={_OUT.value}: is a file; expected a folder')
  from tuna_jax.lab import alignment, features
  from tuna_jax.toy.understanding import held_out

  pictures = [record['image'] for record in held_out('caption', _N.value)]
  sides = [features.read(what, pictures, _T.value) for what in (_A.value, _B.value)]
  found = alignment.compare(*sides, alignment.How(_TOPK.value, not _BIASED.value, _QUANTILE.value))
  for name, row in zip(found['a'], found['score']):
    print(f'{name:16}', *(f'{score:6.3f}' for score in row))
  page = alignment.write(_OUT.value, found, f'A: {_A.value}, B: {_B.value}')
  print(f'page: {page}')


if __name__ == '__main__':
  app.run(main)
