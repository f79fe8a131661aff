"""The launch scripts: what they would run, word for word, and what they do when a process falls."""

import importlib.util
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
GOLDEN = pathlib.Path(__file__).parent / 'golden'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))

RUN = ('--', 'tuna-jax', 'train', '--config=configs/stage2.py:7b', '--config.note=it is mine')
BUCKET = '--out=gs://bucket/runs'
POD = ('--name=big-run', '--zone=us-east5-b', BUCKET)
GKE = (*POD, '--cluster=pods', '--image=gcr.io/me/tuna:1')

CASES = {
  'quickstart': ('quickstart.sh', '--dry-run'),
  'quickstart_fast_emoji': ('quickstart.sh', '--fast', '--data=emoji', '--dry-run'),
  'quickstart_late_fusion': ('quickstart.sh', '--design=late_fusion', '--dry-run'),
  'quickstart_fast_pixel': ('quickstart.sh', '--fast', '--design=pixel', '--dry-run'),
  'supervise': ('supervise.sh', '--preset=v6e', '--cache=gs://b/c', '--numa', '--dry-run', *RUN),
  'local': ('local.sh', '--name=mine', '--out=runs', '--preset=gpu', '--dry-run', *RUN),
  'local_two_processes': (
    'local.sh', '--name=mine', '--out=runs', '--processes=2', '--dry-run', '--',
    'tuna-jax', 'train',
  ),
  'tpu_vm_up': ('tpu_vm.sh', 'up', *POD, '--type=v6e-256', '--provision=spot', '--dry-run', *RUN),
  'tpu_vm_slices': (
    'tpu_vm.sh', 'up', *POD, '--type=v5litepod-256', '--slices=2', '--project=p', '--valid-for=6h',
    '--provision=reserved', '--dry-run', *RUN,
  ),
  'tpu_vm_stop': ('tpu_vm.sh', 'stop', *POD, '--type=v5p-128', '--dry-run'),
  'tpu_vm_delete': ('tpu_vm.sh', 'delete', *POD, '--dry-run'),
  'gke_xpk': ('gke.sh', 'xpk', *GKE, '--type=v5p-256', '--dry-run', *RUN),
  'gke_xpk_slices': ('gke.sh', 'xpk', *GKE, '--type=v6e-256', '--slices=4', '--dry-run', *RUN),
  'gke_gcluster': (
    'gke.sh', 'gcluster', *GKE, '--type=tpu7x-128', '--topology=4x4x4', '--project=p',
    '--dry-run', *RUN,
  ),
  'slurm': ('slurm.sh', '--name=mine', '--out=/shared/runs', '--nodes=4', '--dry-run', *RUN),
  'slurm_partition': (
    'slurm.sh', '--name=mine', BUCKET, '--gpus=4', '--partition=h100', '--account=lab',
    '--time=4:00:00', '--dry-run', *RUN,
  ),
  'install': ('install.sh', '--dry-run', 'tpu'),
  'presets': ('presets.sh',),
}  # fmt: skip


def launch(script, *arguments, **environment):
  clean = {k: v for k, v in os.environ.items() if not k.startswith('TUNA_') and k != 'XLA_FLAGS'}
  return subprocess.run(
    ['bash', str(LAUNCH / script), *arguments],
    cwd='/',
    text=True,
    capture_output=True,
    check=False,
    timeout=60,
    env=clean | environment,
  )


def test_a_dry_run_of_the_tests_runs_none():
  done = launch('test.sh', '--live', '--browser', '--dry-run', 'tests/cli', TUNA_TEST_WORKERS='3')
  assert (done.returncode, done.stderr) == (0, '')
  assert (
    done.stdout.splitlines()[-1]
    == 'python -m pytest -q -n 3 --dist worksteal --live --browser tests/cli'
  )


def test_lint_comes_before_the_tests():
  said = launch('test.sh', '--lint', '--dry-run').stdout.splitlines()
  assert [line.split()[:2] for line in said[-3:-1]] == [['ruff', 'check'], ['ruff', 'format']]
  assert said[-1].startswith('python -m pytest')


@pytest.mark.parametrize('case', CASES)
def test_a_dry_run_prints_exactly_what_would_run(case):
  done = launch(*CASES[case])
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == (GOLDEN / f'{case}.txt').read_text(), (
    'if the change is meant: python tests/launch/test_launch.py writes the golden files anew'
  )


def test_every_golden_file_belongs_to_a_case():
  assert {path.stem for path in GOLDEN.glob('*.txt')} == set(CASES)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
  subprocess.run(['bash', '-n', str(script)], check=True)


@pytest.mark.parametrize(
  'script', [p.name for p in SCRIPTS if p.name not in ('common.sh', 'presets.sh')]
)
def test_help_is_the_text_at_the_head_of_the_script(script):
  done = launch(script, '--help')
  assert (done.returncode, done.stderr) == (0, '')
  assert f'bash launch/{script}' in done.stdout and 'set -euo' not in done.stdout


@pytest.mark.parametrize(('arguments', 'message'), [
  (('quickstart.sh', '--fats'), 'unknown argument --fats'),
  (('quickstart.sh', '--data=cats'), 'expected --data=shapes or --data=emoji'),
  (('quickstart.sh', '--design=late'), 'expected --design=cascade, late_fusion, pixel,'),
  (('local.sh', '--name=Mine', '--out=x', *RUN), '--name=Mine: not a DNS label'),
  (('local.sh', '--name=a_b', '--out=x', *RUN), '--name=a_b: not a DNS label'),
  (('local.sh', '--name=a-', '--out=x', *RUN), '--name=a-: not a DNS label'),
  (('local.sh', f'--name={"a" * 64}', '--out=x', *RUN), 'not a DNS label'),
  (('local.sh', '--out=x', *RUN), '--name is required'),
  (('local.sh', '--name=a', *RUN), '--out is required'),
  (('local.sh', '--name=a', '--out=x'), 'no command: put it after --'),
  (('local.sh', '--name=a', '--out=x', *RUN, '--workdir=y'), 'leave --workdir out'),
  (('local.sh', '--name=a', '--out=x', '--preset=v6', *RUN), '--preset=v6: expected one of none'),
  (('local.sh', '--name=a', '--out=x', '--processes=two', *RUN), '--processes=two: expected a'),
  (('tpu_vm.sh', 'fly'), "unknown action 'fly'"),
  (('tpu_vm.sh', 'up', *POD, '--type=v9-8', *RUN), '--type=v9-8: expected v5litepod-N'),
  (('tpu_vm.sh', 'up', *POD, '--type=tpu7x-64', *RUN), 'launch/gke.sh runs it'),
  (('tpu_vm.sh', 'up', *POD, '--type=v6e-8', '--provision=free', *RUN), 'expected on-demand, spot'),
  (('gke.sh', 'kubectl'), "unknown tool 'kubectl'"),
  (('gke.sh', 'xpk', *POD, '--type=v6e-8', *RUN), '--cluster is required'),
  (('slurm.sh', '--name=a', '--out=x', '--nodes=0', *RUN), '--nodes=0: expected a positive'),
  (('supervise.sh', '--preset=none'), 'no command'),
  (('presets.sh', 'v7'), 'unknown preset v7'),
])  # fmt: skip
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, message):
  done = launch(*arguments)
  assert (done.returncode, done.stdout) == (2, '')
  assert message in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize(('kind', 'where', 'hosts'), [
  ('v5litepod-4', 'vm', 1), ('v5litepod-8', 'vm', 1), ('v5litepod-8', 'gke', 2),
  ('v5litepod-256', 'vm', 64), ('v6e-8', 'vm', 1), ('v6e-256', 'gke', 64),
  ('v5p-8', 'vm', 1), ('v5p-16', 'vm', 2), ('v5p-128', 'gke', 16),
  ('tpu7x-8', 'gke', 1), ('tpu7x-128', 'gke', 16),
])  # fmt: skip
def test_a_slice_has_as_many_hosts_as_its_name_says(kind, where, hosts):
  script = f'source {LAUNCH}/presets.sh; hosts_of {kind} {where}'
  assert subprocess.check_output(['bash', '-c', script], text=True) == f'{hosts}\n'


def supervise(*arguments, **environment):
  return launch('supervise.sh', '--wait=0.1', *arguments, **environment)


def falls(tmp_path, *codes) -> tuple[str, ...]:
  """A command that exits with one code after another and counts its lives in tmp_path/lives."""
  script = tmp_path / 'falls.sh'
  script.write_text(
    f'lives={tmp_path}/lives; echo life >> $lives; codes=({" ".join(map(str, codes))})\n'
    'code=${codes[$(($(wc -l < $lives) - 1))]}\n'
    'if [[ $code == KILL ]]; then kill -KILL $$; fi\nexit $code\n'
  )
  return ('--', 'bash', str(script))


def lives(tmp_path) -> int:
  return len((tmp_path / 'lives').read_text().splitlines())


def test_the_supervisor_runs_again_after_a_preemption_and_a_kill(tmp_path):
  assert supervise(*falls(tmp_path, 75, 'KILL', 0)).returncode == 0
  assert lives(tmp_path) == 3


@pytest.mark.parametrize('code', [1, 2, 3])
def test_the_supervisor_does_not_repeat_an_error(tmp_path, code):
  assert supervise(*falls(tmp_path, code, 0)).returncode == code
  assert lives(tmp_path) == 1


def test_the_supervisor_gives_up_after_its_retries(tmp_path):
  done = supervise('--retries=2', *falls(tmp_path, 75, 75, 75, 0))
  assert done.returncode == 75 and 'giving up' in done.stderr
  assert lives(tmp_path) == 3


def test_the_supervisor_sets_flags_cache_and_count_and_prints_them():
  show = (
    '--',
    'bash',
    '-c',
    'echo "$LIBTPU_INIT_ARGS|$JAX_COMPILATION_CACHE_DIR|$TUNA_EXPECT_PROCESSES"',
  )
  done = supervise(
    '--preset=v5e', '--cache=gs://b/c', '--expect=4', *show, LIBTPU_INIT_ARGS='--mine=1'
  )
  last = done.stdout.splitlines()[-1]
  assert last.startswith('--mine=1 --xla_tpu_enable_async') and last.endswith('|gs://b/c|4')
  assert 'supervise.sh: JAX_COMPILATION_CACHE_DIR=gs://b/c\n' in done.stdout


def saves(tmp_path, code=75) -> list[str]:
  """A command that saves for half a second when it is told to stop, and exits with `code`."""
  child = tmp_path / 'child.py'
  child.write_text(
    'import os, pathlib, signal, sys, time\n'
    'def save(*_):\n'
    '  time.sleep(0.5)\n'
    f'  with open({str(tmp_path / "saved")!r}, "a") as f: f.write("yes\\n")\n'
    f'  sys.exit({code})\n'
    'signal.signal(signal.SIGTERM, save)\n'
    f'with open({str(tmp_path / "lives")!r}, "a") as f: f.write(f"{{os.getpid()}}\\n")\n'
    'time.sleep(30)\n'
  )
  return [sys.executable, str(child)]


def stopped(tmp_path, sent, script, *arguments, count=1, **environment) -> int:
  """The exit code of a script that gets a signal once `count` commands run; none outlives it."""
  # A shell that starts tests in the background has them ignore Ctrl-C, and bash cannot trap what it
  # ignores.
  ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
    ['bash', str(LAUNCH / script), *arguments], cwd=tmp_path, env=os.environ | environment
  )
  signal.signal(signal.SIGINT, ignored)
  while not (tmp_path / 'lives').exists() or lives(tmp_path) < count:
    time.sleep(0.05)
  process.send_signal(sent)
  code = process.wait(timeout=20)
  assert (tmp_path / 'saved').read_text() == 'yes\n' * count and lives(tmp_path) == count
  for number in (tmp_path / 'lives').read_text().split():
    assert not os.path.exists(f'/proc/{number}')
  return code


@pytest.mark.parametrize(('sent', 'child_code', 'code'), [
  (signal.SIGTERM, 75, 75), (signal.SIGTERM, 0, 0), (signal.SIGINT, 75, 75),
  (signal.SIGHUP, 75, 75), (signal.SIGUSR1, 75, 75)])  # fmt: skip
def test_a_signal_lets_the_child_save_and_starts_nothing_again(tmp_path, sent, child_code, code):
  assert stopped(tmp_path, sent, 'supervise.sh', '--', *saves(tmp_path, child_code)) == code


@pytest.mark.parametrize(('sent', 'processes'), [
  (signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 2)])  # fmt: skip
def test_a_signal_to_a_local_run_reaches_every_process(tmp_path, sent, processes):
  flags = ('--name=x', f'--out={tmp_path}', f'--processes={processes}')
  found = stopped(tmp_path, sent, 'local.sh', *flags, '--', *saves(tmp_path), count=processes)
  assert found == 75


def test_a_signal_to_the_quickstart_reaches_the_verb_that_runs(tmp_path):
  (tmp_path / 'venv' / 'bin').mkdir(parents=True)
  (tmp_path / 'venv' / 'bin' / 'python').symlink_to(sys.executable)
  verb = tmp_path / 'venv' / 'bin' / 'tuna-jax'
  verb.write_text(f'#!/bin/sh\nexec {" ".join(saves(tmp_path))}\n')
  verb.chmod(0o755)
  (tmp_path / 'venv' / '.tuna-installed-').touch()
  found = stopped(tmp_path, signal.SIGTERM, 'quickstart.sh', TUNA_VENV=str(tmp_path / 'venv'))
  assert found == 75


def test_a_signal_to_a_run_on_tpu_vms_is_sent_to_its_hosts(tmp_path):
  gcloud = tmp_path / 'gcloud'  # a host that runs one command, and kills it when asked to
  gcloud.write_text(
    f'#!/bin/sh\ncase "$*" in *pkill*) kill -TERM $(cat {tmp_path}/lives);; '
    f'*) exec {" ".join(saves(tmp_path))};; esac\n'
  )
  gcloud.chmod(0o755)
  flags = ('--name=x', '--zone=z', '--type=v6e-8', BUCKET, *RUN)
  path = f'{tmp_path}:{os.environ["PATH"]}'
  assert stopped(tmp_path, signal.SIGTERM, 'tpu_vm.sh', 'run', *flags, PATH=path) == 75


@pytest.mark.slow
def test_two_local_processes_train_two_steps_as_one_process_does(tmp_path):
  from tests import shrink  # here: this file also runs as a script

  config = shrink.stage('stage1', steps=2, checkpoint_every=10**6)
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
  losses = []
  for processes in (2, 1):
    environment = {'XLA_FLAGS': shrink.flags(2 // processes)}
    done = subprocess.run(
      [
        'bash', str(LAUNCH / 'local.sh'), f'--name=by-{processes}', f'--out={tmp_path}',
        f'--port={port}', f'--processes={processes}', '--retries=0', '--',
        sys.executable, '-m', 'tuna_jax.cli.train', '--config=configs/stage1.py:tiny',
        *shrink.overrides(config, shrink.real('stage1')),
      ],
      capture_output=True, text=True, check=False, timeout=300, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / f'by-{processes}' / 'metrics.jsonl').read_text().splitlines()
    losses.append([json.loads(line)['loss'] for line in lines])
    assert (tmp_path / f'by-{processes}' / 'checkpoints' / '2').is_dir()
  assert len(losses[0]) == 2
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the same rows, summed in another order


def test_every_gpu_flag_is_known_to_this_jaxlib():
  flags = launch('presets.sh', 'gpu').stdout.split()
  code = 'import jax; jax.devices()'
  done = subprocess.run(
    [sys.executable, '-c', code],
    check=False,
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)},
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='the tpu extra is not installed'
)
@pytest.mark.parametrize(('preset', 'topology'), [
  ('v5e', 'v5e:2x2'), ('v5p', 'v5p:2x2x1'), ('v6e', 'v6e:2x2'),
  ('tpu7x', 'tpu7x:2x2x1')])  # fmt: skip
def test_every_tpu_flag_is_known_to_this_libtpu(preset, topology):
  code = f"from tuna_jax.chips import devices_of; print(devices_of('{topology}')[0].device_kind)"
  flags = ' '.join(launch('presets.sh', preset).stdout.split())
  done = subprocess.run(
    [sys.executable, '-c', code],
    check=False,
    capture_output=True,
    text=True,
    cwd=LAUNCH.parent,
    env=os.environ
    | {'JAX_PLATFORMS': 'cpu', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'LIBTPU_INIT_ARGS': flags},
  )
  assert done.returncode == 0 and 'TPU' in done.stdout, done.stderr


def test_readme_names_every_script():
  readme = (LAUNCH / 'README.md').read_text()
  for script in SCRIPTS:
    assert re.search(rf'\b{re.escape(script.name)}\b', readme), script.name


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  for path in GOLDEN.glob('*.txt'):
    path.unlink()
  for case, command in CASES.items():
    (GOLDEN / f'{case}.txt').write_text(launch(*command).stdout)
