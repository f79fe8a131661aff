"""The script for a GPU runs here with tiny shapes: its tables, its verdict and its commands."""

import re

import pytest

from tuna_jax.models.flash import flash_attention
from tuna_jax.tools import gpu_check


def test_the_kernel_is_compared_timed_and_judged(capsys):
  assert gpu_check.main(['--small', '--parts=exact,speed,blocks']) == 0
  said = capsys.readouterr().out
  assert 'python -m tuna_jax.tools.gpu_check --small' in said
  for form in ('flash', 'chunked', 'xla'):
    assert re.search(rf'small +24 bfloat16 +{form}( +\d\.\de-\d+){{4}}\n', said), form
    assert re.search(rf'small +32 +{form} +[\d.]+ +[\d.]+ +[\d.]+x\n', said), form
  assert said.count(' ms\n') == 2 and said.endswith('exact: good, speed: good, blocks: good\n')


def test_a_kernel_that_is_wrong_or_refused_is_not_good(capsys, monkeypatch):
  def wrong(q, k, v, limit, *segments, **how):
    return flash_attention(q, k, v, limit - 1, *segments, **how)

  def refuses(*arguments, **how):
    raise NotImplementedError('no such card')

  for kernel, word in ((wrong, 'above 0.02'), (refuses, 'refused: no such card')):
    monkeypatch.setattr(gpu_check, 'flash_attention', kernel)
    assert gpu_check.main(['--small', '--parts=exact']) == 1
    said = capsys.readouterr().out
    assert word in said and said.endswith('exact: NOT GOOD\n')


def test_without_a_gpu_the_full_shapes_are_refused(capsys):
  with pytest.raises(SystemExit):
    gpu_check.main([])
  assert '--small tests the script on a CPU' in capsys.readouterr().err


@pytest.mark.slow
def test_its_commands_run(capfd):
  assert gpu_check.main(['--small', '--parts=bench,train']) == 0
  said = capfd.readouterr().out
  assert 'tokens/s' in said and said.endswith('bench: good, train: good\n')
