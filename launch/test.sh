#!/usr/bin/env bash
# Makes .venv, installs tuna_jax with its test extras, and runs the whole test suite.
#
#   bash launch/test.sh [--lint] [--live] [--browser] [--slow] [PYTEST ARGUMENTS]
#
#   --lint     first checks the sources with ruff: rules and formatting
#   --live     installs the parity extra (torch, transformers, diffusers) and lmms-eval, and runs
#              the tests against them too
#   --browser  installs the browser extra and, with apt-get, Chromium, and runs the tests of the page
#   --slow     runs the tests marked slow too
#   --dry-run  print what would run
#   --help     this text
#
# Everything else goes to pytest: `bash launch/test.sh tests/cli -k help`.
# TUNA_TEST_WORKERS: processes to spread the tests over (default: the cores, at most 4).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

# What lmms-eval needs for the tasks that the tests run. It declares some fifty packages more, and
# av below 16.
LMMS_EVAL=lmms-eval==0.7.3
LMMS_EVAL_NEEDS=(accelerate datasets evaluate loguru sacrebleu pytz tenacity pytablewriter
  'filelock<4.3' pandas jinja2 pydantic)

extras=(test)
live=0
arguments=()
lint=0
browser=0
for argument in "$@"; do
  case $argument in
    --help | -h) usage && exit 0 ;;
    --dry-run) DRY_RUN=1 ;;
    --lint) lint=1 ;;
    --live) extras+=(parity) && live=1 && arguments+=(--live) ;;
    --browser) extras+=(browser) && browser=1 && arguments+=(--browser) ;;
    *) arguments+=("$argument") ;;
  esac
done

cores=$(getconf _NPROCESSORS_ONLN)
workers=${TUNA_TEST_WORKERS:-$((cores < 4 ? cores : 4))}
paths=0
for argument in "${arguments[@]}"; do
  [[ -e ${argument%%::*} ]] && paths=1
done
[[ $paths == 1 ]] || arguments+=(tests)

installing='' # the process that installs Chromium while pip is at work
if [[ $browser == 1 ]] && ! command -v chromium >/dev/null; then
  command -v apt-get >/dev/null || die "--browser: no chromium, and no apt-get to install it; install it yourself"
  sudo=$([[ $(id -u) == 0 ]] || echo sudo)
  {
    run $sudo apt-get update -qq
    run $sudo apt-get install -y -qq --no-install-recommends chromium >/dev/null
  } &
  installing=$!
fi
ensure_venv "${extras[@]}"
if [[ $lint == 1 ]]; then
  run ruff check .
  run ruff format --check .
fi
if [[ $live == 1 ]] && ! python -c 'import importlib.metadata as m; m.version("lmms-eval")' 2>/dev/null; then
  run python -m pip install --quiet --disable-pip-version-check --no-compile "${LMMS_EVAL_NEEDS[@]}"
  run python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps "$LMMS_EVAL"
fi
if [[ -n $installing ]]; then
  wait "$installing" || die "--browser: apt-get could not install chromium; install it yourself"
fi
export JAX_PLATFORMS=cpu
attended python -m pytest -q -n "$workers" --dist worksteal "${arguments[@]}"
