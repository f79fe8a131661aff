"""The page of `tuna-jax demo`: Draw, Edit, Film, Ask and a conversation, laid out with gradio.

Every handler is a generator that yields updates of its outputs. What a person has made stays in the
page and in the state of the session, so that nobody sees another's.
"""

from __future__ import annotations

import pathlib

import fastapi
import gradio as gr

from tuna_jax.batch import check_frames
from tuna_jax.config import UserError
from tuna_jax.sample.prompt import strides
from tuna_jax.serve import parts
from tuna_jax.serve.examples import Example
from tuna_jax.serve.limits import RequestLimits
from tuna_jax.serve.studio import KEPT, How, Said, Studio

FONT = ['system-ui', 'sans-serif']
MONO = ['ui-monospace', 'monospace']
NOTHING = gr.skip()


class Page:
  """Builds the page of one studio. found: examples by task."""

  def __init__(self, studio: Studio, name: str, found: dict[str, list[Example]]):
    self._studio, self._name, self._parts = studio, name, parts.Parts(studio, found)
    self._config, self._media = studio.generator.config, studio.generator.media
    try:
      check_frames(self._config, self._media.frames)
      self._films = self._media.frames > 1
    except UserError:
      self._films = False

  def blocks(self) -> gr.Blocks:
    """The page."""
    with gr.Blocks(
      title=f'{self._name} - tuna_jax', analytics_enabled=False, delete_cache=(3600, KEPT)
    ) as blocks:
      gr.Markdown(f'## {self._name}')
      with gr.Tabs(selected='draw') as tabs:
        self._tabs = tabs
        with gr.Tab('Draw', id='draw'):
          drawn = self._draw()
        with gr.Tab('Edit', id='edit'):
          source, edited = self._edit()
        if self._films:
          with gr.Tab('Film', id='film'):
            clip, first = self._film()
        with gr.Tab('Ask', id='ask'):
          seen = self._ask()
        with gr.Tab('Talk', id='talk'):
          chat, turns = self._talk()
      for gallery, at, buttons in (drawn, edited):
        self._hand_on(buttons[0], gallery, at, source, 'edit')
        self._hand_on(buttons[1], gallery, at, seen, 'ask')
      self._chat_on(chat[0], turns, source, 'edit')
      self._chat_on(chat[1], turns, seen, 'ask')
      if self._films:
        self._hand_on(drawn[2][2], drawn[0], drawn[1], first, 'film')
        video, ask, edit = clip
        ask.click(
          lambda path: (path, gr.Tabs(selected='ask')), video, [self._clip, tabs], api_name=False
        )
        edit.click(self._first_frame, video, [source, tabs], api_name=False)
    # One queue for the page; the studio has the one of the device.
    return blocks.queue(default_concurrency_limit=None, max_size=None, api_open=False)

  # ---- tabs

  def _draw(self):
    with gr.Row():
      with gr.Column():
        prompt = self._parts.text('What to draw', 'prompt')
        button = gr.Button('Draw', variant='primary', elem_id='draw')
        status = self._parts.status('draw')
        how = self._parts.settings('t2i', self._media.image_size)
      with gr.Column():
        gallery, at = self._parts.results('drawn')
        with gr.Row():
          edit, ask = self._parts.buttons('draw')
          film = gr.Button('Film from this', size='md', min_width=140, visible=self._films)
        more = gr.Button('Next seeds', size='md', min_width=140)

    self._parts.examples('t2i', [prompt])

    def draw(prompt, *how):
      yield from self._show(self._studio.draw(prompt, How(*how)))

    given, outputs = [prompt, *how], [status, gallery, at]
    gr.on([button.click, prompt.submit], draw, given, outputs, **LONG)
    seed, count = how[0], how[1]
    more.click(lambda s, n: (s or 0) + n, [seed, count], seed, api_name=False).then(
      draw, given, outputs, **LONG
    )
    return gallery, at, (edit, ask, film)

  def _edit(self):
    with gr.Row():
      with gr.Column():
        source = self._parts.picture('Picture', 'edit-source')
        prompt = self._parts.text('What to change', 'instruction')
        button = gr.Button('Edit', variant='primary', elem_id='edit')
        status = self._parts.status('edit')
        how = self._parts.settings('edit', None)
      with gr.Column():
        gallery, at = self._parts.results('edited')
        with gr.Row():
          buttons = self._parts.buttons('edit')

    self._parts.examples('edit', [prompt, source])

    def edit(source, prompt, *how):
      sources = [source] if source else []
      yield from self._show(self._studio.edit(sources, prompt, How(*how)))

    gr.on(
      [button.click, prompt.submit], edit, [source, prompt, *how], [status, gallery, at], **LONG
    )
    return source, (gallery, at, buttons)

  def _film(self):
    temporal, _ = strides(self._config)
    most = self._studio.limits.frames - (self._studio.limits.frames - 1) % temporal
    with gr.Row():
      with gr.Column():
        prompt = self._parts.text('What to film', 'film-prompt')
        button = gr.Button('Film', variant='primary', elem_id='film')
        status = self._parts.status('film')
        frames = gr.Slider(
          1, max(most, 1 + temporal), min(self._media.frames, most), step=temporal, label='Frames'
        )
        with gr.Accordion('Begin with a picture', open=False):
          first = self._parts.picture('First picture', 'film-first')
        how = self._parts.settings('t2v', self._media.video_size, several=False)
      with gr.Column():
        video = gr.Video(
          label='Clip', interactive=False, autoplay=True, loop=True, height=320,
          elem_classes='result', elem_id='filmed', buttons=['download'],
        )  # fmt: skip
        with gr.Row():
          edit = gr.Button('Edit the first frame', size='md', min_width=140)
          ask = gr.Button('Ask about this', size='md', min_width=140)

    self._parts.examples('t2v', [prompt])

    def film(prompt, frames, first, *how):
      for value in self._studio.film(prompt, frames, first, How(*how)):
        yield parts.said(value), NOTHING if value.result is None else value.result

    given = [prompt, frames, first, *how]
    gr.on([button.click, prompt.submit], film, given, [status, video], **LONG)
    return (video, ask, edit), first

  def _ask(self):
    with gr.Row():
      with gr.Column():
        picture = self._parts.picture('Picture', 'ask-source')
        with gr.Accordion('A clip instead', open=False, visible=self._films) as fold:
          clip = gr.Video(label='Clip', sources=['upload'], height=240, elem_classes='result')
          clip.preprocess = parts.path_of
        prompt = self._parts.text('Question', 'question')
        button = gr.Button('Ask', variant='primary', elem_id='ask')
        status = self._parts.status('ask')
        words = self._parts.words()
      with gr.Column():
        answer = gr.Textbox(label='Answer', lines=4, interactive=False, elem_id='answer')

    self._parts.examples('vqa', [prompt, picture])

    def ask(picture, clip, prompt, *words):
      seen = [pathlib.Path(p) for p in (picture, clip) if p]
      for value in self._studio.ask([('user', [*seen, prompt])], *words):
        yield parts.said(value), NOTHING if value.result is None else value.result

    given = [picture, clip, prompt, *words]
    gr.on([button.click, prompt.submit], ask, given, [status, answer], **LONG)
    # A question is about one of them: that which came last.
    picture.change(lambda p: None if p else NOTHING, picture, clip, **LONG)
    clip.change(
      lambda p: (None, gr.Accordion(open=True)) if p else (NOTHING, NOTHING), clip,
      [picture, fold], **LONG,
    )  # fmt: skip
    self._clip = clip
    return picture

  def _talk(self):
    turns = gr.State([])
    chat = gr.Chatbot(
      label='Conversation', height=380, elem_id='chat', elem_classes='result', buttons=['copy']
    )
    status = self._parts.status('talk')
    box = gr.MultimodalTextbox(
      file_types=['image'], file_count='multiple', show_label=False, submit_btn=False,
      placeholder='Say something, or add pictures', elem_id='say', sources=['upload'],
      max_plain_text_length=self._studio.limits.prompt,
    )  # fmt: skip
    with gr.Row():
      send = gr.Button('Send', variant='primary', elem_id='send')
      draw = gr.Button('Draw the next turn', elem_id='draw-turn')
      new = gr.Button('New conversation')
    with gr.Row():
      buttons = self._parts.buttons('talk')
    with gr.Accordion('Settings', open=False):
      words = self._parts.words(inside=True)
    how = self._parts.settings(
      't2i', self._media.image_size, several=False, label='Settings of pictures'
    )

    def asked(turns, box):
      files = [pathlib.Path(_file(f)) for f in (box or {}).get('files') or []]
      text = (box or {}).get('text') or ''
      return [*turns, ('user', [*files, text])]

    def send_it(turns, box, *words):
      now = asked(turns, box)
      for value in self._studio.ask(now, *words):
        if value.result is None:
          yield parts.said(value), NOTHING, NOTHING, NOTHING
          continue
        told = [*now, ('assistant', [value.result])]
        # What was typed goes once the answer is there.
        done = value.text == ''
        yield (
          parts.said(value),
          _messages(told),
          told if done else NOTHING,
          None if done else NOTHING,
        )

    def draw_it(turns, box, *how):
      now = asked(turns, box)
      for value in self._studio.draw_turn(now, How(*how)):
        if value.result is None:
          yield parts.said(value), NOTHING, NOTHING, NOTHING
          continue
        told = [*now, ('assistant', [pathlib.Path(path) for path, _ in value.result])]
        yield parts.said(value), _messages(told), told, None

    outputs = [status, chat, turns, box]
    gr.on([send.click, box.submit], send_it, [turns, box, *words], outputs, **LONG)
    draw.click(draw_it, [turns, box, *how], outputs, **LONG)
    chat.clear(lambda: [], None, turns, api_name=False)
    new.click(lambda: ([], [], parts.said(Said(''))), None, [chat, turns, status], api_name=False)
    return buttons, (turns, status)

  def _show(self, events):
    """Updates of a status, a strip and its chosen picture."""
    for value in events:
      if value.result is None:
        yield parts.said(value), NOTHING, NOTHING
      else:
        yield parts.said(value), gr.Gallery(value.result, selected_index=0), 0

  def _hand_on(self, button, gallery, at, target, tab: str) -> None:
    def hand(results, at):
      if not results:
        return NOTHING, NOTHING
      return results[min(at, len(results) - 1)][0], gr.Tabs(selected=tab)

    button.click(hand, [gallery, at], [target, self._tabs], api_name=False)

  def _chat_on(self, button, state, target, tab: str) -> None:
    turns, status = state

    def hand(turns):
      files = [part for _, parts in turns for part in parts if isinstance(part, pathlib.Path)]
      if not files:
        text = 'no picture in this conversation yet'
        return NOTHING, NOTHING, parts.said(Said(text, failed=True))
      return str(files[-1]), gr.Tabs(selected=tab), NOTHING

    button.click(hand, turns, [target, self._tabs, status], api_name=False)

  def _first_frame(self, path):
    if not path:
      return NOTHING, NOTHING
    return self._studio.first_frame(path), gr.Tabs(selected='edit')


def application(page: Page, limits: RequestLimits) -> fastapi.FastAPI:
  """The page as an ASGI application; files of more than `limits.upload` bytes are refused."""
  theme, blocks = gr.themes.Default(font=FONT, font_mono=MONO), page.blocks()
  mounted = gr.mount_gradio_app(
    fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks, path='/',
    max_file_size=limits.upload, theme=theme, css=parts.CSS, ssr_mode=False, footer_links=[],
    show_error=True, mcp_server=False, enable_monitoring=False, pwa=False,
  )  # fmt: skip
  # gradio checks that a file of a request was uploaded to it only where this is set, and mounting
  # does not set it: any file that this process can read could be named.
  blocks.has_launched = True
  return mounted


LONG = {'show_progress': 'hidden', 'api_name': False}


def _file(value) -> str:
  return value['path'] if isinstance(value, dict) else str(value)


def _messages(turns) -> list[dict]:
  """A conversation for a Chatbot: one message for each text and picture."""
  return [
    {'role': role, 'content': {'path': str(part)} if isinstance(part, pathlib.Path) else part}
    for role, parts in turns
    for part in parts
    if part != ''
  ]
