"""Every reference to a page, a section, a file or a verb leads somewhere."""

import pathlib
import re

import numpy as np
import pytest

from tests.test_doors import STAIRS
from tuna_jax.cli.main import verbs
from tuna_jax.data.segments import Image, Text, layout, pack
from tuna_jax.data.tasks import TASKS
from tuna_jax.data.tokenizer import Letters
from tuna_jax.models.attention import visible

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'launch' / 'README.md']
PAGES += sorted((ROOT / 'docs').glob('*.md'))
DATA = ROOT / 'docs' / 'data.md'
SOURCES = [
  path
  for folder in ('tuna_jax', 'configs', 'tests', 'launch', '.ci', '.github')
  for path in sorted((ROOT / folder).rglob('*'))
  if path.suffix in ('.py', '.sh', '.yml', '.md') and path != pathlib.Path(__file__).resolve()
]

# A section number (2.5) or the number of a fault (B15), and what may stand between several of them.
_NUMBER = r'(?:\d+(?:\.\d+)*|[BPF]\d+)(?![\w-])'
_NUMBERS = rf'((?:[\s#]+{_NUMBER}(?:(?:,|[\s#]+and)[\s#]+{_NUMBER})*)?)'
IN_CODE = re.compile(rf'docs/(\w+\.md){_NUMBERS}')
LINK = re.compile(rf'\]\(([^)#\s]+)\){_NUMBERS}')
OWN_SECTION = re.compile(rf'\bsections?{_NUMBERS}', re.IGNORECASE)
FILE = re.compile(r'(?<![\w/.-])(?:tuna_jax|configs|tests|launch|docs|notebooks)/[\w./-]*\w/?')
INVENTED = re.compile(r'[A-Z]{2}|\*')  # `configs/NAME.py` stands for a file that the reader makes


def numbers(found: str) -> list[str]:
  return re.findall(_NUMBER, found)


def sections(page: pathlib.Path) -> set[str]:
  """Numbers of the headings of a page, and of the faults that it lists."""
  text = page.read_text()
  headings = re.findall(r'^#+ (\d+(?:\.\d+)*)\.? ', text, re.MULTILINE)
  return {*headings, *re.findall(r'^(?:\* \*\*|\| )([BPF]\d+)\b', text, re.MULTILINE)}


def missing(page: pathlib.Path, found: str) -> list[str]:
  """What of (page, section numbers) does not exist."""
  if not page.exists():
    return [str(page)]
  return [f'{page.name} {n}' for n in numbers(found) if n not in sections(page)]


def name(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


def test_a_reference_may_name_several_sections_across_lines():
  found = IN_CODE.search('see docs/architecture.md 8.2, 9 and\n# B14 (not 3)')
  assert found[1] == 'architecture.md' and numbers(found[2]) == ['8.2', '9', 'B14']


@pytest.mark.parametrize('path', [*SOURCES, *PAGES], ids=name)
def test_references_lead_to_sections_that_exist(path):
  wrong = []
  for page, found in IN_CODE.findall(path.read_text()):
    wrong += missing(ROOT / 'docs' / page, found)
  assert not wrong


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_links_between_pages_lead_somewhere(path):
  wrong = []
  for target, found in LINK.findall(path.read_text()):
    if '://' not in target:
      wrong += missing(path.parent / target, found)
  for found in OWN_SECTION.findall(path.read_text()):
    wrong += missing(path, found)
  assert not wrong


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_files_that_pages_name_exist(path):
  named = {f for f in FILE.findall(path.read_text()) if not INVENTED.search(f.partition('/')[2])}
  there = {f for f in named if (ROOT / f).exists() or (path.parent / f).exists()}
  assert not named - there


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_names_that_pages_place_in_a_file_stand_in_it(path):
  """`NAME in FILE`, several names joined by `and`."""
  names = r'((?:`[\w.]+`(?:,? and |, )?)+)'
  wrong = []
  for found, file in re.findall(rf'{names}\s(?:of|in)\s`([\w/]+\.py)`', path.read_text()):
    source = (ROOT / file).read_text()
    wrong += [f'{n} in {file}' for n in re.findall(r'`([\w.]+)`', found) if n not in source]
  assert not wrong


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_verbs_that_pages_name_exist(path):
  named = set(re.findall(r'`?tuna-jax ([a-z]+)', path.read_text()))
  assert named <= set(verbs())


def test_no_source_refers_to_a_document_outside_the_repository():
  outside = re.compile(r'\b(ARCHITECTURE|DESIGN|TPU|DATA|PIXEL|SHOWO2|ENCODERS)\.md|shared/spec')
  assert not [name(path) for path in [*SOURCES, *PAGES] if outside.search(path.read_text())]


@pytest.mark.parametrize('page', ['showo2.md', 'pixel.md'])
def test_sections_of_the_architecture_are_named_with_an_a(page):
  found = re.findall(rf'\bA[\s]+({_NUMBER})', (ROOT / 'docs' / page).read_text())
  assert found and not missing(ROOT / 'docs' / 'architecture.md', ' '.join(found))


def test_the_design_lists_the_layers_that_the_imports_are_held_to():
  text = (ROOT / 'docs' / 'design.md').read_text().partition('### 2.1 ')[2].partition('\n### ')[0]
  listed = re.findall(r'^\d+\. (.+?)(?:;|$)', text, re.MULTILINE)
  assert [tuple(re.findall(r'`(\w+)`', line)) for line in listed] == list(STAIRS)


def test_the_drawing_of_the_mask_is_what_the_code_computes():
  drawing = (ROOT / 'docs' / 'design.md').read_text().partition('### 3.1 ')[2].split('```')[1]
  lines = [line.split() for line in drawing.splitlines() if line]
  tokens, *rows = lines[1][1:], *lines[5:]
  given = {line[0]: [int(x) for x in line[1 : 1 + len(tokens)]] for line in lines[2:5]}
  plan = [Text((0, 1)), Image(np.zeros((1, 3, 1, 4), np.float32)), Text((2,))]
  example = pack([[layout(plan, Letters(), (4, 16))]], (1, len(tokens), 3, 1, 4)).batch
  for field, values in given.items():
    assert getattr(example, field)[0].tolist() == values, field
  mask = visible(example.kv_limit, example.segment, example.segment)[0]
  drawn = [row[1 : 1 + len(tokens)] for row in rows if row[0] in tokens]
  assert [[x == '#' for x in row] for row in drawn] == np.asarray(mask).tolist()


def test_the_data_page_lists_every_task_and_its_fields():
  rows = re.findall(r'^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|', DATA.read_text(), re.MULTILINE)
  assert {task: re.findall(r'\w+', fields) for task, fields in rows} == {
    task: list(TASKS[task].fields) for task in TASKS
  }


def test_the_index_lists_every_page():
  listed = set(re.findall(r'\]\(([\w.]+\.md)\)', (ROOT / 'docs' / 'index.md').read_text()))
  assert {page.name for page in (ROOT / 'docs').glob('*.md')} - {'index.md'} <= listed


def test_the_numbers_of_the_readme_stand_among_the_measurements():
  table = (ROOT / 'README.md').read_text().partition('<!-- quickstart numbers -->')[2]
  rows = [row for row in table.partition('<!-- end -->')[0].splitlines() if row.startswith('|')]
  measured = (ROOT / 'docs' / 'measured.md').read_text().splitlines()
  assert len(rows) > 2 and not [row for row in rows if row not in measured]
