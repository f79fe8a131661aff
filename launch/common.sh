# Shared by the scripts of this folder; source it. Needs bash 4 and nothing else.
# shellcheck shell=bash

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ME="$(basename "$0")"
DRY_RUN=${DRY_RUN:-0}
EXIT_USAGE=2
# shellcheck disable=SC2034  # for the scripts that source this
EXIT_RETRY=75 # tuna_jax.cli.EXIT_RETRY: preempted and saved, or other processes missing

# One line on stderr, exit 2: the person must change something.
die() {
  echo "$ME: $*" >&2
  exit "$EXIT_USAGE"
}

# The comment at the head of the calling script, from its second line to the first line that is no comment.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

# Arguments, quoted so that a shell reads back exactly them.
quoted() {
  local word words=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      words+=("$word")
    else
      words+=("'${word//\'/\'\\\'\'}'")
    fi
  done
  echo "${words[*]}"
}

# Runs a command after showing it; with DRY_RUN=1 only shows it.
run() {
  if [[ $DRY_RUN == 1 ]]; then
    quoted "$@"
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# started COMMAND...: in the background, as a process of its own, whose number is added to CHILDREN.
CHILDREN=() STOPPED=''
started() {
  (exec "$@") &
  CHILDREN+=($!)
  [[ -z $STOPPED ]] || pass_on "$STOPPED" # it came just before
}

# From now on the first signal is named by STOPPED and passed on, as TERM, to CHILDREN.
pass_signals_on() {
  local name
  for name in TERM INT HUP USR1; do
    # shellcheck disable=SC2064  # the name is of now
    trap "pass_on $name" "$name"
  done
}
pass_on() {
  STOPPED=${STOPPED:-$1}
  [[ ${#CHILDREN[@]} == 0 ]] || kill -TERM "${CHILDREN[@]}" 2>/dev/null || true
}

# ended PID: waits for a child, whatever signals arrive meanwhile; its exit code.
ended() {
  local code=0 last=0
  wait "$1" || code=$?
  while kill -0 "$1" 2>/dev/null; do # a signal ended the wait, not the child: it is saving
    code=0
    wait "$1" || code=$?
  done
  if [[ -n $STOPPED ]]; then # the child may have ended while the signal ended the wait
    wait "$1" || last=$?
    [[ $last == 127 ]] || code=$last
  fi
  return "$code"
}

# attended COMMAND...: shows it and runs it, passes signals on, and waits for its end; its exit code.
attended() {
  local code=0
  [[ $DRY_RUN == 0 ]] || {
    quoted "$@"
    return
  }
  echo "+ $(quoted "$@")" >&2
  pass_signals_on
  started "$@"
  ended "${CHILDREN[-1]}" || code=$?
  CHILDREN=()
  return "$code"
}

# The first python of at least 3.11 that runs.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  echo "$ME: no Python 3.11 or newer on this machine; install one, or name it: PYTHON=/path/to/python3.11" >&2
  return "$EXIT_USAGE"
}

# ensure_venv EXTRA...: .venv with this checkout (editable) and the given extras; installs only what is not there yet.
# TUNA_EXTRAS=gpu (or tpu) adds the accelerator's packages. Afterwards its programs come first in PATH.
ensure_venv() {
  local venv=${TUNA_VENV:-$ROOT/.venv} python extras stamp
  extras=$(printf '%s\n' "$@" "${TUNA_EXTRAS:-}" | tr -s ', ' '\n' | sed '/^$/d' | sort -u | paste -sd, -)
  stamp=$venv/.tuna-installed-${extras//,/-}
  if [[ $DRY_RUN == 1 ]]; then
    echo "python3 -m venv ${venv#"$ROOT/"}"
    echo "${venv#"$ROOT/"}/bin/python -m pip install --quiet --editable .${extras:+[$extras]}"
    return
  fi
  if ! [[ -x $venv/bin/python ]]; then
    python=$(find_python)
    echo "$ME: making $venv with $python"
    "$python" -m venv "$venv" || die "$python has no venv module; on Debian and Ubuntu: apt install python3-venv"
  fi
  # Python compiles a module when it is first imported; pip would compile all 20,000 of them, for a minute.
  unset PYTHONDONTWRITEBYTECODE
  if ! [[ -e $stamp && $stamp -nt $ROOT/setup.py ]]; then
    local start=$SECONDS
    echo "$ME: installing tuna_jax${extras:+[$extras]} into $venv ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
      --editable "$ROOT${extras:+[$extras]}"
    touch "$stamp"
    echo "$ME: installed in $((SECONDS - start)) s"
  fi
  export PATH=$venv/bin:$PATH
}

# check_name NAME: a run's name becomes the name of machines and pods, so it must be a DNS label.
check_name() {
  [[ -n $1 ]] || die "--name is required"
  [[ $1 =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
    die "--name=$1: not a DNS label (a-z, 0-9 and '-', starting with a letter, not ending with '-', at most 63)"
}

# check_number FLAG VALUE
check_number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1=$2: expected a positive integer"
}

# worker_command NAME OUT PRESET EXPECT RETRIES COMMAND...: sets WORKER, what every host runs from the checkout's root.
# The run works in OUT/NAME and keeps compiled programs in OUT/compile-cache, whether OUT is a path or gs://...
worker_command() {
  local name=$1 out=${2%/} preset=$3 expect=$4 retries=$5 argument
  shift 5
  [[ -n $out ]] || die "--out is required: a path or gs://bucket/path"
  [[ $# -gt 0 ]] || die "no command: put it after --, as in -- tuna-jax train --config=configs/stage2.py:7b"
  preset_flags "$preset" >/dev/null || die "--preset=$preset: expected one of ${PRESETS[*]}"
  [[ $retries =~ ^[0-9]+$ ]] || die "--retries=$retries: expected a number"
  for argument in "$@"; do
    [[ $argument != --workdir* ]] || die "$argument: the run works in OUT/NAME; leave --workdir out"
  done
  # shellcheck disable=SC2034  # for the scripts that source this
  WORKER=(bash launch/supervise.sh "--preset=$preset" "--cache=$out/compile-cache" "--expect=$expect"
    "--retries=$retries" -- "$@" "--workdir=$out/$name")
}
