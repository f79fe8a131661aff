"""A file of another kind than a verb expects is one line that says which, and exit code 2."""

import pytest

NOT = 'expected a list of rows {"path", "root", "task", "weight"}, found'


@pytest.fixture(scope='module')
def there(tmp_path_factory):
  root = tmp_path_factory.mktemp('wrong')
  (root / 'folder').mkdir()
  for name, text in {'empty': '', 'list': '[]', 'null': 'null', 'rows': '[5]'}.items():
    (root / f'{name}.json').write_text(text)
  (root / 'config.py').write_text('value = 1\n')
  return root


@pytest.mark.parametrize('command, says', [
  ('data check {0}/folder', 'tuna-jax data: {0}/folder: is a folder; expected a JSON file'),
  ('data check {0}/empty.json', 'tuna-jax data: {0}/empty.json:1: not JSON (it is empty)'),
  ('data check {0}/list.json', f'tuna-jax data: {{0}}/list.json: {NOT} an empty list'),
  ('data check {0}/null.json', f'tuna-jax data: {{0}}/null.json: {NOT} None'),
  ('data check {0}/rows.json', '{0}/rows.json: row 0: SourceConfig: expected a mapping, found int'),
  ('data check', 'tuna-jax data check: missing argument MIXTURE.json'),
  ('data replay {0}/folder', '{0}/folder: not a dump of a batch'),
  ('data replay {0}/empty.json', '{0}/empty.json: not a dump of a batch'),
  ('data replay {0}/none.npz', 'No such file or directory'),
  ('train --config={0}/config.py --workdir=x', 'config.py: expected Python code with a get_config'),
  ('convert assemble --output={0}/x --size=tiny', 'tuna-jax convert assemble: give at least one'),
])  # fmt: skip
def test_what_was_found_and_expected_is_one_line(tuna_jax, there, command, says):
  said = tuna_jax(*command.format(there).split(), code=2).strip()
  assert said.count('\n') == 0 and says.replace('{0}', str(there)) in said, said
