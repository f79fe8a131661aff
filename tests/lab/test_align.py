import numpy as np
import pytest

from tests.sample.test_designs import generator
from tuna_jax.config import UserError
from tuna_jax.evals.cknna import cknna, normalise
from tuna_jax.lab import alignment, features
from tuna_jax.lab.alignment import How

PICTURES = list(np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8))


SLOW = [pytest.param(design, marks=pytest.mark.slow) for design in ('cascade', 'decoupled')]


@pytest.mark.parametrize('design', ['late_fusion', *SLOW])
def test_every_layer_of_a_model_gives_a_vector_for_each_picture(design):
  made = generator(design)
  c = made.config
  found = features.of_model(made, PICTURES, rows=2)
  wanted = [f'vision {n + 1}' for n in range(c.vision.num_layers)]
  wanted += ['projector'] * (design == 'late_fusion') + ['visual']
  for part in ('decoder', 'flow_head'):
    wanted += [f'{part} {n + 1}' for n in range(getattr(c, part).num_layers)]
  assert [name for name in found if design != 'decoupled' or name != 'projector'] == wanted
  assert found['visual'].shape == (3, c.decoder.dim)
  assert all(np.isfinite(x).all() and len(x) == 3 for x in found.values())
  # The tokens of a picture reach the decoder unchanged, so a picture alone looks the same.
  alone = features.of_model(made, PICTURES[2:], rows=2)
  np.testing.assert_allclose(alone['decoder 1'], found['decoder 1'][2:], atol=1e-4)
  noisy = features.of_model(made, PICTURES, t=0.3, rows=2)
  assert np.abs(noisy['visual'] - found['visual']).max() > 1e-3


def test_features_of_a_file_have_a_row_for_each_picture(tmp_path):
  np.save(tmp_path / 'a.npy', np.ones((2, 3, 4)))
  found = features.read(str(tmp_path / 'a.npy'), PICTURES)
  assert {name: x.shape for name, x in found.items()} == {'layer 1': (3, 4), 'layer 2': (3, 4)}
  with pytest.raises(UserError, match=r'shape \[2, 3, 4\]: expected \[2, d\]'):
    features.read(str(tmp_path / 'a.npy'), PICTURES[:2])


def test_what_is_alike_scores_high_and_what_is_not_scores_near_zero(tmp_path):
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 60, 8))
  turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
  how = How(topk=8, quantile=0)
  found = alignment.compare({'visual': a}, {'layer 1': a @ turn, 'layer 2': b}, how)
  assert found['score'][0][0] == pytest.approx(1.0, abs=0.01)
  assert abs(found['score'][0][1]) < 4 * found['error'][0][1]
  assert found['score'][0][1] == cknna(normalise(a), normalise(b), 8)
  clamped = alignment.compare({'visual': a}, {'layer 2': b}, How(topk=8))
  assert clamped['score'][0][0] != found['score'][0][1]
  page = open(alignment.write(str(tmp_path), found, 'A and B')).read()
  assert 'visual tokens of A' in page and '1.00</td>' in page


@pytest.mark.parametrize(
  ('stored', 'said'),
  [
    (np.full((3, 2), np.nan), r'nan at \[0, 0\]: expected finite numbers'),
    (np.array(['a', 'b', 'c']), 'expected an array of numbers'),
    (np.array([None, 1, 2]), 'not an array of numbers'),
    (b'words', 'not an array of numbers'),
    (None, 'no such file'),
  ],
)
def test_features_that_are_no_numbers_are_named(tmp_path, stored, said):
  path = tmp_path / 'own.npy'
  if isinstance(stored, bytes):
    path.write_bytes(stored)
  elif stored is not None:
    np.save(path, stored, allow_pickle=True)
  with pytest.raises(UserError, match=f'own.npy: .*{said}'):
    features.read(str(path), [None] * 3)
