#!/usr/bin/env bash
# Serves a model on N ranks of this machine.
#
#   launch/local.sh -np N --model DIR [flags of `keyline serve`]
#   launch/local.sh --dry-run ...       prints what it would run
#
# End it with SIGUSR1 (running requests finish first) or SIGTERM (at once).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=mpi_job.sh
source "$(dirname "${BASH_SOURCE[0]}")/mpi_job.sh"

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

ranks=
serve=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1 ;;
    -np)
      ranks=${2:-}
      shift
      ;;
    *) serve+=("$1") ;;
  esac
  shift || break
done
if [[ ! $ranks =~ ^[1-9][0-9]*$ ]]; then
  echo "local.sh: -np needs a number of ranks, got \"$ranks\"" >&2
  usage >&2
  exit 2
fi

program=$(find_keyline)
set_environment
mpirun_options
# Open MPI refuses to start without ssh, even on one machine, unless told that there is no other.
if ! command -v ssh >/dev/null; then
  options+=(--mca plm isolated)
fi
start_job "$(find_mpirun)" "${options[@]}" --oversubscribe -np "$ranks" "$program" serve "${serve[@]}"
