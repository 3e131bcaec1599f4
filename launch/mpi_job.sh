# shellcheck shell=bash
# What local.sh and ssh.sh share: where the program is, the environment of ranks, how a job starts.
# Sourced, not run.

# This checkout, or the package.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The program: $KEYLINE_PROGRAM, this package's or this checkout's release build, or the installed one.
find_keyline() {
  for program in "${KEYLINE_PROGRAM:-}" "$root/bin/keyline" "$root/build/release/bin/keyline" \
                 "$(command -v keyline || true)"; do
    if [[ -n $program && -x $program ]]; then
      echo "$program"
      return
    fi
  done
  echo "no keyline program: build it (cmake --preset release && cmake --build --preset release)" \
       "or set KEYLINE_PROGRAM" >&2
  return 3
}

# All that the scripts set; what the caller has set already stays.
set_environment() {
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
  export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-4}
  export GRPC_VERBOSITY=${GRPC_VERBOSITY:-ERROR}
}

# A package brings its own mpirun.
find_mpirun() {
  if [[ -x $root/bin/mpirun ]]; then
    echo "$root/bin/mpirun"
  else
    echo mpirun
  fi
}

# Options of every job. Ranks are not bound to cores: Open MPI would pin each of two to one core. A
# job ends 10 ms after one of its ranks did, instead of a second.
mpirun_options() {
  options=(--bind-to none --mca odls_base_sigkill_timeout 0 --mca orte_tmpdir_base "$run_dir")
  if [[ $(id -u) == 0 ]]; then
    options+=(--allow-run-as-root)
  fi
}

# Shared memory that a killed job left behind: files of ours that no process maps.
sweep_shared_memory() {
  local segment
  for segment in /dev/shm/vader_segment."$(uname -n)".*; do
    if [[ -O $segment ]] && ! grep -qsF "$segment" /proc/[0-9]*/maps; then
      rm -f -- "$segment"
    fi
  done
}

# Where each rank of this host was (runtime/transport/rank_state.h): files that ranks leave which did
# not end in order.
say_where_ranks_were() {
  local state
  for state in "$KEYLINE_RANK_STATES"/rank.*; do
    [[ ! -e $state ]] || echo "did not end in order: $(tr -s ' ' <"$state")" >&2
  done
}

# Prints the command with --dry-run, else runs it to its end: SIGUSR1 (finish what runs, take nothing
# new) and SIGTERM reach mpirun, which passes them on to all ranks. A signal also ends `wait` early: then
# there is more to wait for.
start_job() {
  if ((dry_run)); then
    printf 'NCCL_DEBUG=%s NCCL_NVLS_ENABLE=%s MALLOC_ARENA_MAX=%s GRPC_VERBOSITY=%s' \
           "$NCCL_DEBUG" "$NCCL_NVLS_ENABLE" "$MALLOC_ARENA_MAX" "$GRPC_VERBOSITY"
    printf ' %q' "$@"
    echo
    return
  fi
  (umask 077 && mkdir -p "$run_dir")
  if [[ ! -O $run_dir ]]; then
    echo "$run_dir belongs to another user; set KEYLINE_RUN_DIR" >&2
    exit 3
  fi
  sweep_shared_memory
  export KEYLINE_RANK_STATES=$run_dir/ranks.$$
  local job='' code signalled
  # shellcheck disable=SC2317  # the traps call it
  pass_on() {
    signalled=1
    [[ -z $job ]] || kill "-$1" "$job" || true
  }
  trap 'pass_on USR1' USR1
  trap 'pass_on TERM' TERM INT
  "$@" &
  job=$!
  while true; do
    signalled=0
    code=0
    wait "$job" || code=$?
    ((signalled)) || break
  done
  ((code == 0)) || say_where_ranks_were
  rm -rf -- "$KEYLINE_RANK_STATES"
  exit "$code"
}

# For Open MPI's session files. Short, since sockets lie below it.
run_dir=${KEYLINE_RUN_DIR:-${XDG_RUNTIME_DIR:-/tmp}/keyline-$(id -u)}
# shellcheck disable=SC2034  # of the scripts that source this
dry_run=0
