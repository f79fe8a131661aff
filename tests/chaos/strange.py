"""What strangers write: JSON and bytes near good ones, as strategies of hypothesis."""

import json

from hypothesis import strategies as st

WORDS = (
  '', '~', '..', '../a.png', 'a\0', 'gs://b/a', 'http://a/b', '\ud800', 'x' * 999, 'nan', '<image>',
  '<|im_end|>', 'user', 'picture', 'a.png', 'float32', '[0]',
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 1e308, float('nan'), float('inf'), -0.5)
PLAIN = st.one_of(
  st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.sampled_from(WORDS),
  st.text(max_size=12),
)  # fmt: skip
VALUES = st.recursive(
  PLAIN,
  lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)
RAW = st.sampled_from((
  b'', b'null', b'[]', b'{}', b'[' * 50_000, b'{"a":' * 20_000, b'1' * 5000, b'\xff\xfe', b'nan',
  b'\xef\xbb\xbf{}', b'{"a": 1, "a": 2}', b'"\\ud800"', b'1e999', b'\0' * 64, b'<html>',
  b'version https://git-lfs.github.com/spec/v1\n',
))  # fmt: skip


@st.composite
def changed(draw, value):
  """`value` of JSON with one of its parts replaced, left out or called otherwise."""
  if isinstance(value, (dict, list)) and value and draw(st.integers(0, 5)):
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, copy = draw(st.sampled_from(keys)), value.copy()
    how = draw(st.integers(0, 9))
    if how == 0:
      del copy[key]
    elif how == 1 and isinstance(value, dict):
      copy[draw(st.text(max_size=6))] = copy.pop(key)
    else:
      copy[key] = draw(changed(value[key]))
    return copy
  return draw(VALUES)


def documents(good: bytes):
  """JSON files near a good one, and what is none."""
  near = changed(json.loads(good)).map(lambda v: json.dumps(v).encode())
  return st.one_of(near, near, near, RAW, blobs(good))


@st.composite
def blobs(draw, good: bytes):
  """The bytes of a good file, some of them set, cut off, put in or taken out."""
  data = bytearray(good)
  for _ in range(draw(st.integers(1, 4))):
    near = min(len(data), draw(st.sampled_from((16, 128, 1024, len(data)))))
    at, how = draw(st.integers(0, max(0, near - 1))), draw(st.integers(0, 9))
    if how < 5:
      data[at : at + 1] = bytes([draw(st.integers(0, 255))])
    elif how == 5:
      del data[at:]
    elif how == 6:
      data[at:at] = draw(st.binary(max_size=8))
    elif how == 7:
      del data[at : at + draw(st.integers(1, 20))]
    else:
      data[at : at + 4] = draw(st.sampled_from((b'\xff' * 4, b'\x7f\xff\xff\xff', b'\0' * 4)))
  return bytes(data)
