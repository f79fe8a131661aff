#!/usr/bin/env bash
# Runs one process of a run on this host, and runs it again after a preemption.
#
#   bash launch/supervise.sh [flags] -- tuna-jax train --config=configs/stage2.py:7b --workdir=gs://bucket/run
#
#   --preset=NAME    compiler flags of launch/presets.sh: none (default), v5e, v5p, v6e, tpu7x, gpu
#   --cache=DIR      compile cache, a path or gs://... (default: none)
#   --expect=N       processes of the whole run; with another number the run refuses to start and names the missing ones
#   --retries=N      how often to run again (default 100; 0: never)
#   --wait=SECONDS   pause before running again (default 10)
#   --numa           bind to the first NUMA node
#   --dry-run        print what would run
#
# The command runs again after exit code 75 (saved after a preemption, or other processes missing) and after death by
# a signal (jax ends every process when one is lost). Any other code is final. SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C are
# passed on, and nothing is run again: then this exits 75.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/presets.sh"

preset=none cache='' expect='' retries=100 pause=10 numa=0
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --preset=*) preset=${1#*=} ;;
    --cache=*) cache=${1#*=} ;;
    --expect=*) expect=${1#*=} && check_number --expect "$expect" ;;
    --retries=*) retries=${1#*=} ;;
    --wait=*) pause=${1#*=} ;;
    --numa) numa=1 ;;
    --dry-run) DRY_RUN=1 ;;
    --) shift && break ;;
    *) die "unknown argument $1; --help lists the flags" ;;
  esac
  shift
done
(($#)) || die "no command: put it after --"
[[ $retries =~ ^[0-9]+$ ]] || die "--retries=$retries: expected a number"
[[ $pause =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--wait=$pause: expected seconds"
flags=$(preset_flags "$preset") || die "--preset=$preset: expected one of ${PRESETS[*]}"

settings=()
if [[ -n $flags ]]; then
  variable=$(preset_variable "$preset")
  settings+=("$variable=${!variable:+${!variable} }${flags//$'\n'/ }")
fi
[[ -z $cache ]] || settings+=("JAX_COMPILATION_CACHE_DIR=$cache")
[[ -z $expect ]] || settings+=("TUNA_EXPECT_PROCESSES=$expect")
command=("$@")
[[ $numa == 0 ]] || command=(numactl --membind=0 --cpunodebind=0 "${command[@]}")

if [[ $DRY_RUN == 1 ]]; then
  quoted env "${settings[@]}" "${command[@]}"
  exit
fi
[[ ${#settings[@]} == 0 ]] || printf '%s\n' "${settings[@]/#/supervise.sh: }"
[[ ${#settings[@]} == 0 ]] || export "${settings[@]}"
[[ ! -d $ROOT/.venv/bin ]] || export PATH=$ROOT/.venv/bin:$PATH
hard=$(ulimit -H -n)
ulimit -n "$([[ $hard == unlimited || $hard -gt 1048576 ]] && echo 1048576 || echo "$hard")"

pass_signals_on
for ((attempt = 0; ; attempt++)); do
  started "${command[@]}"
  code=0
  ended "${CHILDREN[0]}" || code=$?
  CHILDREN=()
  if [[ -n $STOPPED ]]; then
    exit "$((code == 0 ? 0 : EXIT_RETRY))"
  elif ((code != EXIT_RETRY && code < 128)); then
    exit "$code"
  elif ((attempt >= retries)); then
    echo "$ME: exit code $code after $((attempt + 1)) attempts; giving up" >&2
    exit "$code"
  fi
  echo "$ME: exit code $code; attempt $((attempt + 2)) in $pause s" >&2
  started sleep "$pause"
  ended "${CHILDREN[0]}" || true
  CHILDREN=()
  [[ -z $STOPPED ]] || exit "$EXIT_RETRY"
done
