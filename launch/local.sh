#!/usr/bin/env bash
# Trains on this machine: CPU, one GPU or all of its GPUs, one TPU host.
#
#   bash launch/local.sh --name=NAME --out=DIR [flags] -- tuna-jax train --config=configs/stage1.py:tiny
#
#   --name=NAME      the run, a DNS label; it works in OUT/NAME
#   --out=DIR        a path or gs://bucket/path
#   --preset=NAME    compiler flags of launch/presets.sh (default none; gpu on a GPU box)
#   --processes=N    processes that meet over loopback (default 1, which drives every device of the machine)
#   --port=P         where they meet (default 8476)
#   --retries=N      runs again after a preemption (default 100)
#   --dry-run        print what would run
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/presets.sh"

name='' out='' preset=none processes=1 port=8476 retries=100
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --name=*) name=${1#*=} ;;
    --out=*) out=${1#*=} ;;
    --preset=*) preset=${1#*=} ;;
    --processes=*) processes=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --dry-run) DRY_RUN=1 ;;
    --) shift && break ;;
    *) die "unknown argument $1; --help lists the flags" ;;
  esac
  shift
done
check_name "$name"
check_number --processes "$processes"
check_number --port "$port"
worker_command "$name" "$out" "$preset" "$processes" "$retries" "$@"

cd "$ROOT"
if [[ $processes == 1 ]]; then
  attended "${WORKER[@]}"
  exit
fi
pass_signals_on
for ((i = 0; i < processes; i++)); do
  settings=("TUNA_COORDINATOR=127.0.0.1:$port" "TUNA_NUM_PROCESSES=$processes" "TUNA_PROCESS_ID=$i")
  if [[ $DRY_RUN == 1 ]]; then
    run env "${settings[@]}" "${WORKER[@]}"
  else
    echo "+ $(quoted env "${settings[@]}" "${WORKER[@]}")" >&2
    started env "${settings[@]}" "${WORKER[@]}"
  fi
done
worst=0
for child in "${CHILDREN[@]}"; do
  ended "$child" || worst=$?
done
exit "$worst"
