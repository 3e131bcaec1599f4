#!/usr/bin/env bash
# Installs, builds and runs all tests. `launch/test.sh --quick` leaves out the sanitizers' builds and
# that of the CUDA kernels for older GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=false
[[ "${1:-}" == "--quick" ]] && quick=true
say() { printf '\n== %s\n' "$*"; }

say "Installing what is missing"
launch/install.sh

say "Python for the checks against reference vectors, and the Python client"
if [[ ! -x build/venv/bin/python ]]; then
  python3 -m venv build/venv
fi
build/venv/bin/python -m pip install --quiet --disable-pip-version-check \
  'numpy>=1.26,<3' 'safetensors>=0.4,<1' 'pytest>=7,<9' 'matplotlib>=3.7,<4' rpc/python

# Builds preset $1 with the targets that follow (default: all) and runs its tests, ctest flags in $2.
build_and_test() {
  local preset=$1 flags=$2
  shift 2
  say "Building $preset"
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" ${1:+--target "$@"}
  say "Testing $preset"
  # shellcheck disable=SC2086  # flags are words
  ctest --preset "$preset" --parallel 2 $flags
}

build_and_test release ""
if ! $quick; then
  # What only the package carries would be missed for long: older GPUs take other branches.
  if grep -q '\.cu\.o' build/release/build.ninja; then
    say "Building the kernels for older GPUs"
    cmake --preset ampere >/dev/null
    cmake --build --preset ampere
  fi
  build_and_test cpu "-LE slow"
  # Where threads meet: the pool, the transports, the pipeline, the engine. Debian's gRPC is not built
  # for ThreadSanitizer; its services are watched by hand (CONTRIBUTING.md).
  threaded=(cpu_device_test attend_test transport_test pipeline_test scheduler_test engine_test)
  build_and_test tsan "-R ^($(IFS='|' && echo "${threaded[*]}"))(_[0-9]+)?\$" "${threaded[@]}"
fi
