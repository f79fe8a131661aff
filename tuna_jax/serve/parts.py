"""The parts that the page of `tuna-jax demo` is put together from."""

from __future__ import annotations

import html
from collections.abc import Sequence

import gradio as gr

from tuna_jax.sample.output import Picture
from tuna_jax.serve.examples import Example
from tuna_jax.serve.studio import Said, Studio

CSS = """
.said {overflow-wrap: anywhere}
.said progress {width: 100%; height: 8px}
.said.failed {color: #b3261e; font-weight: 600}
.dark .said.failed {color: #ffb4ab}
.result img, .result video {image-rendering: pixelated}
.result .image-frame img {width: 100%; height: 100%; object-fit: contain}
.result .message img {min-width: 160px}
.block:has(.said:empty) {display: none}
.result .preview {background: var(--block-background-fill) !important; backdrop-filter: none}
.result .gallery-container:has(.preview) .grid-wrap {visibility: hidden}
footer {display: none !important}
"""


def said(value: Said) -> str:
  """Where work stands, as HTML."""
  bar = '' if value.share is None else f'<progress max="1" value="{value.share:.3f}"></progress>'
  kind, role = ('said failed', 'alert') if value.failed else ('said', 'status')
  return f'<div class="{kind}" role="{role}">{html.escape(value.text)}{bar}</div>'


class Parts:
  """Parts of the page of one studio. found: examples by task."""

  def __init__(self, studio: Studio, found: dict[str, list[Example]]):
    self.studio, self.found = studio, found

  def text(self, label: str, name: str) -> gr.Textbox:
    most = self.studio.limits.prompt
    return gr.Textbox(
      label=label, lines=2, max_lines=8, max_length=most, elem_id=name, autofocus=False
    )

  def status(self, name: str) -> gr.HTML:
    """Where the work of a tab stands."""
    return gr.HTML(said(Said('')), elem_id=f'{name}-said', padding=False)

  def picture(self, label: str, name: str) -> gr.Image:
    """A picture of a person, which is read where limits hold: not by gradio."""
    picture = gr.Image(
      label=label, type='filepath', sources=['upload', 'clipboard'], height=260, elem_id=name,
      elem_classes='result', buttons=[],
    )  # fmt: skip
    picture.preprocess = path_of
    return picture

  def results(self, name: str):
    """The pictures of consecutive seeds, the chosen one large, and the number of that."""
    gallery = gr.Gallery(
      label='Results, by seed', preview=True, columns=4, height=400, object_fit='contain',
      format='png', interactive=False, elem_id=name, elem_classes='result',
      buttons=['download', 'fullscreen'],
    )  # fmt: skip
    at = gr.State(0)

    def chosen(event: gr.SelectData):
      return event.index

    gallery.select(chosen, None, at, api_name=False, queue=False)
    return gallery, at

  def buttons(self, name: str) -> tuple[gr.Button, gr.Button]:
    return (
      gr.Button('Edit this', size='md', min_width=140, elem_id=f'{name}-edit'),
      gr.Button('Ask about this', size='md', min_width=140, elem_id=f'{name}-ask'),
    )

  def settings(self, task: str, size: str | None, several=True, label='Settings') -> list:
    """The components of a `How`, in its order, with what the model is usually drawn with."""
    usual, limits = self.studio.generator.how(task), self.studio.limits
    with gr.Accordion(label, open=False):
      seed = gr.Number(42, label='Seed', precision=0, minimum=0)
      most = limits.pictures if several else 1
      count = gr.Slider(
        1, max(most, 2), 1, step=1, label='Pictures, of consecutive seeds', visible=most > 1
      )
      side = gr.Textbox(
        size or '', label='Size', placeholder="that of the picture" if size is None else '',
        info=f"HEIGHTxWIDTH or N, multiples of 16, at most {limits.side}",
      )  # fmt: skip
      points = gr.Slider(2, limits.points, usual.points, step=1, label='Points of the time grid')
      guidance = gr.Slider(1, 20, usual.guidance.scale, step=0.1, label='Guidance')
      shift = gr.Slider(0.1, 10, usual.shift, step=0.1, label='Shift towards noise')
      negative = gr.Textbox(label='Away from', max_length=limits.prompt)
    return [seed, count, side, points, guidance, shift, negative]

  def words(self, inside: bool = False) -> list:
    """The settings of an answer: tokens, temperature, seed."""

    def parts():
      most = self.studio.limits.answer
      return [
        gr.Slider(1, most, min(256, most), step=1, label='Tokens at most'),
        gr.Slider(0, 2, 0, step=0.1, label='Temperature', info='0 takes the likeliest token'),
        gr.Number(42, label='Seed', precision=0, minimum=0),
      ]

    if inside:
      return parts()
    with gr.Accordion('Settings', open=False):
      return parts()

  def examples(self, task: str, inputs: Sequence) -> None:
    """Prompts of the run's own data."""
    found = self.found.get(task, [])
    rows = []
    for n, example in enumerate(found):
      row = [example.text]
      if len(inputs) > 1:
        path = self.studio.folder / f'{task}-{n}.png'
        Picture(example.picture, {}).save(path)
        row.append(str(path))
      rows.append(row)
    if rows:
      gr.Examples(rows, inputs, label='From the data of the run', examples_per_page=8)


def path_of(payload) -> str | None:
  """The file of an upload, unread."""
  return None if payload is None else payload.path
