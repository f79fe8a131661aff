#!/usr/bin/env bash
# A run on GKE, one slice or several, through xpk or through Cluster Toolkit's gcluster.
#
#   bash launch/gke.sh xpk|gcluster --name=NAME --cluster=C --zone=Z --type=TYPE --image=IMAGE --out=gs://BUCKET/DIR \
#     [flags] -- tuna-jax train --config=configs/stage2.py:7b
#
#   --name=NAME        the run and its workload, a DNS label
#   --cluster=C  --zone=Z  --project=PROJECT
#   --type=TYPE        v5litepod-256, v5p-128, v6e-256, tpu7x-128, ...
#   --topology=4x4x8   with gcluster, where the type does not say it
#   --slices=N         slices (default 1)
#   --image=IMAGE      holds this checkout in /app, installed with `bash launch/install.sh tpu` (see launch/README.md)
#   --out=DIR          gs://bucket/path or a mounted path; the run works in OUT/NAME
#   --preset=NAME      compiler flags (default: those of the chip)
#   --retries=N        restarts after a preemption (default 100)
#   --dry-run          print what would run
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/presets.sh"

tool=${1:-}
case $tool in
  --help | -h) usage && exit 0 ;;
  xpk | gcluster) shift ;;
  *) die "unknown tool '$tool': expected xpk or gcluster" ;;
esac
name='' cluster='' zone='' project='' type='' topology='' slices=1 image='' out='' preset='' retries=100
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --name=*) name=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --slices=*) slices=${1#*=} && check_number --slices "$slices" ;;
    --image=*) image=${1#*=} ;;
    --out=*) out=${1#*=} ;;
    --preset=*) preset=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --dry-run) DRY_RUN=1 ;;
    --) shift && break ;;
    *) die "unknown argument $1; --help lists the flags" ;;
  esac
  shift
done
check_name "$name"
[[ -n $cluster ]] || die "--cluster is required"
[[ -n $zone ]] || die "--zone is required"
[[ -n $image ]] || die "--image is required"
chip=$(chip_of "$type") || die "--type=$type: expected v5litepod-N, v5p-N, v6e-N or tpu7x-N"
hosts=$(hosts_of "$type" gke) || die "--type=$type: expected a number of chips or cores at the end"
worker_command "$name" "$out" "${preset:-$chip}" "$((hosts * slices))" 3 "$@"
command="cd /app && exec $(quoted "${WORKER[@]}")"

# Inside a pod the supervisor retries little: a lost host is a new pod, which the JobSet starts.
case $tool in
  xpk)
    [[ -z $topology ]] || die "--topology: xpk takes it from --type"
    attended xpk workload create "--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"} "--workload=$name" \
      "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image" "--max-restarts=$retries" \
      --termination-grace-period-seconds=120 "--command=$command"
    ;;
  gcluster)
    attended gcluster job submit "--cluster=$cluster" "--location=$zone" ${project:+"--project=$project"} "--name=$name" \
      "--compute-type=$type" ${topology:+"--topology=$topology"} "--num-slices=$slices" "--image=$image" \
      "--restarts=$retries" --grace-period=120s "--command=$command"
    ;;
esac
