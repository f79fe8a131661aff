"""The public surface: `import tuna_jax` alone gives everything that a notebook needs."""

import inspect
import pathlib
import pydoc
import re
import subprocess
import sys

import pytest

import tuna_jax
from tuna_jax.tools import api_page


def python(code: str) -> str:
  return subprocess.run(
    [sys.executable, '-c', code], text=True, check=True, capture_output=True
  ).stdout.strip()


@pytest.mark.parametrize('name', tuna_jax.__all__)
def test_every_public_name_resolves_and_is_listed(name):
  assert getattr(tuna_jax, name) is not None and name in dir(tuna_jax)


def test_importing_the_package_imports_neither_jax_nor_numpy():
  heavy = "sorted({'jax', 'numpy', 'flax', 'tensorflow', 'absl'} & set(sys.modules))"
  code = f'import sys, tuna_jax, tuna_jax.train; print(tuna_jax.SIZES["7b"].decoder.dim, {heavy})'
  assert python(code) == '3584 []'


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'trian'"):
    _ = tuna_jax.trian


@pytest.mark.parametrize('first', ['pass', 'import tuna_jax.train.loop', 'tuna_jax.Generator'])
def test_train_is_called_and_is_the_package_whatever_was_imported_before(first):
  code = f"""
import tuna_jax
{first}
try:
  tuna_jax.train(None, 'nowhere')
except tuna_jax.UserError as error:
  print(error)
import tuna_jax.train.config
print(tuna_jax.train.config.TrainConfig.__name__)
"""
  assert python(code).split('\n') == ['train: expected a TrainConfig, found None', 'TrainConfig']


@pytest.mark.parametrize('call, says', [
  ('train(None)', 'train: expected a TrainConfig, found None'),
  ("evaluate(None, 'a', 'b')", 'evaluate: expected a Generator of open_generator, found None'),
  ('open_generator(None)', 'expected a path, found None'),
  ("SIZES['3b']", "unknown size '3b': expected one of 2b, 7b, "),
  ("fit(None, 'x')", 'data: expected str, found None'),
  ("fit('x', 'y', minutes=None)", 'minutes: expected float, found None'),
  ('Guidance(None)', 'guidance scale=None: expected a number above 0'),
])  # fmt: skip
def test_a_wrong_argument_is_one_clear_sentence(call, says):
  with pytest.raises(tuna_jax.UserError) as caught:
    eval(f'tuna_jax.{call}')
  assert str(caught.value).startswith(says), caught.value
  assert "'3b'" not in says or ('3b' not in tuna_jax.SIZES and isinstance(caught.value, KeyError))


def test_help_shows_what_people_call():
  text = pydoc.plain(pydoc.render_doc(tuna_jax))
  for words in ('open_generator(', 'class Generator', 'evaluate(', "generator.image('a red ball')"):
    assert words in text


NEVER = ('Picture.pil', 'Picture.png', 'Picture', 'Clip')  # raise


def test_every_public_name_says_shapes_or_units_and_errors():
  units = re.compile(r'\[.*\]|pixels|seconds|minutes|tokens|bytes|items|steps?\b|PNG|MP4')
  classes = [(n, v) for n in tuna_jax.__all__ if inspect.isclass(v := getattr(tuna_jax, n))]
  for name, thing in [*api_page.functions(), *classes]:
    if thing is tuna_jax.UserError:
      continue
    text = inspect.getdoc(thing) or ''
    assert units.search(text), name
    assert 'Raises' in text or 'UserError' in text or name in NEVER, name


def test_the_page_of_the_api_is_that_of_the_docstrings():
  page = pathlib.Path(__file__).parents[1] / 'docs' / 'api.md'
  assert page.read_text() == api_page.page(), 'python -m tuna_jax.tools.api_page > docs/api.md'


def test_the_package_says_that_it_has_types():
  assert (pathlib.Path(tuna_jax.__file__).parent / 'py.typed').exists()
