#!/usr/bin/env bash
# Serves a model on the ranks of several machines, started over ssh.
#
#   launch/ssh.sh --hostfile FILE [--interface IF] --model DIR [flags of `keyline serve`]
#   launch/ssh.sh --dry-run ...         prints what it would run
#
# The program, the model and Open MPI lie at the same paths on all of them; ssh needs no password.
# Rank 0, on the first machine of FILE, takes the requests. hostfile.example explains FILE.
# IF is the network interface between them (a private one: MPI and NCCL do not authenticate).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=mpi_job.sh
source "$(dirname "${BASH_SOURCE[0]}")/mpi_job.sh"

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

hostfile=
interface=
serve=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1 ;;
    --hostfile)
      hostfile=${2:-}
      shift
      ;;
    --interface)
      interface=${2:-}
      shift
      ;;
    *) serve+=("$1") ;;
  esac
  shift || break
done
if [[ ! -r $hostfile ]]; then
  echo "ssh.sh: --hostfile needs a file that can be read, got \"$hostfile\"" >&2
  usage >&2
  exit 2
fi

program=$(find_keyline)
set_environment
mpirun_options
# A machine that vanishes is noticed after 5 s and three unanswered probes.
options+=(--hostfile "$hostfile" --mca oob_tcp_keepalive_time 5 --mca oob_tcp_keepalive_intvl 2
          --mca oob_tcp_keepalive_probes 3)
if [[ -n $interface ]]; then
  export NCCL_SOCKET_IFNAME=$interface
  options+=(--mca btl_tcp_if_include "$interface" --mca oob_tcp_if_include "$interface")
fi
# mpirun takes its own environment along only to this machine.
for name in NCCL_DEBUG NCCL_NVLS_ENABLE MALLOC_ARENA_MAX GRPC_VERBOSITY \
            ${NCCL_SOCKET_IFNAME+NCCL_SOCKET_IFNAME} "${!KEYLINE_@}"; do
  options+=(-x "$name")
done
start_job "$(find_mpirun)" "${options[@]}" "$program" serve "${serve[@]}"
