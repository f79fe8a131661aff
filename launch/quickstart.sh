#!/usr/bin/env bash
# From nothing to a tiny Tuna that sees, draws, edits and films, with a report of pictures and scores.
#
#   bash launch/quickstart.sh [--fast] [--design=NAME] [--data=shapes|emoji] [--dry-run]
#
#   --fast         a few minutes, with lower targets
#   --design=NAME  cascade: Tuna (default); late_fusion: Show-o2; pixel: Tuna-2;
#                  pixel_encoder: Tuna-R; decoupled: one encoder to read, latents to draw
#   --data=NAME    shapes: the rendered world (default); emoji: real pictures, fetched by package name
#   --dry-run      print what would run
#   --help         this text
#
# The report is runs/quickstart/report/index.html. TUNA_EXTRAS=gpu installs and uses a GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

fast=0
design=cascade
data=shapes
for argument in "$@"; do
  case $argument in
    --help | -h) usage && exit 0 ;;
    --fast) fast=1 ;;
    --data=shapes | --data=emoji) data=${argument#*=} ;;
    --data=*) die "$argument: expected --data=shapes or --data=emoji" ;;
    --design=cascade | --design=late_fusion | --design=pixel | --design=pixel_encoder | --design=decoupled)
      design=${argument#*=}
      ;;
    --design=*) die "$argument: expected --design=cascade, late_fusion, pixel, pixel_encoder or decoupled" ;;
    --dry-run) DRY_RUN=1 ;;
    *) die "unknown argument $argument; --help lists the flags" ;;
  esac
done

ensure_venv ""
# Two simulated devices use two cores better than one does; on a GPU this has no effect.
export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=2}"
began=$SECONDS

runs=runs/quickstart
[[ $data == shapes ]] || runs=$runs-$data
[[ $design == cascade ]] || runs=$runs-$design
targets=tiny
items=200
[[ $fast == 0 ]] || runs=$runs-fast targets=fast items=50
size=$targets
[[ $design == cascade ]] || size=$size-$design
parts=(vae decoder)
vae=(--config.vae="$runs/vae")
[[ $design != pixel* ]] || parts=(decoder) vae=()
times=()
own=()
[[ $data == shapes ]] || own+=(--config.length=192) # four questions per picture, in word pieces

# step TITLE COMMAND...: runs it, says how long it took and notes it for the report.
step() {
  local title=$1 start=$SECONDS seconds
  shift
  [[ $DRY_RUN == 1 ]] || echo "== $title"
  attended "$@"
  [[ $DRY_RUN == 1 ]] && return
  seconds=$((SECONDS - start))
  times+=("$(printf '%-24s %5d s' "$title" "$seconds")")
  echo "== $title: $seconds s"
  printf '{"step": "%s", "seconds": %d, "command": "%s"}\n' "$title" "$seconds" "$(quoted "$@")" >>"$runs/steps.jsonl"
}

# stage NUMBER FROM: the config of a stage around the run or part it starts from.
stage() {
  step "stage $1" tuna-jax train --config="configs/stage$1.py:$size" --workdir="$runs/stage$1" \
    --config.init_from="$runs/$2" "${vae[@]}" --config.tokenizer="$runs/decoder/tokenizer" \
    --config.data.mixture="$runs/data/mixture.json" "${own[@]}"
}

step "data" tuna-jax data "$data" --out="$runs/data"
for part in "${parts[@]}"; do
  step "$part" tuna-jax pretrain --component="$part" --config="configs/$part.py:$size" --workdir="$runs/$part" \
    --config.data.mixture="$runs/data/mixture.json"
done
stage 1 decoder
stage 2 stage1
stage 3 stage2
step "evaluation and report" tuna-jax evaluate --workdir="$runs" --report="$runs/report" --targets="$targets" --n="$items"

[[ $DRY_RUN == 1 ]] && exit
printf '== %s\n' "${times[@]}" "$(printf '%-24s %5d s' "quickstart in all" $((SECONDS - began)))"
echo "== the report: $runs/report/index.html"
