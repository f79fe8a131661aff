#!/usr/bin/env bash
# The table of compiler flags by chip, and the layout of slices.
#
#   bash launch/presets.sh          the whole table
#   bash launch/presets.sh v6e      the flags of one preset, one per line
#
# TPU flags go to LIBTPU_INIT_ARGS, GPU flags to XLA_FLAGS; launch/supervise.sh sets and prints them. A flag that a
# libtpu does not know ends the process at its start: `--preset=none` runs without any. Use the same flags for
# `tuna-jax plan`.
# shellcheck shell=bash

PRESETS=(none v5e v5p v6e tpu7x gpu)

# preset_variable NAME: the variable that the flags of a preset belong to.
preset_variable() {
  [[ $1 == gpu ]] && echo XLA_FLAGS || echo LIBTPU_INIT_ARGS
}

# preset_flags NAME: its flags, one per line.
preset_flags() {
  # Collectives that run beside compute: what FSDP lives on.
  local overlap=(
    --xla_tpu_enable_async_collective_fusion=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    --xla_tpu_overlap_compute_collective_tc=true
    --xla_enable_async_all_gather=true
  )
  # Gradients summed over the data axis (and over slices) as soon as they are there.
  local data_parallel=(
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    --xla_tpu_data_parallel_opt_different_sized_ops=true
  )
  case $1 in
    none) ;;
    v5e) printf '%s\n' "${overlap[@]}" "${data_parallel[@]}" ;;
    v5p) printf '%s\n' "${overlap[@]}" "${data_parallel[@]}" --xla_tpu_megacore_fusion_allow_ags=false ;;
    v6e) printf '%s\n' --xla_tpu_scoped_vmem_limit_kib=98304 "${overlap[@]}" "${data_parallel[@]}" ;;
    tpu7x) printf '%s\n' --xla_tpu_scoped_vmem_limit_kib=65536 "${overlap[@]}" "${data_parallel[@]}" ;;
    gpu) printf '%s\n' --xla_gpu_enable_latency_hiding_scheduler=true ;;
    *) return 1 ;;
  esac
}

# chip_of TYPE: the chip of an accelerator type, which is also the name of its preset.
chip_of() {
  case $1 in
    v5litepod-* | v5e-*) echo v5e ;;
    v5p-* | v6e-* | tpu7x-*) echo "${1%%-*}" ;;
    *) return 1 ;;
  esac
}

# hosts_of TYPE WHERE: processes of one slice. The number in a v5p or tpu7x name counts cores, two per chip. An eight-chip
# v5e or v6e slice is one machine as a TPU VM (WHERE=vm) and two nodes in GKE (WHERE=gke); others have 4 chips per host.
hosts_of() {
  local count=${1##*-} chips
  [[ $count =~ ^[1-9][0-9]*$ ]] || return 1
  case $(chip_of "$1") in
    v5e | v6e) chips=$count ;;
    v5p | tpu7x) chips=$((count / 2)) ;;
    *) return 1 ;;
  esac
  if [[ $2 == vm && $chips -le 8 && $1 != v5p-* ]] || [[ $chips -le 4 ]]; then
    echo 1
  else
    echo $((chips / 4))
  fi
}

# runtime_of CHIP: the system image of its TPU VMs.
runtime_of() {
  case $1 in
    v5e) echo v2-alpha-tpuv5-lite ;;
    v5p) echo v2-alpha-tpuv5 ;;
    v6e) echo v2-alpha-tpuv6e ;;
    *) return 1 ;;
  esac
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  if [[ $# == 1 && $1 != -* ]]; then
    preset_flags "$1" || {
      echo "presets.sh: unknown preset $1: expected one of ${PRESETS[*]}" >&2
      exit 2
    }
  else
    for preset in "${PRESETS[@]}"; do
      echo "$preset ($(preset_variable "$preset"))"
      preset_flags "$preset" | sed 's/^/  /'
    done
  fi
fi
