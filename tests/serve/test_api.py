"""The OpenAI-compatible server, driven by the official client over loopback."""

import base64
import concurrent.futures
import io
import json
import queue
import threading
import urllib.error
import urllib.request

import numpy as np
import openai
import PIL.Image
import pytest

from tests.serve import served
from tests.serve.served import FEW, LIMITS, PICTURE
from tuna_jax.config import UserError
from tuna_jax.sample.output import KEY
from tuna_jax.serve import api, guards, protocol

URL = f'data:image/png;base64,{base64.b64encode(PICTURE.png()).decode()}'
TOLD = lambda done, total: None  # the program that reports is the one that is served
ASK = [{'role': 'user', 'content': 'what is this'}]
SEE = [
  {'role': 'developer', 'content': 'a red ball'},
  {
    'role': 'user',
    'content': [
      {'type': 'image_url', 'image_url': {'url': URL}},
      {'type': 'text', 'text': 'what is this'},
    ],
  },
]


@pytest.fixture(scope='module')
def generator():
  return served.generator()


@pytest.fixture(scope='module')
def address(generator):
  told = queue.Queue()
  what = api.application(generator, 'tuna', LIMITS), guards.bind('127.0.0.1', 0), told.put
  threading.Thread(target=guards.serve, args=what, daemon=True).start()
  return told.get(timeout=30)


@pytest.fixture(scope='module')
def client(address):
  return openai.OpenAI(base_url=f'{address}/v1', api_key='none', max_retries=0)


def chat(client, messages=ASK, **more):
  return client.chat.completions.create(model='tuna', messages=messages, max_tokens=4, **more)


def test_an_address_that_is_taken_is_named_before_a_model_is_loaded(address):
  port = int(address.rpartition(':')[2])
  with pytest.raises(UserError, match=f'127.0.0.1:{port}: Address already in use'):
    guards.bind('127.0.0.1', port)


def test_the_model_is_listed_and_another_is_not_found(client):
  assert [model.id for model in client.models.list()] == ['tuna']
  assert client.models.retrieve('tuna').id == 'tuna'
  with pytest.raises(openai.NotFoundError, match="'gpt': not served here; expected 'tuna'") as e:
    client.chat.completions.create(model='gpt', messages=ASK)
  assert e.value.code == 'model_not_found'


def test_an_answer_about_a_picture_is_the_generators_with_its_counts(client, generator):
  found = chat(client, SEE)
  turns = [('system', 'a red ball'), ('user', [PICTURE, 'what is this'])]
  assert found.choices[0].message.content == generator.text(turns, max_new_tokens=4)
  assert found.choices[0].finish_reason in ('stop', 'length')
  usage = found.usage
  assert usage.completion_tokens <= 4
  assert usage.prompt_tokens > 4 and usage.total_tokens == (
    usage.prompt_tokens + usage.completion_tokens
  )


def test_a_stream_is_the_same_answer_in_pieces_and_ends_with_counts(client):
  whole = chat(client)
  chunks = list(chat(client, stream=True, stream_options={'include_usage': True}))
  pieces = [c.choices[0].delta.content or '' for c in chunks if c.choices]
  assert ''.join(pieces) == whole.choices[0].message.content
  assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
  assert chunks[-1].usage == whole.usage and not chunks[-1].choices


def test_choices_are_drawn_with_seeds_of_their_own(client):
  again = [chat(client, temperature=1.5, seed=5, n=2) for _ in range(2)]
  texts = [[c.message.content for c in found.choices] for found in again]
  assert texts[0] == texts[1] and texts[0][0] != texts[0][1]


def test_pictures_hold_their_settings_and_are_those_of_the_generator(client, generator):
  found = client.images.generate(
    model='tuna', prompt='a red ball', size='16x16', n=2, extra_body={'seed': 7, **FEW}
  )
  files = [PIL.Image.open(io.BytesIO(base64.b64decode(d.b64_json))) for d in found.data]
  assert [json.loads(file.info[KEY])['seed'] for file in files] == [7, 8]
  expected = generator.image('a red ball', seed=8, report=TOLD, **FEW)
  assert np.array_equal(files[1], expected.pixels)
  assert found.usage.output_tokens == 2 and found.usage.input_tokens > 0


def test_an_edit_is_that_of_the_generator(client, generator):
  more = {'response_format': 'url', 'extra_body': {'seed': 3, **FEW}}
  found = client.images.edit(
    model='tuna', image=[('a.png', PICTURE.png())], prompt='make it blue', **more
  )
  head, _, data = found.data[0].url.partition(',')
  assert head == 'data:image/png;base64'
  expected = generator.edit(PICTURE, 'make it blue', seed=3, report=TOLD, **FEW)
  pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
  assert np.array_equal(pixels, expected.pixels)
  assert found.usage.input_tokens_details.image_tokens == 1


def test_many_at_once_get_what_each_alone_gets(client):
  seeds = list(range(4))
  draw = lambda seed: client.images.generate(
    model='tuna', prompt='a red ball', extra_body={'seed': seed, **FEW}
  )
  alone = [draw(seed).data[0].b64_json for seed in seeds]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    drawn = [pool.submit(draw, seed) for seed in seeds]
    said = [pool.submit(chat, client) for _ in seeds]
    assert [one.result().data[0].b64_json for one in drawn] == alone
    assert len({one.result().choices[0].message.content for one in said}) == 1


def part(**fields):
  return [{'role': 'user', 'content': [fields]}]


@pytest.mark.parametrize(
  ('more', 'says'),
  [
    ({'messages': []}, 'messages: expected a list of messages'),
    ({'messages': [{'role': 'usr', 'content': 'x'}]}, "expected 'user'"),
    ({'messages': part(type='image', image='/etc/hostname')}, "type 'text' or 'image_url'"),
    ({'messages': part(type='image_url', image_url={'url': '/etc/hostname'})}, 'expected data:'),
    (
      {'messages': part(type='image_url', image_url={'url': 'http://127.0.0.1/a.png'})},
      'expected data:',
    ),
    (
      {'messages': part(type='image_url', image_url={'url': 'data:image/png;base64,AAAA'})},
      'picture',
    ),
    ({'messages': [{'role': 'user', 'content': 'x' * 201}]}, '201 characters of a prompt; at most'),
    ({'messages': ASK, 'max_tokens': 9}, '9 tokens of an answer; at most 8'),
    ({'messages': ASK, 'temperature': 'hot'}, 'temperature: expected float, found str'),
    ({'messages': ASK, 'temperature': -1}, 'temperature=-1.0: expected at least 0'),
    ({'messages': ASK, 'n': 3}, '3 pictures of one request'),
    ({'messages': ASK, 'tools': [{'type': 'function'}]}, 'tools: no such field'),
    ({'messages': ASK, 'extra_body': {'temprature': 1}}, "nearest is 'temperature'"),
  ],
)
def test_a_bad_question_is_a_sentence(client, more, says):
  with pytest.raises(openai.BadRequestError) as error:
    client.chat.completions.create(model='tuna', **more)
  assert says in error.value.body['message']
  assert error.value.type == 'invalid_request_error'


@pytest.mark.parametrize(
  ('more', 'says'),
  [
    ({'size': '128x64'}, '128 pixels on the longer side; at most 64'),
    ({'size': '17x16'}, 'height 16 and width 17: both sides must be multiples of 16'),
    ({'prompt': ' '}, 'prompt: empty'),
    ({'n': 0}, 'n=0: expected at least 1'),
    ({'n': 3}, '3 pictures of one request; at most 2'),
    ({'extra_body': {'points': 9}}, '9 points of the time grid; at most 4'),
    ({'extra_body': {'solver': 'rk4'}}, "solver 'rk4'"),
    ({'output_format': 'webp'}, 'output_format: no such field'),
    ({'response_format': 'file'}, 'expected b64_json or url'),
  ],
)
def test_a_bad_wish_for_a_picture_is_a_sentence(client, more, says):
  with pytest.raises(openai.BadRequestError) as error:
    client.images.generate(**{'model': 'tuna', 'prompt': 'a red ball', **more})
  assert says in error.value.body['message']


def test_a_size_is_width_by_height():
  assert protocol.size_of('32x16') == '16x32' and protocol.size_of('32') == '32'
  with pytest.raises(ValueError, match="size 'huge': expected 'WIDTHxHEIGHT'"):
    protocol.size_of('huge')


def test_a_bad_source_or_mask_is_a_sentence(client):
  edit = lambda image, **more: client.images.edit(model='tuna', image=image, prompt='x', **more)
  with pytest.raises(openai.BadRequestError, match='not a readable picture'):
    edit(b'no picture')
  with pytest.raises(openai.BadRequestError, match='mask: no such field'):
    edit(PICTURE.png(), mask=PICTURE.png())
  with pytest.raises(openai.BadRequestError, match='3 pictures'):
    edit([PICTURE.png()] * 3)


def refused(address, path, data=None, **headers):
  """(status, body) of a request that is refused."""
  request = urllib.request.Request(address + path, data, headers)
  with pytest.raises(urllib.error.HTTPError) as error:
    urllib.request.urlopen(request, timeout=30)
  return error.value.code, error.value.read().decode()


def test_what_is_no_request_at_all_is_refused_in_the_same_shape(address):
  assert refused(address, '/v1/nothing')[0] == 404
  status, body = refused(address, '/v1/chat/completions')
  assert status == 405 and json.loads(body)['error']['type'] == 'invalid_request_error'
  kind = {'Content-Type': 'application/json; charset=utf-8'}
  for data in (b'{', b'[' * 100_000, b'[]', b'\xff'):
    status, body = refused(address, '/v1/chat/completions', data, **kind)
    assert status == 400 and 'JSON' in json.loads(body)['error']['message']


@pytest.mark.parametrize('path', ['chat/completions', 'images/generations', 'images/edits'])
def test_a_body_of_another_kind_is_refused(address, path):
  status, body = refused(address, f'/v1/{path}', b'{}', **{'Content-Type': 'text/plain'})
  assert status == 415 and 'found text/plain' in json.loads(body)['error']['message']


def test_a_large_body_is_refused_while_it_arrives(address):
  kind = {'Content-Type': 'application/json'}
  status, body = refused(address, '/v1/chat/completions', b' ' * 100_001, **kind)
  assert status == 413 and 'more than 0.1 MB' in json.loads(body)['error']['message']


def test_pages_of_the_web_do_not_reach_a_server_on_loopback(address):
  path = '/v1/models'
  status, body = refused(address, path, Host='evil.example')
  assert status == 403 and json.loads(body)['error']['type'] == 'permission_error'
  assert refused(address, path, Origin='http://evil.example')[0] == 403
  own = urllib.request.Request(address + path, headers={'Origin': address})
  assert urllib.request.urlopen(own, timeout=30).status == 200
