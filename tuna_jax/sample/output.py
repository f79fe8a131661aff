"""What a generator returns: pictures and clips that carry the settings they were made with, in
memory and in their files."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tuna_jax import files
from tuna_jax.config import UserError, nearest
from tuna_jax.data.clips import opened
from tuna_jax.data.limits import LIMITS, MediaError, naming, open_local, read
from tuna_jax.data.pictures import open_image

KEY = 'tuna_jax'  # the text chunk or comment that holds the settings as JSON


class Picture:
  """pixels: uint8 [H, W, 3], also by `np.asarray(picture)`. info: prompt, seed and settings."""

  def __init__(self, pixels: np.ndarray, info: Mapping[str, Any]):
    self.pixels, self.info = pixels, dict(info)

  def __array__(self, dtype=None, copy=None):
    return np.array(self.pixels, dtype) if copy or dtype is not None else self.pixels

  def pil(self) -> Image.Image:
    """The picture for Pillow, RGB of as many pixels."""
    return Image.fromarray(self.pixels)

  def save(self, path: str | os.PathLike) -> None:
    """Writes a PNG that holds `info` (`read_info` reads it back). UserError for another ending."""
    _ending(path, ('.png',))
    files.write_bytes(path, self.png())

  def png(self) -> bytes:
    """The bytes of the PNG that `save` writes."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt(KEY, json.dumps(self.info, ensure_ascii=False))
    file = io.BytesIO()
    self.pil().save(file, 'PNG', pnginfo=text)
    return file.getvalue()

  _repr_png_ = png  # what a notebook shows

  def __repr__(self):
    height, width, _ = self.pixels.shape
    return f'<Picture {height}x{width}: {self.info.get("prompt", "")!r}>'


class Clip:
  """pixels: uint8 [F, H, W, 3], shown at `fps`. info: as in `Picture`."""

  def __init__(self, pixels: np.ndarray, fps: int, info: Mapping[str, Any]):
    self.pixels, self.fps, self.info = pixels, fps, dict(info)

  def __array__(self, dtype=None, copy=None):
    return np.array(self.pixels, dtype) if copy or dtype is not None else self.pixels

  def save(self, path: str | os.PathLike) -> None:
    """Writes an MP4 (H.264) or a GIF with `info` in its comment. UserError for another ending."""
    encode = self._gif if _ending(path, ('.mp4', '.gif')) == '.gif' else self._mp4
    files.write_bytes(path, encode(f'{KEY}={json.dumps(self.info)}'))

  def _gif(self, comment: str) -> bytes:
    frames, file = [Image.fromarray(frame) for frame in self.pixels], io.BytesIO()
    frames[0].save(
      file,
      'GIF',
      save_all=True,
      append_images=frames[1:],
      duration=10 * max(1, round(100 / self.fps)),  # GIF counts hundredths of a second
      loop=0,
      comment=comment.encode(),
    )
    return file.getvalue()

  def _mp4(self, comment: str) -> bytes:
    import av  # only clips need it

    _, height, width, _ = self.pixels.shape
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'clip.mp4')  # faststart opens the file a second time, by name
      with av.open(path, 'w', options={'movflags': '+faststart'}) as file:
        file.metadata['comment'] = comment
        stream = file.add_stream('libx264', rate=Fraction(self.fps), options={'crf': '16'})
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for pixels in self.pixels:
          file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format='rgb24')))
        file.mux(stream.encode())
      with open(path, 'rb') as written:
        return written.read()

  def _repr_html_(self) -> str:
    """The clip for a notebook: a GIF, which moves wherever a page is shown."""
    data = base64.b64encode(self._gif('')).decode()
    return f'<img src="data:image/gif;base64,{data}" alt="{html.escape(repr(self))}">'

  def __repr__(self):
    frames, height, width, _ = self.pixels.shape
    return f'<Clip {frames} x {height}x{width}: {self.info.get("prompt", "")!r}>'


def read_info(path: str | os.PathLike) -> dict[str, Any]:
  """The `info` of a file written by `save`. UserError if it cannot be read or has none."""
  path = os.fspath(files.path(path))
  clip = _ending(path, ('.png', '.mp4', '.gif')) == '.mp4'
  with naming(path, 'picture or clip'):
    if clip:
      remote = files.is_remote(path)
      with io.BytesIO(read(path, LIMITS)) if remote else open_local(path) as file:
        with opened(file) as container:
          text = container.metadata.get('comment', '')  # PyAV 19 keeps what is no UTF-8
          text = text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
    else:
      info = open_image(read(path, LIMITS)).info
      text = info.get(KEY) or info.get('comment', b'').decode()
    text = text.removeprefix(f'{KEY}=')
    if not text.startswith('{'):
      raise MediaError('holds no settings; only files that tuna_jax saved have them')
    return json.loads(text)


def _ending(path, allowed) -> str:
  ending = os.path.splitext(os.fspath(path))[1].lower()
  if ending not in allowed:
    raise UserError(
      f'{path}: expected a name that ends in {" or ".join(allowed)}{nearest(ending, allowed)}'
    )
  return ending
