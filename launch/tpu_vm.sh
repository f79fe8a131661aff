#!/usr/bin/env bash
# A run on Cloud TPU VMs, one slice or several, through queued resources (gcloud).
#
#   bash launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE --type=TYPE --out=gs://BUCKET/DIR [flags] [-- COMMAND]
#
#   up        create, wait, install and run; after a preemption, from the top (needs COMMAND)
#   create    ask for the queued resource        wait      until it is ACTIVE
#   install   send this checkout to every host   run       COMMAND on every host of every slice
#   stop      SIGTERM to the run: it saves       delete    give everything back
#
#   --name=NAME        the run and its machines, a DNS label
#   --zone=ZONE  --project=PROJECT
#   --type=TYPE        v5litepod-256, v5p-128, v6e-256, ... (of up, create and run)
#   --slices=N         slices (default 1)
#   --out=DIR          gs://bucket/path, or a path that every host mounts; the run works in OUT/NAME
#   --provision=KIND   on-demand (default), spot or reserved
#   --valid-for=6h     how long the request may wait
#   --preset=NAME      compiler flags (default: those of the chip)
#   --retries=N        runs again after a preemption (default 100)
#   --dry-run          print what would run
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/presets.sh"

action=${1:-}
case $action in
  --help | -h) usage && exit 0 ;;
  up | create | wait | install | run | stop | delete) shift ;;
  *) die "unknown action '$action': expected up, create, wait, install, run, stop or delete" ;;
esac
name='' zone='' project='' type='' slices=1 out='' provision=on-demand valid='' preset='' retries=100
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} && check_number --slices "$slices" ;;
    --out=*) out=${1#*=} ;;
    --provision=*) provision=${1#*=} ;;
    --valid-for=*) valid=${1#*=} ;;
    --preset=*) preset=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --dry-run) DRY_RUN=1 ;;
    --) shift && break ;;
    *) die "unknown argument $1; --help lists the flags" ;;
  esac
  shift
done
check_name "$name"
[[ -n $zone ]] || die "--zone is required"
if [[ $action == up || $action == create || $action == run ]]; then
  chip=$(chip_of "$type") || die "--type=$type: expected v5litepod-N, v5p-N or v6e-N"
  hosts=$(hosts_of "$type" vm) || die "--type=$type: expected a number of chips or cores at the end"
  runtime=$(runtime_of "$chip") || die "--type=$type: has no TPU VM image; launch/gke.sh runs it"
fi
case $provision in
  on-demand) how=() ;;
  spot | reserved) how=("--$provision") ;;
  *) die "--provision=$provision: expected on-demand, spot or reserved" ;;
esac
place=("--zone=$zone" ${project:+"--project=$project"})
if [[ $slices == 1 ]]; then
  nodes=("$name") shape=("--node-id=$name")
else
  nodes=() shape=("--node-count=$slices" "--node-prefix=$name")
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
if [[ $action == up || $action == run ]]; then
  worker_command "$name" "$out" "${preset:-$chip}" "$((hosts * slices))" "$retries" "$@"
fi
cd "$ROOT"
queue=(gcloud compute tpus queued-resources)

# everywhere COMMAND: on every host of every slice at once; the worst exit code.
everywhere() {
  local node pids=() pid code=0
  for node in "${nodes[@]}"; do
    if [[ $DRY_RUN == 1 ]]; then
      run gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all "--command=$1"
    else
      echo "+ gcloud compute tpus tpu-vm ssh $node: $1" >&2
      started gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all "--command=$1"
      pids+=("${CHILDREN[-1]}")
    fi
  done
  for pid in "${pids[@]}"; do ended "$pid" || code=$?; done
  return "$code"
}

# A signal is passed on to the supervisors on the hosts; the connections of the run end with them.
stop() { everywhere "pkill -TERM -f [l]aunch/supervise.sh"; }
pass_on() {
  [[ -z $STOPPED ]] || return 0
  STOPPED=$1
  stop &
}

state() {
  "${queue[@]}" describe "$name" "${place[@]}" '--format=value(state.state)'
}

create() {
  run "${queue[@]}" create "$name" "${place[@]}" "--accelerator-type=$type" "--runtime-version=$runtime" "${shape[@]}" \
    "${how[@]}" ${valid:+"--valid-until-duration=$valid"}
}

wait_active() {
  local now
  if [[ $DRY_RUN == 1 ]]; then
    run "${queue[@]}" describe "$name" "${place[@]}" '--format=value(state.state)'
    return
  fi
  until now=$(state) && [[ $now == ACTIVE ]]; do
    case $now in FAILED | SUSPENDED | SUSPENDING | DELETING) echo "$ME: $name is $now" >&2 && return 1 ;; esac
    echo "$ME: $name is ${now:-unknown}; looking again in 30 s" >&2
    sleep 30 &
    wait $! || { kill $! && return "$EXIT_RETRY"; }
  done
}

install_all() {
  local archive=/tmp/$name.tar.gz node
  run git archive --format=tar.gz "--output=$archive" HEAD || return
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:$archive" "${place[@]}" --worker=all || return
  done
  everywhere "mkdir -p tuna_jax && tar -xzf $archive -C tuna_jax && bash tuna_jax/launch/install.sh tpu"
}

run_all() { everywhere "cd tuna_jax && $(quoted "${WORKER[@]}")"; }
delete() { run "${queue[@]}" delete "$name" "${place[@]}" --force --quiet; }

[[ $action != up && $action != run ]] || pass_signals_on
case $action in
  create) create ;;
  wait) wait_active ;;
  install) install_all ;;
  run) run_all ;;
  stop) stop ;;
  delete) delete ;;
  up)
    for ((attempt = 0; ; attempt++)); do
      code=0
      { create && wait_active && install_all && run_all; } || code=$?
      [[ $code != 0 ]] || exit 0
      [[ -z $STOPPED ]] || exit "$EXIT_RETRY"
      # The supervisors on the hosts retry what they can; what is left is a slice that was taken away.
      if [[ $(state || true) == ACTIVE ]]; then
        echo "$ME: the run failed (exit code $code) and its machines are well; look at the log, then: $ME run" >&2
        exit 1
      fi
      ((attempt < retries)) || die "gave up after $((attempt + 1)) attempts"
      echo "$ME: $name was preempted; asking again" >&2
      delete || true
    done
    ;;
esac
