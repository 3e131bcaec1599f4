#!/usr/bin/env bash
# The package on a machine that has nothing: package_test.sh CPACK CONFIG GOLDEN. Packs what is built,
# unpacks it, moves it, and runs it with an empty environment; as root in a chroot that holds the C
# library and a shell alone, so that no library of this machine can help. Exits 77 where the build makes
# no package.
set -euo pipefail
cpack=$1 config=$2 golden=$3
[[ -e $config ]] || { echo "skipped: this build makes no package"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

"$cpack" --config "$config" -D CPACK_COMPONENTS_ALL=keyline -B "$work/packed" >"$work/log" ||
  fail "cpack: $(cat "$work/log")"
rm -rf "$work/packed/_CPack_Packages"
archive=$(echo "$work"/packed/keyline-*.tar.gz)
[[ $(basename "$archive") =~ ^keyline-[0-9.]+-linux-[a-z0-9_]+\.tar\.gz$ ]] || fail "packed $archive"
(($(stat -c %s "$archive") < 30000000)) || fail "$archive has $(stat -c %s "$archive") bytes"

# Unpacked in one place, moved to another: nothing may remember the first.
root=$work/chroot
home=/place-$RANDOM
mkdir -p "$work/unpacked" "$root$home" "$root/tmp"
tar -xzf "$archive" -C "$work/unpacked"
mv "$work/unpacked"/keyline-* "$root$home/keyline"
cp -r "$golden" "$root$home/model"

as_root=()
if [[ $(id -u) == 0 ]]; then
  as_root=(--allow-run-as-root)
fi
if [[ $(id -u) == 0 ]] && unshare --mount true 2>/dev/null; then
  # The C library, and what the mpirun script calls.
  copy() { mkdir -p "$root$(dirname "$1")" && cp -L "$1" "$root$1"; }
  ldconfig -p | sed -n 's/.* => //p' |
    grep -E '^/(usr/)?lib/x86_64-linux-gnu/(libc|libm|libdl|librt|libpthread|libresolv|libutil|libnss_files)\.so' |
    while read -r library; do copy "$library"; done
  copy /lib64/ld-linux-x86-64.so.2
  for tool in /bin/sh /usr/bin/readlink; do
    copy "$tool"
    ldd "$tool" | grep -o '/[^ ]*' | while read -r library; do copy "$library"; done
  done
  mkdir -p "$root/dev/shm" "$root/etc" "$root/proc"
  echo 'root:x:0:0::/:/bin/sh' >"$root/etc/passwd"
  echo '127.0.0.1 localhost' >"$root/etc/hosts"
  for device in null zero urandom; do cp -a "/dev/$device" "$root/dev/"; done
  place=$home where=" in an empty chroot"
  # The loader asks /proc where a program lies.
  chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
  inside() {
    # shellcheck disable=SC2016  # they expand there
    unshare --mount sh -c 'mount -t proc proc "$2/proc" && exec env -i PATH=/usr/bin:/bin HOME=/tmp "$@"' \
      sh "$chroot" "$root" "$@"
  }
else
  place=$root$home where=
  inside() { env -i PATH=/usr/bin:/bin HOME=/tmp "$@"; }
fi
keyline=$place/keyline/bin/keyline

version=$(inside "$keyline" --version) || fail "keyline --version"
[[ $(basename "$archive") == "keyline-$version-linux-"* ]] || fail "version $version in $archive"
inside "$keyline" selftest --model "$place/model" --ranks 2 --max-new-tokens 8 >"$work/selftest" 2>&1 ||
  fail "selftest: $(cat "$work/selftest")"
grep -q 'all runs agree' "$work/selftest" || fail "selftest printed: $(cat "$work/selftest")"

# The same log-probabilities from one rank and from two under the package's own mpirun.
score=("$keyline" score --model "$place/model" --token-ids "$place/model/expected.safetensors"
       --kv-policy last_recent --kv-cache-length 64 --kv-chunk 16 --json)
inside "${score[@]}" >"$work/one" 2>"$work/err" || fail "score: $(cat "$work/err")"
inside "$place/keyline/bin/mpirun" "${as_root[@]}" --oversubscribe --bind-to none -np 2 "${score[@]}" \
  >"$work/two" 2>"$work/err" || fail "mpirun -np 2 score: $(cat "$work/err")"
[[ -s $work/one ]] || fail "score printed nothing"
cmp "$work/one" "$work/two" || fail "two ranks differ from one"
! grep -qi 'help file' "$work/err" || fail "mpirun complains: $(cat "$work/err")"
echo "keyline $version: $(stat -c %s "$archive") bytes; moved to $place$where; all agree"
