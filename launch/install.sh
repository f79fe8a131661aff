#!/usr/bin/env bash
# Makes .venv and installs tuna_jax with the named extras: `bash launch/install.sh [--dry-run] tpu`. Without a Python
# of at least 3.11, Ubuntu's own package of it is installed (TPU VM images come with 3.10).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ ${1:-} != --help ]] || { usage && exit 0; }
[[ ${1:-} != --dry-run ]] || { DRY_RUN=1 && shift; }
[[ ${1:-} != -* ]] || die "unknown argument $1; it takes extras by name, --dry-run and --help"
cd "$ROOT"
if ! find_python >/dev/null 2>&1 && [[ -x /usr/bin/apt-get ]]; then
  run sudo apt-get -qq update
  run sudo apt-get -qq install -y python3.11 python3.11-venv
fi
ensure_venv "$@"
