"""Reading what people send: right files in every layout, and wrong ones refused with a reason."""

import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tuna_jax.weights import safetensors, torchfile
from tuna_jax.weights.open import open_checkpoint, verify
from tuna_jax.weights.tensors import CheckpointError, lazies

ARRAYS = {
  'a': np.arange(24, dtype=np.float32).reshape(4, 6),
  'b': np.ones((3, 5), ml_dtypes.bfloat16) * 3,
  'c': np.array(7, np.float32),
  'd': np.zeros((0, 3), np.float32),
  'e': np.arange(5, dtype=np.float16),
}


def same(tensors, arrays=ARRAYS):
  assert set(tensors) == set(arrays)
  for name, array in arrays.items():
    assert tensors[name].dtype == array.dtype
    np.testing.assert_array_equal(tensors[name][()], array, err_msg=name)


@pytest.fixture
def torch_file(tmp_path):
  path = tmp_path / 'x.pt'
  torchfile.write_file(path, lazies(ARRAYS))
  return path


@pytest.fixture
def safe_file(tmp_path):
  path = tmp_path / 'model.safetensors'
  safetensors.write_file(path, lazies(ARRAYS))
  return path


def test_a_torch_file_of_ours_reads_back(torch_file):
  same(open_checkpoint(torch_file))
  verify(torch_file)


def test_our_safetensors_are_byte_equal_to_the_librarys(safe_file, tmp_path):
  import safetensors.numpy as library

  floats = {name: value for name, value in ARRAYS.items() if name != 'b'}
  library.save_file(floats, tmp_path / 'theirs.safetensors', metadata={'format': 'pt'})
  safetensors.write_file(tmp_path / 'ours.safetensors', lazies(floats))
  assert (tmp_path / 'ours.safetensors').read_bytes() == (
    tmp_path / 'theirs.safetensors'
  ).read_bytes()


def test_shards_and_their_index_read_back(tmp_path):
  safetensors.write_folder(tmp_path, lazies(ARRAYS), shard_bytes=60)
  assert len(list(tmp_path.glob('*.safetensors'))) > 1
  same(open_checkpoint(tmp_path))


def with_map(folder, weight_map):
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))


@pytest.mark.parametrize(
  'file', ['../evil.safetensors', '/etc/evil.safetensors', 'sub/x.safetensors', 'model.pt']
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, file):
  with_map(tmp_path, {'a': file})
  with pytest.raises(CheckpointError, match='refused shard path'):
    open_checkpoint(tmp_path)


def test_an_index_and_its_shards_must_agree(safe_file):
  with_map(
    safe_file.parent,
    {
      **dict.fromkeys('abcd', 'model.safetensors'),
      'z': 'model.safetensors',
      'y': 'gone.safetensors',
    },
  )
  with pytest.raises(CheckpointError) as caught:
    open_checkpoint(safe_file.parent)
  for text in (
    'z: not in model.safetensors',
    'e: in model.safetensors, absent',
    'gone.safetensors: the index names',
  ):
    assert text in str(caught.value)


def test_every_truncation_of_a_safetensors_file_is_named(safe_file):
  data = safe_file.read_bytes()
  for size in range(0, len(data), 7):
    safe_file.write_bytes(data[:size])
    with pytest.raises(CheckpointError):
      open_checkpoint(safe_file)


def test_a_flipped_bit_in_a_safetensors_header_is_refused_or_harmless(safe_file):
  data = bytearray(safe_file.read_bytes())
  length = int.from_bytes(data[:8], 'little')
  for at in range(8 + length):
    broken = bytearray(data)
    broken[at] ^= 4
    safe_file.write_bytes(broken)
    try:
      tensors = open_checkpoint(safe_file)
    except CheckpointError:
      continue
    assert len(tensors) in (len(ARRAYS), len(ARRAYS) + 1)  # a name changed, or that of the metadata


def test_a_header_that_claims_more_than_the_file_is_refused(tmp_path):
  header = json.dumps(
    {'a': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 4 << 40]}}
  ).encode()
  path = tmp_path / 'bomb.safetensors'
  path.write_bytes(struct.pack('<Q', len(header)) + header)
  with pytest.raises(CheckpointError, match='truncated'):
    open_checkpoint(path)


class Attack:
  """What a hostile file holds: unpickling it would run a command."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    import os

    return os.system, (f'touch {self.path}',)


def zip_with(path, pickled, entries=None):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
    for name, data in (entries or {}).items():
      archive.writestr(name, data)


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('nested', [False, True])
def test_a_pickle_that_calls_os_system_is_refused_and_not_run(tmp_path, protocol, nested):
  trace = tmp_path / 'ran'
  attack = Attack(trace)
  zip_with(
    tmp_path / 'x.pt', pickle.dumps({'model': {'w': attack}} if nested else attack, protocol)
  )
  with pytest.raises(CheckpointError, match=r'refused: its pickle refers to (posix|nt|os)\.system'):
    open_checkpoint(tmp_path / 'x.pt')
  assert not trace.exists()


def test_an_attack_in_the_older_format_is_refused_too(tmp_path):
  trace = tmp_path / 'ran'
  stream = b''.join(
    pickle.dumps(x, 2)
    for x in (torchfile.LEGACY_MAGIC, 1001, {'little_endian': True}, Attack(trace), [])
  )
  (tmp_path / 'x.pt').write_bytes(stream)
  with pytest.raises(CheckpointError, match='refused: its pickle refers to'):
    open_checkpoint(tmp_path / 'x.pt')
  assert not trace.exists()


@pytest.mark.parametrize(
  'harm', ['builtins eval', 'torch load', 'torch.serialization _load', 'numpy.core _rebuild']
)
def test_no_name_outside_the_tensor_format_is_accepted(tmp_path, harm):
  module, name = harm.split()
  zip_with(tmp_path / 'x.pt', f'\x80\x02c{module}\n{name}\n.'.encode('latin-1'))
  with pytest.raises(CheckpointError, match=f'refers to {module}.{name}'):
    open_checkpoint(tmp_path / 'x.pt')


NESTED = b'K\x01' + b'\x85' * 1_000_000  # ((((1,),),),...)
DOUBLED = b'K\x01' + b'q\x00h\x00\x86' * 60  # (x, x) of (x, x) of ...: hashing it takes for ever
REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n('


@pytest.mark.parametrize(
  ('pickled', 'reason'),
  [
    (b']r\xff\xff\xff\x7f.', 'no state dict'),  # the memo at 2**31
    (b']p999999999999\n.', 'no state dict'),
    (b'\x8e' + (1 << 40).to_bytes(8, 'little') + b'x.', 'damaged'),  # bytes of 2**40
    (b'\x96' + (1 << 40).to_bytes(8, 'little') + b'x.', 'uses BYTEARRAY8'),
    (b'\x8b' + (1 << 30).to_bytes(4, 'little') + b'x.', 'damaged'),  # an integer of 2**30 bytes
    (b'L' + b'9' * 100_000 + b'L\n.', 'damaged'),
    (b'}' + NESTED + b'K\x01s.', 'a key of type tuple'),
    (b'}' + DOUBLED + b'K\x01s.', 'a key of type tuple'),
    (NESTED + b'.', 'no state dict'),
    (b'\x82\x01.', 'uses EXT1'),
    (b'(K\x01i', 'uses INST'),
    (b'ctorch\nSize\n)\x81.', 'uses NEWOBJ'),
    (b'ctorch\nload\n)R.', 'refers to torch.load'),
    (b'ctorch\nfloat32\n)R.', 'a call of torch.float32'),
    (b'ctorch\nSize\n}V__code__\nK\x01sbN.', 'no state dict'),
    (REBUILD + b'K\x01K\x01K\x01K\x01tR.', 'damaged'),
    (
      b'(' + b'K\x01' * 500_000 + b'tq\x00' + b'ctorch\nSize\nh\x00\x85R0' * 1000,
      'refused: .* calls',
    ),
    (b'(' + b'K\x01' * 500_000 + b'tq\x00' + b'ctorch\nSize\nh\x00R', '500000 arguments'),
    (b'(' + b'K\x01' * 500_000 + b'tQ.', 'unknown kind of reference'),
    (b'(((((t.', 'no state dict'),
    (b'N0.', 'damaged'),
  ],
)
def test_a_pickle_that_asks_for_what_no_tensor_needs_is_refused_at_once(tmp_path, pickled, reason):
  zip_with(tmp_path / 'x.pt', b'\x80\x04' + pickled)
  with pytest.raises(CheckpointError, match=reason):
    open_checkpoint(tmp_path / 'x.pt')


def test_the_attributes_that_a_pickle_sets_are_ignored(tmp_path):
  storage = (
    b'((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ'
  )
  tensor = b'ctorch._utils\n_rebuild_tensor_v2\n' + storage + b'K\x00K\x02\x85K\x01\x85\x89}tR'
  forged = b'}X\x05\x00\x00\x00shapeM\xff\xff\x85sb'
  zip_with(
    tmp_path / 'x.pt',
    b'\x80\x02}X\x01\x00\x00\x00w' + tensor + forged + b's.',
    {'archive/data/0': np.float32([1, 2]).tobytes()},
  )
  np.testing.assert_array_equal(open_checkpoint(tmp_path / 'x.pt')['w'][()], [1, 2])


@pytest.mark.parametrize(
  ('kind', 'dtype'),
  [('F8_E4M3', 'float8_e4m3fn'), ('F8_E5M2', 'float8_e5m2'), ('C64', 'complex64')],
)
def test_a_type_that_no_leaf_takes_does_not_hide_the_other_tensors(tmp_path, kind, dtype):
  size = 2 * np.dtype(dtype).itemsize
  header = {
    'a': {'dtype': kind, 'shape': [2], 'data_offsets': [0, size]},
    'b': {'dtype': 'F32', 'shape': [1], 'data_offsets': [size, size + 4]},
  }
  text = json.dumps(header).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', len(text)) + text + bytes(size + 4))
  assert {n: str(t.dtype) for n, t in open_checkpoint(path).items()} == {'a': dtype, 'b': 'float32'}


def test_a_type_of_no_whole_bytes_is_named(tmp_path):
  text = json.dumps({'a': {'dtype': 'F4', 'shape': [2], 'data_offsets': [0, 1]}}).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', len(text)) + text + b'x')
  with pytest.raises(CheckpointError, match='a is of type F4, which is not supported'):
    open_checkpoint(path)


@pytest.mark.parametrize('name', ['x.pt', 'x.safetensors'])
def test_a_pointer_of_git_lfs_says_what_to_run(tmp_path, name):
  pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 132735\n'
  (tmp_path / name).write_text(pointer)
  with pytest.raises(CheckpointError, match='git lfs pull'):
    open_checkpoint(tmp_path / name)


def test_a_compressed_entry_is_refused_before_it_unpacks(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.pt', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({}))
    archive.writestr('archive/data/0', bytes(10 << 20))
  with pytest.raises(CheckpointError, match='never compresses'):
    open_checkpoint(tmp_path / 'x.pt')


@pytest.mark.parametrize('name', ['../../etc/cron', '/etc/cron', 'archive/../../x'])
def test_an_entry_that_escapes_its_folder_is_refused(tmp_path, name):
  zip_with(tmp_path / 'x.pt', pickle.dumps({}), {name: b'x'})
  with pytest.raises(CheckpointError, match='refused entry name'):
    open_checkpoint(tmp_path / 'x.pt')


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, torch_file):
  data = torch_file.read_bytes()

  def number(n):  # as LONG1 of eight bytes
    return b'\x8a\x08' + n.to_bytes(8, 'little')

  assert data.count(number(24)) == 1
  with zipfile.ZipFile(torch_file) as archive:
    pickled = archive.read('archive/data.pkl').replace(number(24), number(24 << 30))
    pickled = pickled.replace(number(4) + number(6), number(4 << 30) + number(6))
    entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith('.pkl')}
  zip_with(tmp_path / 'x.pt', pickled, entries)
  with pytest.raises(CheckpointError, match='does not lie in its storage'):
    open_checkpoint(tmp_path / 'x.pt')


def test_every_truncation_of_a_torch_file_is_named(torch_file):
  data = torch_file.read_bytes()
  for size in range(0, len(data) - 1, 13):
    torch_file.write_bytes(data[:size])
    with pytest.raises(CheckpointError):
      open_checkpoint(torch_file)


def test_a_flipped_bit_in_the_data_of_a_torch_file_is_found(torch_file):
  data = bytearray(torch_file.read_bytes())
  data[data.index(ARRAYS['a'].tobytes()) + 10] ^= 1
  torch_file.write_bytes(data)
  with pytest.raises(CheckpointError, match=r'archive/data/0 is damaged'):
    verify(torch_file)


def test_a_flipped_bit_anywhere_in_a_torch_file_never_escapes_as_another_error(torch_file):
  data = torch_file.read_bytes()
  for at in range(0, len(data), 3):
    broken = bytearray(data)
    broken[at] ^= 16
    torch_file.write_bytes(broken)
    try:
      open_checkpoint(torch_file)
      verify(torch_file)
    except CheckpointError:
      pass


@pytest.mark.parametrize('text', [b'', b'hello', b'PK\x03\x04', b'\x80\x02.', bytes(1000)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, text):
  for name in ('x.pt', 'x.safetensors', 'x.txt'):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CheckpointError):
      open_checkpoint(tmp_path / name)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
  (tmp_path / 'readme.md').write_text('hi')
  with pytest.raises(CheckpointError, match=r'found readme\.md'):
    open_checkpoint(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('nest', [(), ('model',), ('state_dict',)])
def test_what_torch_saves_reads_equal(tmp_path, legacy, nest):
  import torch

  tensors = {
    'a': torch.randn(4, 6),
    'view': torch.randn(10, 3)[2:5, 1:3],
    'transposed': torch.randn(6, 4).t(),
    'parameter': torch.nn.Parameter(torch.randn(2)),
    'scalar': torch.tensor(3.0),
    'half': torch.randn(3).half(),
    'bf16': torch.randn(3, 2).bfloat16(),
  }
  payload = tensors
  for key in nest:
    payload = {key: payload, 'step': 3, 'notes': ['x', 2.5, None, True]}
  torch.save(payload, tmp_path / 'x.pth', _use_new_zipfile_serialization=not legacy)
  found = open_checkpoint(tmp_path / 'x.pth')
  verify(tmp_path / 'x.pth')
  assert list(found) == list(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(
      found[name][()].astype(np.float32), tensor.detach().float().numpy(), err_msg=name
    )
  np.testing.assert_array_equal(
    found['transposed'][1:3, 2:4], tensors['transposed'].numpy()[1:3, 2:4]
  )


@pytest.mark.parity
def test_torch_loads_what_we_write(torch_file):
  import torch

  found = torch.load(torch_file, weights_only=True)
  assert list(found) == list(ARRAYS)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name].float().numpy(), array.astype(np.float32))
