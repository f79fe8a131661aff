"""What a verb leaves that nothing disturbs, once for all tests of a file."""

import contextlib
import shutil

import pytest

from tests.chaos import processes, verbs
from tests.weights import hub


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """(inputs, where a verb writes)."""
  inputs, out = (tmp_path_factory.mktemp(name) for name in ('in', 'out'))
  verbs.album(inputs / 'album')
  verbs.weights(inputs / 'weights')
  return inputs, out


@pytest.fixture(scope='module')
def driver(tmp_path_factory, place):
  data = {'Wan2.1_VAE.pth': b'latents ' * 500_000, 'README.md': b'nobody asks for it'}
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(hub.serving({'Wan-AI/Wan2.1-T2V-14B': data}))
    environment = {'HF_ENDPOINT': server.url, 'HF_HOME': str(place[1] / 'hub')}
    yield stack.enter_context(processes.driver(tmp_path_factory.mktemp('said'), environment))


@pytest.fixture(scope='module')
def run(driver):
  return driver.run


@pytest.fixture(scope='module')
def whole(run, place):
  """Runs a verb undisturbed, once: (its inputs, where it writes, its moments, what it leaves)."""
  known, (inputs, out) = {}, place

  def find(verb):
    if verb in ('evaluate', 'generate') and not (inputs / 'run').exists():
      find('train')
    if verb not in known:
      verbs.begin(verb, inputs, out)
      ended = run(verbs.command(verb, inputs, out), out)
      assert ended.code == 0, ended.said
      if verb == 'train':
        shutil.copytree(out / 'run', inputs / 'run')
      known[verb] = ended.moments, processes.left(out)
    verbs.begin(verb, inputs, out)
    return inputs, out, *known[verb]

  return find
