"""Pictures and clips that tests are made of."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from tuna_jax.data.media import read_video

STEP = 20  # grey of frame i is STEP * i; lossy codecs stay within half of it


def encoded(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def halves(width=64, height=32, left=(255, 0, 0), right=(0, 0, 255)):
  pixels = np.empty((height, width, 3), np.uint8)
  pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
  return Image.fromarray(pixels)


def film(path, greys=range(10), codec='mpeg4', size=(32, 48), rate=8, at=None, **options):
  """A video whose frame i is grey STEP * greys[i], shown from millisecond at[i]."""
  options = {key.replace('_', '-'): value for key, value in options.items()}
  sar, pixels = options.pop('sar', None), options.pop('pixels', None)
  with av.open(str(path), 'w', options={'movflags': '+faststart'}) as container:
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p'
    if sar:
      stream.codec_context.sample_aspect_ratio = sar
    if at:
      stream.codec_context.time_base = Fraction(1, 1000)
    for i, grey in enumerate(greys):
      picture = np.full((*size, 3), STEP * grey, np.uint8) if pixels is None else pixels
      frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
      if at:
        frame.pts, frame.time_base = at[i], Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return str(path)


def order(source, frames, size='32x48', **more):
  """Which frames a clip gave."""
  return (
    np.rint(read_video(source, size, frames, **more).mean((1, 2, 3)) / STEP).astype(int).tolist()
  )


def colours(count, step=STEP, size=(16, 16)):
  return [Image.new('RGB', size, (step * i,) * 3) for i in range(count)]


def animation(path, images, **options):
  images[0].save(path, save_all=True, append_images=images[1:], **options)
  return str(path)
