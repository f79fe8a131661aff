#!/usr/bin/env bash
# From nothing to a tiny Tuna that sees, draws, edits and films, with a report of pictures and scores.
#
#   bash launch/quickstart.sh [--fast] [--data=shapes|emoji] [--dry-run]
#
#   --fast        a few minutes, with lower targets
#   --data=NAME   shapes: the rendered world (default); emoji: real pictures, fetched by package name
#   --dry-run     print what would run
#   --help        this text
#
# The report is runs/quickstart/report/index.html. TUNA_EXTRAS=gpu installs and uses a GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

fast=0
data=shapes
for argument in "$@"; do
  case $argument in
    --help | -h) usage && exit 0 ;;
    --fast) fast=1 ;;
    --data=shapes | --data=emoji) data=${argument#*=} ;;
    --data=*) die "$argument: expected --data=shapes or --data=emoji" ;;
    --dry-run) DRY_RUN=1 ;;
    *) die "unknown argument $argument; --help lists the flags" ;;
  esac
done

ensure_venv ""
began=$SECONDS

# step TITLE COMMAND...: runs it and says how long it took.
step() {
  local title=$1 start=$SECONDS
  shift
  [[ $DRY_RUN == 1 ]] || echo "== $title"
  run "$@"
  [[ $DRY_RUN == 1 ]] || echo "== $title: $((SECONDS - start)) s"
}

runs=runs/quickstart
[[ $data == shapes ]] || runs=runs/quickstart-$data
[[ $fast == 0 ]] || runs=$runs-fast
recipe=()
[[ $fast == 0 ]] || recipe+=(--fast)

step "data" tuna-jax data "$data" --out="$runs/data"
step "VAE" tuna-jax pretrain --component=vae --workdir="$runs/vae" "${recipe[@]}"
step "decoder" tuna-jax pretrain --component=decoder --workdir="$runs/decoder" "${recipe[@]}"
for stage in 1 2 3; do
  step "stage $stage" tuna-jax train --config="configs/stage$stage.py:tiny" --workdir="$runs/stage$stage" "${recipe[@]}"
done
step "evaluation and report" tuna-jax evaluate --workdir="$runs" --report="$runs/report"

[[ $DRY_RUN == 1 ]] || echo "== quickstart: $((SECONDS - began)) s in all; open $runs/report/index.html"
