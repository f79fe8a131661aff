"""The one shape contract."""

import numpy as np
import pytest

from tuna_jax import batch as batch_lib

SIZES = (2, 6, 4, 1, 3)


def test_an_empty_batch_passes_its_own_check_and_says_its_sizes():
  batch = batch_lib.empty(*SIZES)
  assert batch_lib.check(batch) is batch and batch.sizes == SIZES


def test_padding_sees_itself_only_and_feeds_nothing():
  batch = batch_lib.empty(*SIZES)
  assert (batch.kv_limit == np.arange(6)).all() and (batch.slot == -1).all()
  for field in ('segment', 'label_weight', 'target', 'image'):
    assert not getattr(batch, field).any()


def test_text_alone_has_no_latent_axes():
  assert batch_lib.check(batch_lib.empty(2, 6, 0, 0, 3)).sizes == (2, 6, 0, 0, 3)


@pytest.mark.parametrize(
  'field, value, message',
  [
    (
      'labels',
      np.zeros((2, 5), np.int32),
      r'Batch.labels: expected int32\[2, 6\], found int32\[2, 5\]',
    ),
    (
      'label_weight',
      np.zeros((2, 6)),
      r'Batch.label_weight: expected float32\[2, 6\], found float64',
    ),
    ('slot', np.full((2, 6), 5, np.int32), r'Batch.slot: values 5..5, expected \[-1, 5\)'),
    ('kv_limit', np.full((2, 6), 6, np.int32), r'Batch.kv_limit: values 6..6, expected \[0, 6\)'),
    ('image', np.full((2, 4), 2, np.int32), r'Batch.image: values 2..2, expected \[0, 2\)'),
    ('place', np.full((2, 4), -1, np.int32), r'Batch.place: values -1..-1, expected \[0, 6\)'),
  ],
)
def test_a_field_of_wrong_shape_type_or_range_is_named(field, value, message):
  with pytest.raises(ValueError, match=message):
    batch_lib.check(batch_lib.empty(*SIZES)._replace(**{field: value}))
