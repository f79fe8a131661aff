"""The page of `tuna-jax demo` in Chromium, as wide as a screen and as a telephone."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.sample import small
from tests.serve.served import PICTURE
from tuna_jax import stopping
from tuna_jax.sample.output import read_info
from tuna_jax.weights import store

pytestmark = pytest.mark.browser
ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {1280: 900, 390: 844}
PATIENCE = 300_000  # milliseconds: something may have to be compiled
SMALLEST = 12  # pixels of a letter


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  """Of a page of the tiny model, which ends as the signal asks."""
  folder = tmp_path_factory.mktemp('model')
  store.save(str(folder / 'ball'), small.CONFIG, small.params(), {'pictures': [16]})
  store.save(str(folder / 'ball/vae'), small.VAE, small.vae_params())
  small.tokenizer().save(folder / 'ball')
  arguments = [f'--checkpoint={folder}/ball', '--port=0', '--max_points=60', '--max_upload_mb=0.1']
  log = folder / 'log'
  with open(log, 'w') as file:
    process = subprocess.Popen(
      [sys.executable, '-m', 'tuna_jax.cli.demo', *arguments],
      cwd=ROOT, stdout=file, stderr=file, env=os.environ | {'TMPDIR': str(folder)},
    )  # fmt: skip
  while not (found := re.search(r'shown at (\S+)', log.read_text())):
    assert process.poll() is None, log.read_text()
    time.sleep(0.2)
  yield found[1]
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == stopping.AGAIN, log.read_text()
  assert 'a request failed' not in log.read_text()
  assert not list(folder.glob('tuna_demo_*')), 'files of people are left behind'


@pytest.fixture(scope='module')
def browser():
  from playwright.sync_api import sync_playwright

  with sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=shutil.which('chromium'), args=['--no-sandbox']
    )
    yield browser
    browser.close()


@pytest.fixture(params=SIZES)
def page(request, browser, address):
  with opened(browser, address, request.param) as page:
    yield page


class opened:
  """A page for somebody new, which asks nobody else and is never wider than the screen."""

  def __init__(self, browser, address, width=1280):
    self._context = browser.new_context(viewport={'width': width, 'height': SIZES[width]})
    self._address, self._asked = address, []

  def __enter__(self):
    self.page = self._context.new_page()
    self.page.set_default_timeout(PATIENCE)
    self.page.on('request', lambda request: self._asked.append(request.url))
    self.page.goto(self._address)
    self.page.locator('button.lg:visible, button.md:visible').first.wait_for()  # scripts draw it
    return self.page

  def __exit__(self, kind, error, trace):
    if kind is None:
      assert not [u for u in self._asked if not u.startswith((self._address, 'data:', 'blob:'))]
    self._context.close()


def fits(page, name):
  """Nothing is cut off, and no button or letter is too small; keeps a picture of it if asked."""
  if folder := os.environ.get('TUNA_SCREENSHOTS'):
    width = page.viewport_size['width']
    page.screenshot(path=f'{folder}/{name}_{width}.png', full_page=True)
  wide = page.evaluate('document.documentElement.scrollWidth - window.innerWidth')
  assert wide <= 0, f'{wide} pixels wider than the screen'
  for button in page.locator('button.lg:visible, button.md:visible').all():
    box = button.bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= page.viewport_size['width']
    assert box['height'] >= 30, button.inner_text()
  letters = page.evaluate(
    """[...document.querySelectorAll('button, label, textarea, p, span, td')]
    .filter(e => e.offsetParent && e.innerText?.trim())
    .map(e => parseFloat(getComputedStyle(e).fontSize))"""
  )
  assert min(letters) >= SMALLEST


def draw(page, prompt):
  page.get_by_label('What to draw').fill(prompt)
  page.locator('#draw').click()
  return page.locator('#drawn img').first.get_attribute('src')


def test_a_picture_is_drawn_edited_and_asked_about(page, tmp_path):
  fits(page, 'empty')
  draw(page, 'a red ball')
  fits(page, 'draw')
  with page.expect_download() as got:
    page.locator('#drawn').get_by_label('Download').click()
  got.value.save_as(tmp_path / 'ball.png')
  info = read_info(tmp_path / 'ball.png')
  assert (info['prompt'], info['seed'], info['points']) == ('a red ball', 42, 50)

  page.locator('#draw-edit').click()
  page.locator('#edit-source img').wait_for()
  page.get_by_label('What to change').fill('make it blue')
  page.locator('#edit').click()
  page.locator('#edited img').first.wait_for()
  fits(page, 'edit')

  page.locator('#edit-ask').click()
  page.locator('#ask-source img').wait_for()
  page.get_by_label('Question').fill('what is this')
  page.locator('#ask').click()
  page.wait_for_function("document.querySelector('#answer textarea').value")
  fits(page, 'ask')


def test_a_mistake_is_a_sentence_and_nothing_is_lost(page, tmp_path):
  (tmp_path / 'a.png').write_text('no picture')
  page.get_by_role('tab', name='Edit').click()
  page.get_by_label('What to change').fill('make it blue')
  page.locator('#edit').click()
  page.get_by_text('no picture to edit').wait_for()
  page.locator('#edit-source input[type=file]').set_input_files(tmp_path / 'a.png')
  page.wait_for_function("document.querySelector('#edit-source img')")
  page.locator('#edit').click()
  page.get_by_text('not a readable picture').wait_for()
  fits(page, 'mistake')
  assert page.get_by_label('What to change').input_value() == 'make it blue'


def test_a_conversation_has_words_and_pictures(page, tmp_path):
  PICTURE.save(tmp_path / 'a.png')
  page.get_by_role('tab', name='Talk').click()
  page.locator('#say input[type=file]').set_input_files(tmp_path / 'a.png')
  page.locator('#say textarea').fill('what is this')
  page.locator('#send').click()
  page.locator('#chat .bot').first.wait_for()
  page.wait_for_function("!document.querySelector('#say textarea').value")
  page.locator('#say textarea').fill('make it blue')
  page.locator('#draw-turn').click()
  page.locator('#chat .bot img').first.wait_for()
  fits(page, 'talk')
  page.locator('#talk-edit').click()
  page.locator('#edit-source img').wait_for()


def test_a_file_that_is_too_large_is_refused_with_a_sentence(browser, address, tmp_path):
  (tmp_path / 'a.png').write_bytes(PICTURE.png() + bytes(200_000))
  with opened(browser, address) as page:
    page.get_by_role('tab', name='Edit').click()
    page.locator('#edit-source input[type=file]').set_input_files(tmp_path / 'a.png')
    page.get_by_text('exceed the maximum allowed size').first.wait_for()
    fits(page, 'large')


def test_a_request_opens_no_file_that_was_not_uploaded(address, tmp_path):
  PICTURE.save(tmp_path / 'private.png')
  with urllib.request.urlopen(f'{address}/config') as reply:
    config = json.load(reply)
  parts = {part['id']: part for part in config['components']}
  named = lambda number: parts[number]['props'].get('elem_id')
  edit = next(d for d in config['dependencies'] if 'edit-source' in map(named, d['inputs']))
  file = {'path': str(tmp_path / 'private.png'), 'meta': {'_type': 'gradio.FileData'}}
  values = [parts[number]['props'].get('value') for number in edit['inputs']]
  values[[named(n) for n in edit['inputs']].index('edit-source')] = file
  body = {'data': values, 'fn_index': edit['id'], 'session_hash': 'stranger'}
  request = urllib.request.Request(
    f'{address}/gradio_api/queue/join', json.dumps(body).encode(),
    {'content-type': 'application/json'},
  )  # fmt: skip
  urllib.request.urlopen(request).close()
  with urllib.request.urlopen(f'{address}/gradio_api/queue/data?session_hash=stranger') as reply:
    said = next(line for line in reply if b'process_completed' in line)
  assert b'not uploaded by a user' in said
  with pytest.raises(urllib.error.HTTPError, match='403'):
    urllib.request.urlopen(f'{address}/gradio_api/file={tmp_path}/private.png')


def test_two_people_do_not_see_each_other(browser, address):
  with opened(browser, address) as one, opened(browser, address) as other:
    other.get_by_label('What to draw').fill('what is this')
    other.locator('#draw').click()
    first = draw(one, 'a red ball')
    assert 'a-red-ball' in first
    assert 'what-is-this' in other.locator('#drawn img').first.get_attribute('src')


def test_a_clip_is_filmed_and_asked_about(browser, address):
  with opened(browser, address) as page:
    page.get_by_role('tab', name='Film').click()
    page.get_by_label('What to film').fill('a red ball')
    page.get_by_label('number input for Frames').fill('5')
    page.get_by_text('Settings', exact=True).locator('visible=true').click()
    page.get_by_label('Size').locator('visible=true').fill('16')
    page.locator('#film').click()
    page.locator('#filmed video').wait_for()
    page.wait_for_function("document.querySelector('#filmed video').videoWidth == 16")
    fits(page, 'film')
