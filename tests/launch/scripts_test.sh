#!/usr/bin/env bash
# The launch scripts: scripts_test.sh dry-run | slurm | run | lint. `run` starts jobs of two ranks on this
# machine. Exits 77 where what it needs is absent.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export KEYLINE_PROGRAM="$work/keyline" KEYLINE_RUN_DIR="$work/run"
unset NCCL_DEBUG NCCL_NVLS_ENABLE NCCL_SOCKET_IFNAME MALLOC_ARENA_MAX GRPC_VERBOSITY

# A program that says how it was called.
cat >"$KEYLINE_PROGRAM" <<'PROGRAM'
#!/usr/bin/env bash
echo "rank ${OMPI_COMM_WORLD_RANK:-none} of ${OMPI_COMM_WORLD_SIZE:-none}: $* NCCL_DEBUG=$NCCL_DEBUG"
PROGRAM
chmod +x "$KEYLINE_PROGRAM"

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# expect TEXT COMMAND...: it succeeds and prints TEXT somewhere.
expect() {
  local text=$1 output
  shift
  output=$("$@" 2>&1) || fail "$* exited with $?: $output"
  [[ $output == *"$text"* ]] || fail "$* printed, without \"$text\": $output"
}

# expect_error CODE TEXT COMMAND...
expect_error() {
  local code=$1 text=$2 output actual=0
  shift 2
  output=$("$@" 2>&1) || actual=$?
  [[ $actual == "$code" ]] || fail "$* exited with $actual, not $code: $output"
  [[ $output == *"$text"* ]] || fail "$* printed, without \"$text\": $output"
}

case ${1:-} in
  dry-run)
    expect "-np 3 $KEYLINE_PROGRAM serve --model my\\ model --lanes 4" \
      launch/local.sh -np 3 --dry-run --model 'my model' --lanes 4
    expect "--bind-to none" launch/local.sh --dry-run -np 1 --model m
    NCCL_DEBUG=INFO expect "NCCL_DEBUG=INFO" launch/local.sh --dry-run -np 1 --model m
    [[ ! -e $KEYLINE_RUN_DIR ]] || fail "a dry run made $KEYLINE_RUN_DIR"
    expect_error 2 '-np needs a number of ranks, got ""' launch/local.sh --model m
    expect_error 2 'got "0"' launch/local.sh -np 0 --model m
    expect "launch/local.sh -np N" launch/local.sh --help
    (
      # Without any program: an error that says what to do, before anything starts.
      unset KEYLINE_PROGRAM
      if [[ ! -e build/release/bin/keyline ]] && ! command -v keyline >/dev/null; then
        expect_error 3 "no keyline program" launch/local.sh -np 1 --dry-run
      fi
    )

    expect "--hostfile launch/hostfile.example" \
      launch/ssh.sh --dry-run --hostfile launch/hostfile.example --model m
    expect "-x NCCL_SOCKET_IFNAME" \
      launch/ssh.sh --dry-run --hostfile launch/hostfile.example --interface eth1 --model m
    expect_error 2 '--hostfile needs a file that can be read, got "none"' \
      launch/ssh.sh --dry-run --hostfile none
    expect "srun --mpi=pmix --kill-on-bad-exit=1 --cpu-bind=none $KEYLINE_PROGRAM serve --model m" \
      bash launch/slurm.sbatch --dry-run --model m
    ;;
  slurm)
    # Slurm signals the batch script; the ranks must get it, and their exit code must come back.
    cat >"$work/srun" <<'SRUN'
#!/usr/bin/env bash
trap 'echo drained; exit 5' USR1
echo "started: $*"
while :; do sleep 0.02; done
SRUN
    chmod +x "$work/srun"
    PATH="$work:$PATH" bash launch/slurm.sbatch --model m >"$work/output" &
    batch=$!
    for _ in {1..500}; do
      grep -qs started "$work/output" && break
      sleep 0.02
    done
    kill -USR1 "$batch"
    code=0
    wait "$batch" || code=$?
    [[ $code == 5 ]] || fail "slurm.sbatch exited with $code, not with srun's 5"
    grep -q drained "$work/output" || fail "the signal did not reach srun"
    ;;
  run)
    command -v mpirun >/dev/null || { echo "skipped: no mpirun"; exit 77; }
    expect "rank 1 of 2: serve --model m NCCL_DEBUG=WARN" launch/local.sh -np 2 --model m
    [[ $(stat -c %a "$KEYLINE_RUN_DIR") == 700 ]] || fail "$KEYLINE_RUN_DIR is open to others"
    # A rank that leaves its state behind, and one that takes it along.
    cat >"$work/lost" <<'PROGRAM'
#!/usr/bin/env bash
mkdir -p "$KEYLINE_RANK_STATES"
[[ $OMPI_COMM_WORLD_RANK == 0 ]] || echo "rank      1 pid   77 step   5 layer 3  run the layer" >"$KEYLINE_RANK_STATES/rank.1"
exit "$OMPI_COMM_WORLD_RANK"
PROGRAM
    chmod +x "$work/lost"
    KEYLINE_PROGRAM=$work/lost expect_error 1 \
      "did not end in order: rank 1 pid 77 step 5 layer 3 run the layer" launch/local.sh -np 2
    [[ -z $(ls -A "$KEYLINE_RUN_DIR") ]] || fail "left behind: $(ls -A "$KEYLINE_RUN_DIR")"
    # Drains: the signal reaches the ranks, their exit code comes back.
    cat >"$work/drains" <<'PROGRAM'
#!/usr/bin/env bash
trap 'echo drained; exit 0' USR1
echo started
while :; do sleep 0.02; done
PROGRAM
    chmod +x "$work/drains"
    KEYLINE_PROGRAM=$work/drains launch/local.sh -np 1 >"$work/output" 2>&1 &
    job=$!
    for _ in {1..500}; do
      grep -qs started "$work/output" && break
      sleep 0.02
    done
    kill -USR1 "$job"
    code=0
    wait "$job" || code=$?
    [[ $code == 0 ]] || fail "local.sh exited with $code: $(cat "$work/output")"
    grep -q drained "$work/output" || fail "the signal did not reach the rank"
    echo "localhost slots=2" >"$work/hosts"
    command -v ssh >/dev/null || export OMPI_MCA_plm=isolated
    expect "rank 1 of 2: serve --model m NCCL_DEBUG=WARN" \
      launch/ssh.sh --hostfile "$work/hosts" --model m
    ;;
  lint)
    command -v shellcheck >/dev/null || { echo "skipped: no shellcheck"; exit 77; }
    shellcheck -x launch/*.sh launch/*.sbatch tests/launch/*.sh
    ;;
  *) fail "usage: scripts_test.sh dry-run | slurm | run | lint" ;;
esac
