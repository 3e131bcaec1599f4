#!/usr/bin/env bash
# From nothing to a streaming answer: installs, builds, fetches a small real model, starts a server of two
# ranks under mpirun, asks it a question over gRPC, shows where the layers are, stops it. Run it again: it
# uses what is there.
set -euo pipefail
cd "$(dirname "$0")/.."

prompt=${1:-"What is the capital of France? Answer in one sentence."}
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
if [[ ! -t 1 ]]; then
  say() { printf '\n== %s\n' "$*"; }
fi

say "Installing what is missing"
launch/install.sh

say "Building (build/release)"
if [[ ! -f build/release/build.ninja ]]; then
  cmake --preset release >build.log 2>&1 || { cat build.log; exit 1; }
  rm -f build.log
fi
cmake --build --preset release --target keyline
keyline=build/release/bin/keyline

say "Fetching SmolLM2-135M-Instruct"
model=$(launch/fetch_smollm2.sh)
echo "$model"

say "Starting two ranks under mpirun"
log=$(mktemp)
# Open MPI looks for ssh even where all ranks are on this host.
command -v ssh >/dev/null || export OMPI_MCA_plm=isolated
# A free port; the server says which, on the line that begins with 'ready'.
mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2 \
  "$keyline" serve --model "$model" --kv-policy last_recent --kv-cache-length 1024 --kv-sinks 4 \
  --kv-chunk 256 --lanes 4 --address 127.0.0.1:0 >"$log" 2>&1 &
server=$!
stop() {
  if kill -0 "$server" 2>/dev/null; then
    kill -USR1 "$server" 2>/dev/null || true  # mpirun passes it on: drain
    wait "$server" || true
  fi
  rm -f "$log"
}
trap stop EXIT
for ((i = 0; i < 600; ++i)); do
  grep -q '^ready' "$log" && break
  kill -0 "$server" 2>/dev/null || { cat "$log"; echo "the server did not start"; exit 1; }
  sleep 0.1
done
cat "$log"
address=$(sed -n 's/^ready *grpc \([^ ]*\).*/\1/p' "$log")
"$keyline" client health --server "$address" --wait 30

say "Asking: $prompt"
"$keyline" client generate --server "$address" --chat --prompt "$prompt" --max-new-tokens 64

say "Placement"
"$keyline" client placement --server "$address"

say "Stopping"
"$keyline" client drain --server "$address"
wait "$server"
echo "the server ended with exit code 0"
