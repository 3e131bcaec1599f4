#!/usr/bin/env bash
# Fetches a text to evaluate caches on: Newton's Opticks (1730, public domain, 567 kB of English prose), which
# lies inside the Debian package golang-1.19-src, into models/ and checks it. Nothing is installed. Prints the
# file's path. Does nothing where it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

text=models/opticks.txt
sha256=d4a9ac22462b35e7821a4f2706c211093da678620a8f9997989ee7cf8d507bbd

if ! echo "$sha256  $text" | sha256sum --check --status 2>/dev/null; then
  mkdir -p models
  scratch=$(mktemp -d models/fetch.XXXXXX)
  trap 'rm -rf "$scratch"' EXIT
  if ! (cd "$scratch" && apt-get download --quiet golang-1.19-src >&2); then
    echo "could not download golang-1.19-src: run apt-get update, or name a text of your own" >&2
    exit 1
  fi
  dpkg-deb --extract "$scratch"/golang-1.19-src_*.deb "$scratch"
  fetched="$scratch/usr/share/go-1.19/src/testdata/Isaac.Newton-Opticks.txt"
  if ! echo "$sha256  $fetched" | sha256sum --check --status; then
    echo "the fetched text's SHA-256 is not $sha256" >&2
    exit 1
  fi
  mv "$fetched" "$text"
fi
echo "$text"
