"""The paths that a user can name, and writing that a kill cannot leave half done.

A path is local or on object storage (`gs://bucket/folder/file`). Locally, content is written under
a temporary name in the same folder, flushed to the disk and renamed. An object of object storage
appears when its upload is complete, so it is written under its own name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import threading
import uuid

import fsspec
from etils import epath

from tuna_jax.config import UserError
from tuna_jax.mappings import kind

_log = logging.getLogger(__name__)
WEB = 'nothing is downloaded from the web: download it and give its path'
CACHE = 'TUNA_JAX_CACHE'  # names the folder of what is kept for the user
PART = 4 << 20  # bytes at which a part of a growing file ends on object storage

# What lies in a bucket is asked for each time: other processes and TensorStore write there too.
fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
# gcsfs says so before every request where it may not ask for the kind of a bucket.
logging.getLogger('gcsfs').addFilter(lambda record: 'bucket type' not in record.getMessage())

# What a file that is no picture, clip or tokenizer often begins with, and what it is then.
_IMPOSTORS = (
  (b'version https://git-lfs', 'a pointer of Git LFS, so run `git lfs pull` for the file itself'),
  (b'<!doctype html', 'a web page, so the download failed'),
  (b'<html', 'a web page, so the download failed'),
  (b'<?xml', 'XML; save a drawing as PNG'),
  (b'<svg', 'an SVG drawing; save it as PNG'),
  (b'\0\0\0\x0cjxl ', 'JPEG XL; save it as PNG'),
  (b'\xff\x0a', 'JPEG XL; save it as PNG'),
  (b'%pdf', 'a PDF; save its pages as PNG'),
  (b'%!ps', 'EPS, which only another program can read; save it as PNG'),
  (b'\xc5\xd0\xd3\xc6', 'EPS, which only another program can read; save it as PNG'),
  (b'\xd7\xcd\xc6\x9a', 'WMF, which only another program can read; save it as PNG'),
)


def path(text: str | os.PathLike) -> epath.Path:
  """The path that `text` names: `~` is the home folder, every other character stands for itself.
  Raises UserError for an address that is neither local nor on object storage.
  """
  try:
    return epath.Path(text).expanduser()
  except TypeError:
    raise UserError(f'expected a path, found {kind(text)}') from None
  except KeyError:  # epath knows no such scheme
    web = str(text).startswith(('http://', 'https://'))
    raise UserError(
      f'{text}: {WEB if web else "expected a local path or gs://BUCKET/PATH"}'
    ) from None


def cache() -> epath.Path:
  """The folder of what is kept for the user: $TUNA_JAX_CACHE, or ~/.cache/tuna_jax."""
  return path(os.environ.get(CACHE) or '~/.cache/tuna_jax')


def is_remote(where: str | os.PathLike) -> bool:
  """Whether the path is on object storage."""
  return '://' in str(where)


def absolute(text: str | os.PathLike) -> epath.Path:
  """The same path, independent of the working directory. One on object storage stays as it is."""
  where = path(text)
  return where if is_remote(where) else epath.Path(os.path.abspath(where))


def read_object(where: str | os.PathLike) -> dict:
  """As `read_json`, of a file that must hold an object."""
  found = read_json(where)
  if not isinstance(found, dict):
    raise UserError(f'{where}: expected a JSON object, found {kind(found)}')
  return found


def read_json(where: str | os.PathLike):
  """The value in a JSON file, with or without a byte order mark.

  Raises UserError naming the file and the line where it is not JSON, FileNotFoundError without it.
  """
  where = path(where)
  if where.is_dir():
    raise UserError(f'{where}: is a folder; expected a JSON file')
  try:
    return json.loads(where.read_bytes().decode('utf-8-sig'))
  except json.JSONDecodeError as error:
    what = impostor(error.doc.encode()) or (error.msg if error.doc.strip() else 'it is empty')
    raise UserError(f'{where}:{error.lineno}: not JSON ({what})') from None
  except RecursionError:
    raise UserError(f'{where}: brackets are nested too deeply') from None
  except UnicodeDecodeError as error:
    raise UserError(f'{where}: not JSON (byte {error.start} is not UTF-8)') from None
  except ValueError as error:  # a number of thousands of digits
    raise UserError(f'{where}: not JSON ({str(error).partition(";")[0]})') from None


def impostor(data: bytes) -> str:
  """What a file is that is not what its name says, or ''."""
  head = data[:64].lstrip(b'\xef\xbb\xbf \r\n\t').lower()
  return next((f'it is {what}' for magic, what in _IMPOSTORS if head.startswith(magic)), '')


def write_json(where: str | os.PathLike, value) -> None:
  """Writes readable JSON with a final newline, whole or not at all."""
  write_text(where, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_text(where: str | os.PathLike, text: str) -> None:
  """Writes UTF-8, whole or not at all."""
  write_bytes(where, text.encode())


def write_bytes(where: str | os.PathLike, data: bytes) -> None:
  """Writes the file, whole or not at all."""
  with writing(where) as file:
    file.write(data)


@contextlib.contextmanager
def writing(where: str | os.PathLike):
  """Yields a binary file that becomes `where` if the block ends well.

  Whatever happens meanwhile, `where` holds all of its old content or all of the new. A device or
  pipe, such as /dev/stdout, is written to directly.
  """
  where = path(where)
  if is_remote(where):
    file = storage(where).open(str(where), 'wb', autocommit=False)
    try:
      yield file
      file.close()
    except BaseException:
      file.discard()
      file.closed = True  # closing would upload what there is
      raise
    file.commit()
    return
  if where.exists() and not os.path.isfile(where):
    with where.open('wb') as file:
      yield file
    return
  target = os.path.realpath(where)  # a symbolic link stays, the file behind it is replaced
  part = unused(target)
  if not os.path.isdir(os.path.dirname(target)):
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.path.dirname(target))
  try:
    with open(part, 'xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(part, target)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(part)
    raise


class Appending:
  """A file that only grows, over several starts of a process.

  Locally a write is in the file at once. Object storage cannot append: there the content is in
  parts, NAME.0001, NAME.0002 and so on. `flush` uploads the newest part whole; a part ends at PART
  bytes and with its process, so what was uploaded is never replaced by less. Any thread may call.
  """

  def __init__(self, where: str | os.PathLike):
    self._where = path(where)
    self._file = None if is_remote(where) else open(self._where, 'ab', buffering=0)
    self._part, self._uploaded, self._number = bytearray(), 0, 0
    self._writing, self._uploading = threading.Lock(), threading.Lock()
    if self._file is None:
      self._number = max(_parts(self._where), default=0) + 1

  def write(self, data: bytes) -> None:
    """Appends `data`."""
    with self._writing:
      if self._file is not None:
        self._file.write(data)
      else:
        self._part += data

  def flush(self) -> None:
    """Uploads what was written. If that fails it is logged, and the next call tries again."""
    try:
      self._upload()
    except Exception as error:  # of any client of object storage
      _log.warning('%s: not written yet, it is tried again: %r', self._where, error)

  def close(self) -> None:
    """Uploads what was written and ends the file. Raises what goes wrong."""
    self._upload()
    if self._file is not None:
      self._file.close()

  def _upload(self):
    with self._uploading:
      while self._uploaded < len(self._part):
        with self._writing:
          data = bytes(self._part)
        write_bytes(f'{self._where}.{self._number:04}', data)
        self._uploaded = len(data)
        if len(data) >= PART:
          with self._writing:
            del self._part[: len(data)]
          self._uploaded, self._number = 0, self._number + 1


def read_appended(where: str | os.PathLike) -> bytes:
  """All that `Appending` wrote in the order of writing; b'' if that is nothing."""
  where = path(where)
  parts = [file for _, file in sorted(_parts(where).items())]
  return b''.join(file.read_bytes() for file in [*parts, where] if file.exists())


def _parts(where: epath.Path) -> dict[int, epath.Path]:
  """{number: part} of a growing file, also of one that was copied from object storage."""
  if not where.parent.exists():
    return {}
  pattern = re.escape(where.name) + r'\.(\d{4,})'
  found = ((re.fullmatch(pattern, file.name), file) for file in where.parent.iterdir())
  return {int(match[1]): file for match, file in found if match}


@contextlib.contextmanager
def new_folder(where: str | os.PathLike):
  """Yields an empty folder that becomes `where` if the block ends well; otherwise it vanishes.

  Folders of object storage cannot be renamed, so there `where` itself is yielded: write last the
  file without which the rest means nothing (config.json). Raises UserError if `where` exists.
  """
  where = path(where)
  if where.exists():
    raise UserError(f'{where}: exists already; choose another --output or remove it')
  working = where if is_remote(where) else epath.Path(unused(where))
  working.mkdir(parents=True)
  try:
    yield working
    if working != where:
      working.rename(where)
  except BaseException:
    working.rmtree(missing_ok=True)
    raise


@contextlib.contextmanager
def replaced_folder(where: str | os.PathLike, last: epath.Path):
  """Yields an empty folder that replaces `where` if the block ends well.

  last: the file without which `where` means nothing and which is written afterwards; the old one
  goes when the new folder is whole, and before the old folder.
  """
  where = path(where)
  if is_remote(where):  # nothing can be renamed there
    last.unlink(missing_ok=True)
    where.rmtree(missing_ok=True)
  working = where if is_remote(where) else epath.Path(unused(where))
  working.mkdir(parents=True)
  try:
    yield working
  except BaseException:
    working.rmtree(missing_ok=True)
    raise
  if working != where:
    last.unlink(missing_ok=True)
    where.rmtree(missing_ok=True)
    working.rename(where)


def storage(where) -> fsspec.AbstractFileSystem:
  """The client of object storage that `epath` uses too."""
  protocol = str(where).partition('://')[0]
  options = {'finalize_on_close': True} if protocol in ('gs', 'gcs') else {}
  return fsspec.filesystem({'gs': 'gcs'}.get(protocol, protocol), **options)


def unused(where: str | os.PathLike) -> str:
  """A hidden name beside `where` that no other process uses, whatever its number and machine."""
  folder, name = os.path.split(where)
  return os.path.join(folder, f'.{name}.{uuid.uuid4().hex[:12]}.part')
