#!/usr/bin/env bash
# A run on the GPUs of a Slurm cluster: one process per GPU, requeued after a preemption or at the time limit.
#
#   bash launch/slurm.sh --name=NAME --out=DIR --nodes=N [flags] -- tuna-jax train --config=configs/stage2.py:7b
#
#   --name=NAME        the run and its job, a DNS label; it works in OUT/NAME
#   --out=DIR          a path that every node mounts, or gs://bucket/path
#   --nodes=N          nodes (default 1)
#   --gpus=N           GPUs a node (default 8)
#   --cpus=N           CPUs per GPU (default 12)
#   --time=T           limit of one job (default 24:00:00); the run is told 3 minutes before and goes on in the next
#   --partition=P  --account=A
#   --preset=NAME      compiler flags (default gpu)
#   --retries=N        runs again within a job (default 3)
#   --dry-run          print the batch script instead of submitting it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/presets.sh"

name='' out='' nodes=1 gpus=8 cpus=12 limit=24:00:00 partition='' account='' preset=gpu retries=3
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --name=*) name=${1#*=} ;;
    --out=*) out=${1#*=} ;;
    --nodes=*) nodes=${1#*=} && check_number --nodes "$nodes" ;;
    --gpus=*) gpus=${1#*=} && check_number --gpus "$gpus" ;;
    --cpus=*) cpus=${1#*=} && check_number --cpus "$cpus" ;;
    --time=*) limit=${1#*=} ;;
    --partition=*) partition=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --preset=*) preset=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --dry-run) DRY_RUN=1 ;;
    --) shift && break ;;
    *) die "unknown argument $1; --help lists the flags" ;;
  esac
  shift
done
check_name "$name"
worker_command "$name" "$out" "$preset" "$((nodes * gpus))" "$retries" "$@"
where=$ROOT
[[ $DRY_RUN == 0 ]] || where="\$TUNA_JAX" # a golden file must not hold a path of this machine

batch() {
  cat <<BATCH
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$limit
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$name-%j.log
#SBATCH --signal=B:TERM@180

cd "$where"
srun --kill-on-bad-exit=0 $(quoted "${WORKER[@]}") &
step=\$!
stopping=0
trap 'stopping=1; kill -TERM \$step' TERM
code=0
wait \$step || code=\$?
while kill -0 \$step 2>/dev/null; do
  code=0
  wait \$step || code=\$?
done
if [[ \$code == $EXIT_RETRY || (\$stopping == 1 && \$code != 0) ]]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
BATCH
}

if [[ $DRY_RUN == 1 ]]; then
  batch
else
  batch | run sbatch
fi
