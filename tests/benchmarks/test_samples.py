"""The trees that the official scorers read: their rules restated, and runs that are killed."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks import harness
from tuna_jax.benchmarks import layouts, samples
from tuna_jax.benchmarks.layouts import BENCHMARKS, Seeds
from tuna_jax.benchmarks.samples import Request
from tuna_jax.config import UserError
from tuna_jax.data.media import MediaConfig, read_video
from tuna_jax.sample.output import read_info

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = pathlib.Path(__file__).parent / 'prompts'
ROWS = pathlib.Path(__file__).parent / 'rows'
FILES = {
  'geneval': 'geneval.jsonl', 'dpg': 'dpg', 'oneig': 'oneig.csv', 'imgedit': 'imgedit.json',
  'gedit': 'gedit.jsonl', 'vbench': 'vbench.json',
}  # fmt: skip
FEW = {'negative': '', 'guidance': 2.0, 'points': 2, 'shift': 3.0, 'solver': 'euler'}


def request(name, out, **changes):
  count = 2 if name == 'vbench' else None
  settings = {**FEW, **({'frames': 5, 'fps': 16} if name == 'vbench' else {})}
  sources = str(ROWS) if name in ('imgedit', 'gedit') else ''
  fixed = {'samples': count, 'size': '32', 'sources': sources, 'settings': settings}
  return Request(name, str(PROMPTS / FILES[name]), str(out), **{**fixed, **changes})


def planned(name, **changes):
  r = request(name, 'out', **{'samples': None, **changes})
  return BENCHMARKS[name].samples(r.prompts, r.seeds, r.samples, r.model, r.sources)


def quiet(line):
  del line


@pytest.fixture(scope='module')
def generator():
  return harness.tiny(MediaConfig())


def tree(out):
  """Every file below OUT/samples."""
  root = out / 'samples'
  return {p.relative_to(root).as_posix(): p for p in root.rglob('*') if p.is_file()}


# ---- names and seeds, without a model


def test_geneval_has_a_folder_per_row_with_its_metadata_and_four_pictures():
  rows = [json.loads(line) for line in (PROMPTS / FILES['geneval']).read_text().splitlines()]
  plan = planned('geneval')
  assert [s.path for s in plan[:4]] == [f'00000/samples/0000{i}.png' for i in range(4)]
  assert len(plan) == 4 * len(rows) and plan[-1].path == '00004/samples/00003.png'
  for sample in plan:
    ((path, content),) = sample.also.items()
    assert path.split('/') == [sample.path[:5], 'metadata.jsonl']
    assert json.loads(content()) == rows[int(sample.path[:5])]


def test_no_two_samples_of_a_benchmark_share_a_seed_unless_asked():
  for name in FILES:
    seeds = [seed for sample in planned(name) for seed in sample.seeds]
    assert len(set(seeds)) == len(seeds), name
  assert [s.seeds for s in planned('geneval')[4:6]] == [(1042,), (1043,)]
  same = planned('geneval', seeds=Seeds(42, same=True))
  assert [s.seeds[0] for s in same] == [42, 43, 44, 45] * 5


def test_grids_hold_four_seeds_and_take_the_names_of_their_prompts():
  assert {s.path: s.prompt for s in planned('dpg')} == {
    f'{p.stem}.png': p.read_text().strip() for p in (PROMPTS / 'dpg').iterdir()
  }
  assert [s.path for s in planned('oneig', model='mine')] == [
    *('object/mine/000.webp', 'human/mine/001.webp', 'anime/mine/002.webp'),
    *('text/mine/003.webp', 'reasoning/mine/004.webp'),
  ]
  assert {len(s.seeds) for name in ('dpg', 'oneig') for s in planned(name)} == {4}
  with pytest.raises(UserError, match='leave --samples out'):
    planned('dpg', samples=2)


def test_edits_are_named_by_their_keys():
  assert [s.path for s in planned('imgedit')] == ['9001.png', '9002.png', '9003.png']
  assert [s.path for s in planned('gedit', model='mine')] == [
    'mine/fullset/color_alter/en/inv1.png',
    'mine/fullset/color_alter/cn/inv1.png',
    'mine/fullset/subject-remove/en/inv2.png',
  ]


def test_clips_are_named_by_their_prompts_five_each_and_25_to_judge_flicker(tmp_path):
  counts = {}
  for sample in planned('vbench'):
    name, number = re.fullmatch(r'(.*)-(\d+)\.mp4', sample.path).groups()
    assert name == sample.prompt and int(number) == counts.get(name, 0)
    counts[name] = counts.get(name, 0) + 1
  assert counts.pop('a red circle, frozen in time') == 25 and set(counts.values()) == {5}
  rows = json.loads((PROMPTS / FILES['vbench']).read_text())
  twice = tmp_path / 'twice.json'  # a prompt of two entries is filmed once, with the more samples
  twice.write_text(json.dumps([*rows, {**rows[1], 'dimension': ['temporal_flickering']}]))
  plan = BENCHMARKS['vbench'].samples(twice, Seeds(), None, 'tuna', '')
  assert len(plan) == len({s.path for s in plan}) == 25 + 25 + 5 + 5


# ---- with a model


def test_shards_together_write_what_one_process_writes(generator, tmp_path):
  assert samples.write(generator, request('geneval', tmp_path, shard=(1, 2)), quiet)
  assert not samples.write(generator, request('geneval', tmp_path, shard=(0, 2)), quiet)
  written = tree(tmp_path)
  plan = planned('geneval')
  assert set(written) == {s.path for s in plan} | {f'{n:05}/metadata.jsonl' for n in range(5)}
  pictures = generator.image(
    [s.prompt for s in plan], size='32', seed=[s.seeds[0] for s in plan], **FEW
  )
  for sample, picture in zip(plan, pictures):
    path = written[sample.path]
    assert read_info(path)['seed'] == sample.seeds[0]
    difference = np.asarray(Image.open(path)).astype(int) - picture.pixels
    assert np.abs(difference).max() <= 1  # other batches round other sums


@pytest.mark.parametrize('name', ['dpg', 'oneig'])
def test_a_grid_is_read_left_to_right_and_down(generator, tmp_path, name):
  samples.write(generator, request(name, tmp_path), quiet)
  sample = planned(name)[0]
  grid = np.asarray(Image.open(tree(tmp_path)[sample.path]).convert('RGB')).astype(int)
  assert grid.shape == (64, 64, 3)
  cells = [grid[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]  # the scorers' order
  alone = generator.image([sample.prompt] * 4, size='32', seed=sample.seeds, **FEW)
  assert max(np.abs(c - p.pixels).max() for c, p in zip(cells, alone)) <= 1


def test_an_edit_of_gedit_has_the_size_of_the_source_beside_it(generator, tmp_path):
  samples.write(generator, request('gedit', tmp_path, size='48x32'), quiet)
  written = tree(tmp_path)
  for sample in planned('gedit'):
    result, source = (Image.open(written[p]) for p in (sample.path, *sample.also))
    original = Image.open(sample.source).convert('RGB')
    assert result.size == source.size == original.size
    assert np.array_equal(np.asarray(source), np.asarray(original))


def test_clips_lie_flat_and_alone_in_their_folder(generator, tmp_path):
  samples.write(generator, request('vbench', tmp_path), quiet)
  names = [p.name for p in (tmp_path / 'samples').iterdir()]
  assert len(names) == 8 and {pathlib.Path(n).suffix for n in names} == {'.mp4'}
  assert read_video(str(tmp_path / 'samples' / names[0]), '32', 5).shape == (5, 32, 32, 3)


def test_a_run_with_other_settings_is_refused_by_name(generator, tmp_path):
  begun = request('imgedit', tmp_path)
  samples.write(generator, begun, quiet)
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['prompts_sha256'] == layouts.digest(begun.prompts)
  assert manifest['weights_sha256'] == samples.weights_digest(generator)
  assert manifest['seeds'] == {'base': 42, 'same': False}
  for changes, says in (
    ({'seeds': Seeds(43)}, 'was begun with seeds='),
    ({'settings': {**FEW, 'points': 3}}, 'was begun with settings='),
    (
      {'prompts': str(ROOT / 'tests/benchmarks/prompts/gedit.jsonl'), 'benchmark': 'gedit'},
      'bench',
    ),
  ):
    changed = Request(**{**vars(begun), **changes})
    with pytest.raises(UserError, match=says):
      samples.write(generator, changed, quiet)


@pytest.mark.parametrize(
  'name', ['geneval', *(pytest.param(n, marks=pytest.mark.slow) for n in FILES if n != 'geneval')]
)
def test_a_killed_process_leaves_whole_files_and_the_next_fills_the_gap(generator, tmp_path, name):
  weights, out = tmp_path / 'weights', tmp_path / 'out'
  harness.save_tiny(weights)
  r = request(name, out)
  command = [
    *(sys.executable, '-m', 'tuna_jax.cli.main', 'bench-samples', name, '--batch_size=1'),
    *(f'--prompts={r.prompts}', f'--out={out}', f'--checkpoint={weights}', '--size=32'),
    *('--guidance=2', '--points=2'),
    *(['--samples=2', '--frames=5'] if name == 'vbench' else []),
    *([f'--sources={ROWS}'] if r.sources else []),
  ]
  process = subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, 'XLA_FLAGS': ''}
  )
  plan = {s.path: s for s in planned(name, samples=r.samples)}
  try:
    deadline = time.monotonic() + 300
    while process.poll() is None and len(plan.keys() & tree(out).keys()) < 2:
      assert time.monotonic() < deadline
      time.sleep(0.01)
  finally:
    process.kill()
  assert process.wait() == -signal.SIGKILL, 'it ended before it could be killed'
  before = {path: (p.read_bytes(), p.stat().st_mtime_ns) for path, p in tree(out).items()}
  assert 0 < len(plan.keys() & before.keys()) < len(plan)
  assert not samples.write(generator, r, quiet)
  after = tree(out)
  extras = {path for s in plan.values() for path in s.also}
  assert set(after) == set(plan) | extras
  for path, (content, written) in before.items():  # nothing was drawn twice
    assert (after[path].read_bytes(), after[path].stat().st_mtime_ns) == (content, written)
  for path, sample in plan.items():  # nothing is half a file, and every seed is its own
    if path.endswith('.mp4'):
      assert read_info(after[path])['seed'] == sample.seeds[0]
    else:
      Image.open(after[path]).load()
  assert not list((out / 'partial').glob('0-of-1'))


@pytest.mark.slow
def test_the_processes_of_a_run_share_the_files_and_leave_together(tmp_path):
  weights, out = tmp_path / 'weights', tmp_path / 'out'
  harness.save_tiny(weights)
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
  r = request('dpg', out)
  common = [
    *(sys.executable, '-m', 'tuna_jax.cli.main', 'bench-samples', 'dpg', '--size=32'),
    *(f'--prompts={r.prompts}', f'--out={out}', f'--checkpoint={weights}', '--points=2'),
    *(f'--coordinator=127.0.0.1:{port}', '--num_processes=2'),
  ]
  processes = [
    subprocess.Popen(
      [*common, f'--process_id={n}'],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'},
    )
    for n in range(2)
  ]
  said = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert '2 of 2 files to write' in said[0] and '1 of 1 files to write' in said[1]
  assert all('dpg: complete' in text for text in said)
  assert set(tree(out)) == {s.path for s in planned('dpg')}


def command(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'tuna_jax.cli.main', 'bench-samples', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_help_names_every_benchmark():
  said = command('--help').stdout
  assert '|'.join(BENCHMARKS) in said


@pytest.mark.parametrize(
  'arguments, says',
  [
    (['dpg', '--samples=2'], 'takes no --samples, which is for geneval and vbench'),
    (['geneval', '--shard=1'], "expected two numbers, as in '0/4'"),
    (['genval'], "nearest is 'geneval'"),
  ],
)
def test_a_mistake_is_one_line(arguments, says):
  given = ['--prompts=p', '--out=o', '--checkpoint=c']
  done = command(*arguments, *given)
  assert done.returncode == 2 and says in done.stderr and done.stderr.count('\n') == 1
